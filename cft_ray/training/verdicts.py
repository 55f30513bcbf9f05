"""What this project does with an architecture, tried on a tiny model of it: the rows of the table in `docs/models.md`.

Everything that is demanded of a model is asked for, as a training asks for it (`cft_ray.training.contract`): its files are
loaded and compared, the cheapest way of running it that is its own function is found, gradients are those of its own forward
pass, and what is exported after a change of all weights loads again as the changed model. What fails on the way is the reason
why the architecture is refused.
"""

import copy
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cft_ray.errors import StageFailed, UserError
from cft_ray.models import function, loading, saving
from cft_ray.models.architectures import VOCABULARY, tiny_model
from cft_ray.models.finite import finite
from cft_ray.models.function import Row
from cft_ray.training import export, group
from cft_ray.training.attention import Layout
from cft_ray.training.collate import MicroBatch
from cft_ray.training.loss import SummedLoss
from cft_ray.training.model import byte_tokenizer
from cft_ray.training.probe import Probe, attention_of

LENGTHS = (23, 17, 9)
"""tokens of the rows: longer than a tiny model's windows"""


@dataclass(frozen=True)
class Verdict:
    """On one architecture.

    Args:
        model_type: transformers' name of it.
        architecture: its class, as ``config.json`` names it; empty where it could not be built.
        way: how it is trained (`cft_ray.models.function.Way`); None: it is not.
        attention: with which attention; None: it is not trained.
        refused: why not; None: it is trained.
        built: whether a tiny model could be built, so that it was tried.
    """

    model_type: str
    architecture: str = ""
    way: str | None = None
    attention: str | None = None
    refused: str | None = None
    built: bool = True

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def verdict(model_type: str) -> Verdict:
    """Build a tiny model of an architecture and ask of it what a training asks.

    Args:
        model_type: one of `cft_ray.models.architectures.architectures`.
    """
    tokenizer = byte_tokenizer(128)
    try:
        made = tiny_model(model_type, vocabulary=len(tokenizer))
        name = type(made).__name__
        _name_tokens(made, tokenizer)
        with torch.inference_mode():
            function.own_losses(made, random_probe(len(tokenizer)).rows)
    except Exception as error:  # noqa: BLE001 - an architecture's own code may raise anything at sizes that it does not expect
        return Verdict(model_type, refused=_first(error), built=False)
    try:
        with tempfile.TemporaryDirectory() as root, group.joined():
            source = Path(root) / "source"
            made.save_pretrained(source)
            tokenizer.save_pretrained(source)
            way, attention = _trained(str(source), tokenizer, Path(root))
    except (UserError, StageFailed) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        return Verdict(model_type, name, refused=reason.splitlines()[0])
    except Exception as error:  # noqa: BLE001 - the same, of saving and loading
        return Verdict(model_type, name, refused=_first(error))
    return Verdict(model_type, name, way, attention)


def random_probe(vocabulary: int = VOCABULARY, seed: int = 0) -> Probe:
    """Rows of random tokens, every position but the first a target.

    Args:
        vocabulary: ids are below it, and none of the first three.
        seed: of the ids.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, vocabulary, (length,), generator=generator) for length in LENGTHS]
    rows = tuple(Row(each, torch.arange(len(each) - 1), each[1:]) for each in ids)
    labels = torch.cat([row.labels for row in rows])
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
    free = MicroBatch(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        predictors=torch.cat([row.predictors + start for row, start in zip(rows, starts, strict=False)]),
        labels=labels,
        layout=Layout.of(LENGTHS),
        mask=None,
        tokens=sum(LENGTHS),
    )
    width = LENGTHS[0]
    padded = MicroBatch(
        input_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        position_ids=torch.arange(width).expand(len(LENGTHS), -1),
        predictors=torch.cat([row.predictors + place * width for place, row in enumerate(rows)]),
        labels=labels,
        layout=None,
        mask=torch.tensor([[1] * length + [0] * (width - length) for length in LENGTHS]),
        tokens=sum(LENGTHS),
    )
    return Probe({"free": free, "padded": padded}, rows)


def _trained(source: str, tokenizer: Any, root: Path) -> tuple[str, str]:
    """(way, attention), after all that is demanded has been seen."""
    probe = random_probe(len(tokenizer))
    causal = loading.load(source, dtype=torch.float32)
    choice = function.choose(causal, probe.rows, probe.of_model, padding="free", attention=attention_of, where=source)
    _compare_gradients(causal, probe, choice)
    saving.save_side_files(causal, tokenizer, root / "side")
    with torch.no_grad():
        for parameter in causal.parameters():
            parameter.mul_(0.9)
    expected = function.own_losses(causal, probe.rows)

    def comes_back(folder: Path) -> str | None:
        loaded = loading.load(str(folder), dtype=torch.float32)
        different = function.difference(function.own_losses(loaded, probe.rows), expected, torch.float32)
        return None if different is None else f"the exported model is not the trained one: {different}"

    export.write(export.gathered_parameters(causal), causal, root / "side", root / "model", check=comes_back)
    function.settle(loading.load(str(root / "model"), dtype=torch.float32), source)
    return str(choice.way), choice.attention


def _compare_gradients(causal: PreTrainedModel, probe: Probe, choice: function.Choice) -> None:
    """See that a step's gradients are those of the model's own forward pass.

    In evaluation mode, as a training may draw by lot: dropout, or which expert is asked (PhiMoE). That it has gradients in its
    own mode too is seen by a step of that.

    Raises:
        UserError: they are not.
    """
    plain: Any = copy.deepcopy(causal)
    function.set_attention(plain, "eager")
    for row in probe.rows:
        logits = plain(input_ids=row.ids[None], **function.uncached(plain)).logits[0].index_select(0, row.predictors)
        torch.nn.functional.cross_entropy(logits.float(), row.labels, reduction="sum").backward()
    module = SummedLoss(causal, causal, choice.way)
    module(probe.batches[choice.way.padding]).backward()
    for (name, ours), theirs in zip(causal.named_parameters(), plain.parameters(), strict=True):
        mine = torch.zeros_like(ours) if ours.grad is None else ours.grad
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        if not torch.allclose(mine, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()) + 1e-6):
            raise UserError(f"the gradient of {name} is not that of its own forward pass", where=type(causal).__name__)
    causal.zero_grad(set_to_none=True)
    module.train()(probe.batches[choice.way.padding]).backward()
    for name, ours in causal.named_parameters():
        if ours.grad is not None and not finite(ours.grad):
            raise UserError(f"the gradient of {name} is not finite in training", where=type(causal).__name__)
    causal.zero_grad(set_to_none=True)
    causal.eval()


def _name_tokens(made: PreTrainedModel, tokenizer: Any) -> None:
    """A tokenizer's roles in a model's configurations. Padding only where the architecture has some by itself: published models
    mostly name none, and it may mean more than a role (a row of the embedding that is zero)."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for config in (made.config, made.generation_config):
        for key, value in ids.items() if config is not None else ():
            if key != "pad_token_id" or getattr(made.config.get_text_config(), key, None) is not None:
                setattr(config, key, value)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
