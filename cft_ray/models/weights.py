"""The same weights: every tensor of the files is taken up, and every parameter comes from them.

transformers may rename, split and fuse tensors while loading (experts of Mixtral, checkpoints without the ``model.``
prefix); what it did with each is in its loading report. What keeps its name is compared bit by bit as well.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from cft_ray.errors import UserError
from cft_ray.models.finite import finite

_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.attention\.bias|embeddings\.position_ids)$")
"""tensors of older checkpoints that are computed from the configuration today"""


def check_weights(model: PreTrainedModel, report: Any, files: Mapping[str, Path], folder: Path, *, tied: bool) -> None:
    """See that a model that has just been loaded is what its files hold.

    Args:
        model: whole.
        report: transformers' loading report.
        files: name of each stored tensor -> its file; none where they are in another format, then the report is all there is.
        folder: its folder.
        tied: whether its configuration says that head and embedding are one.

    Raises:
        UserError: weights that are missing, left over, of another shape, not finite, unlike the files; a configuration that
            ties two tensors that differ.
    """
    _complete(report, folder)
    if tied:
        _tied(model, files, folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        if not finite(parameter.detach()):
            _not_finite(name, files, folder)
    prefix = f"{model.base_model_prefix}."
    for name, path in files.items():
        parameter = next((parameters[each] for each in (name, prefix + name) if each in parameters), None)
        if parameter is None:
            continue  # renamed, fused or split by transformers; nothing is left over, says its report
        with safe_open(path, framework="pt") as tensors:
            expected = tensors.get_tensor(name).to(parameter.dtype)
        if expected.shape != parameter.shape or not torch.equal(expected, parameter.detach()):
            if _converted(model, name):
                continue
            raise _unlike(model, name, parameter.detach(), expected, path)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's buffers on the CPU, to compare with later."""
    return {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}


def changed(now: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the buffers that are not bit by bit what they were, those that are missing included."""
    return [
        name
        for name, buffer in before.items()
        if name not in now or now[name].dtype != buffer.dtype or not torch.equal(now[name].cpu(), buffer)
    ]


def _complete(report: Any, folder: Path) -> None:
    wrong = {
        "the files lack weights of the model": "missing_keys",
        "the files hold tensors that the model has no place for": "unexpected_keys",
        "weights of another shape than the configuration says": "mismatched_keys",
        "transformers could not load everything": "error_msgs",
    }
    for what, key in wrong.items():
        found = sorted(str(each[0] if isinstance(each, tuple) else each) for each in report.get(key) or ())
        found = [each for each in found if key != "unexpected_keys" or not _COMPUTED.search(each)]
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise UserError(
                f"{what}: {', '.join(found[:5])}{more}",
                where=str(folder),
                fix="fetch or train the model again, or correct its config.json",
            )


def _tied(model: PreTrainedModel, files: Mapping[str, Path], folder: Path) -> None:
    """Two stored tensors that the configuration makes one have to be equal: transformers drops one of them."""
    declared = type(model)._tied_weights_keys or {}
    for target, source in (declared if isinstance(declared, dict) else {}).items():
        pair = [name for name in (target, source) if name in files]
        if len(pair) < 2:
            continue
        tensors = []
        for name in pair:
            with safe_open(files[name], framework="pt") as file:
                tensors.append(file.get_tensor(name))
        if tensors[0].shape != tensors[1].shape or not torch.equal(*tensors):
            raise UserError(
                f"config.json says tie_word_embeddings, but {target} and {source} differ in the files",
                where=str(folder),
                fix="set tie_word_embeddings to false in its config.json, or remove the tensor that is not meant",
            )


def _unlike(model: PreTrainedModel, name: str, loaded: torch.Tensor, stored: torch.Tensor, path: Path) -> UserError:
    """What to say of a weight that is not what its file holds."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    if loaded.shape == stored.shape and isinstance(padding, int) and 0 <= padding < len(loaded) and not loaded[padding].any():
        stored = stored.clone()
        stored[padding] = 0
        if torch.equal(loaded, stored):
            return UserError(
                f"transformers sets row {padding} of {name} (pad_token_id) to zero while loading this architecture",
                where=str(path),
                fix="set pad_token_id to null in the model's config.json: padding is not read, and the tokenizer names it",
            )
    return UserError(
        f"the loaded weight {name} differs from its file",
        where=str(path),
        fix="report it: transformers changes this architecture's weights while loading",
    )


def _not_finite(parameter: str, files: Mapping[str, Path], folder: Path) -> None:
    """Name the stored tensor and its file."""
    for name, path in files.items():
        with safe_open(path, framework="pt") as tensors:
            tensor = tensors.get_tensor(name)
        if not finite(tensor):
            kind = "NaN" if bool(tensor.float().isnan().any()) else "infinity"
            raise UserError(f"tensor {name} holds {kind}", where=str(path), fix="fetch or train the model again")
    raise UserError(
        f"{parameter} is not finite in this precision, though the files are", where=str(folder), fix="use a wider precision"
    )


def _converted(model: PreTrainedModel, name: str) -> bool:
    """Whether transformers says that it changes this tensor while loading."""
    conversions = getattr(model, "_weight_conversions", None) or []
    for conversion in conversions:
        patterns = [conversion.source_patterns] if isinstance(conversion.source_patterns, str) else conversion.source_patterns
        if any(re.search(pattern.replace(".*.", r"\..*\."), name) for pattern in patterns):
            return True
    return False
