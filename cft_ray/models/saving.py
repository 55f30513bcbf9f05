"""It can be saved: configuration, generation configuration and tokenizer are written once before a training.

What transformers refuses to write (``do_sample: false`` beside a temperature, as Llama 2 chat has it) is known then and
mended, and no training is lost to a side file.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cft_ray.errors import UserError


def save_side_files(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, ends: Sequence[int] = (), card: str = ""
) -> tuple[str, ...]:
    """Write everything of a finished model but its weights.

    Args:
        model: gives configuration and generation configuration, which may be mended here.
        tokenizer: as the finished model is to have it, chat template included.
        folder: is emptied first.
        ends: ids that end an answer, named by both configurations; none: they stay as they are.
        card: text of ``README.md``.

    Returns:
        What was mended, in words.

    Raises:
        UserError: something cannot be written, so that a training would be lost at its end.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        model.config.architectures = [type(model).__name__]
        if ends:
            _set_ends(model, list(ends))
        model.config.save_pretrained(folder)
        notes = _save_generation(model, folder)
        tokenizer.save_pretrained(folder)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the trained model could not be saved: {first[0]}",
            where=str(getattr(model.config, "name_or_path", "") or type(model).__name__),
            fix="mend config.json or the tokenizer's files of the model that the training starts from",
        ) from error
    return notes


def _set_ends(model: PreTrainedModel, ends: list[int]) -> None:
    """One id is written as a number: not every program reads lists."""
    named = ends[0] if len(ends) == 1 else ends
    text = model.config.get_text_config()
    for config in {id(config): config for config in (model.config, text)}.values():
        if config is text or getattr(config, "eos_token_id", None) is not None:
            config.eos_token_id = named
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.generation_config.eos_token_id = named


def _save_generation(model: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    try:
        model.generation_config.save_pretrained(folder)
        return ()
    except ValueError as error:
        reason = str(error)
    said = {name: value for name, value in model.generation_config.to_diff_dict().items() if name != "transformers_version"}
    for note, changes in (
        ("do_sample is set to true, as its sampling settings ask", {**said, "do_sample": True}),
        ("only its token ids are kept", {name: said[name] for name in said if name.endswith("_token_id")}),
    ):
        try:
            mended = GenerationConfig(**changes)
            mended.save_pretrained(folder)
        except ValueError:
            continue
        model.generation_config = mended
        return (f"generation_config.json is not valid: {note}",)
    raise ValueError(reason)
