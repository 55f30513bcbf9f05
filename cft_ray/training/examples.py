"""Canonical rows to token ids, kept flat in memory-mapped arrays that all ranks of a machine share.

The whole text is encoded at once, as a model will meet it, and a token belongs to the answer if it holds any of the
answer's characters. The beginning-of-sequence token stands once where the tokenizer puts one, the end-of-sequence token
is appended and is a target.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cft_ray.data.accounts import RowAccount
from cft_ray.data.templates import render
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template, TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 1024
_ARRAYS = ("tokens", "offsets", "prompts", "places")


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows."""

    rows: int
    """rows given"""
    used: int
    """rows trained on"""
    too_long: int
    """rows over ``max_length``: dropped or truncated, as the settings say"""
    without_target: int
    """rows left out because no token of theirs takes part in the loss"""

    def account(self, settings: TrainingSettings) -> RowAccount:
        """The same as every stage says it; `TrainingSettings.long_rows` tells whether long rows were left out or cut."""
        cut = settings.long_rows == "truncate"
        left_out = {"without_target": self.without_target} | ({} if cut else {"too_long": self.too_long})
        noted = {"truncated": self.too_long} if cut else {}
        return RowAccount(
            came=self.rows,
            used=self.used,
            left_out={reason: count for reason, count in left_out.items() if count},
            noted={reason: count for reason, count in noted.items() if count},
        )


@dataclass(frozen=True)
class Examples:
    """Encoded rows.

    Args:
        tokens: [all tokens] int32, rows end to end.
        offsets: [rows + 1] int64, where each row starts in ``tokens``.
        prompts: [rows] int32, tokens at a row's start that are no targets (at least 1: nothing predicts the first).
        places: [rows] int64, which row of the given table each is; rows that were left out are missing.
        counts: see `RowCounts`.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    prompts: np.ndarray
    places: np.ndarray
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """[rows] target tokens of each row."""
        return self.lengths - self.prompts

    def ids(self, row: int) -> np.ndarray:
        """Token ids of a row."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def save(self, folder: Path) -> None:
        """Write to a folder; `load` maps it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "counts.json").write_text(json.dumps(asdict(self.counts)))

    @classmethod
    def load(cls, folder: Path) -> "Examples":
        """Map what `save` wrote; costs no memory that other processes do not share."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(**arrays, counts=RowCounts(**json.loads((folder / "counts.json").read_text())))


def encode(
    rows: pa.Table, template: Template, tokenizer: "PreTrainedTokenizerBase", settings: TrainingSettings, *, where: str
) -> Examples:
    """Encode canonical rows.

    Args:
        rows: canonical rows.
        template: how a row becomes text.
        tokenizer: a fast tokenizer with an end-of-sequence token.
        settings: ``max_length``, ``long_rows``, ``train_on_prompt`` are obeyed.
        where: the rows' source, for messages.

    Raises:
        UserError: no row is left; a row is too long and ``long_rows`` is "refuse"; the tokenizer lacks what is needed.
    """
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer is not a fast one with an end-of-sequence token", where=where, fix="use a model that has one"
        )
    starts_itself = bool(leading := tokenizer("").input_ids) and leading[0] == tokenizer.bos_token_id
    kept: list[np.ndarray] = []
    prompts: list[int] = []
    places: list[int] = []
    begin = 0
    too_long = without_target = 0
    for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
        texts = [render(template, row, tokenizer) for row in batch.to_pylist()]
        encoded = tokenizer([prompt + answer for prompt, answer in texts], add_special_tokens=False, return_attention_mask=False)
        for index, (prompt, answer) in enumerate(texts):
            ids = encoded.input_ids[index]
            first = _first_token(encoded, index, len(prompt), len(prompt) + len(answer), len(ids))
            if starts_itself and ids[:1] != [tokenizer.bos_token_id]:
                ids, first = [tokenizer.bos_token_id, *ids], first + 1
            ids = [*ids, tokenizer.eos_token_id]
            if len(ids) > settings.max_length:
                too_long += 1
                if settings.long_rows == "drop":
                    continue
                ids = ids[: settings.max_length]
            first = 1 if settings.train_on_prompt else max(first, 1)
            if first >= len(ids):
                without_target += 1
                continue
            kept.append(np.asarray(ids, dtype=np.int32))
            prompts.append(first)
            places.append(begin + index)
        begin += len(texts)
    if too_long and settings.long_rows == "refuse":
        raise UserError(
            f"{too_long} of {rows.num_rows} rows are longer than {settings.max_length} tokens",
            where=f"{where}: training.max_length",
            fix="raise max_length, or set long_rows to drop or truncate",
        )
    if not kept:
        raise UserError(
            f"none of {rows.num_rows} rows can be used ({too_long} too long, {without_target} without an answer)",
            where=where,
            fix="raise max_length or give other rows",
        )
    return Examples(
        tokens=np.concatenate(kept),
        offsets=np.cumsum([0, *(len(ids) for ids in kept)], dtype=np.int64),
        prompts=np.asarray(prompts, dtype=np.int32),
        places=np.asarray(places, dtype=np.int64),
        counts=RowCounts(rows=rows.num_rows, used=len(kept), too_long=too_long, without_target=without_target),
    )


def _first_token(encoded, index: int, begin: int, end: int, count: int) -> int:  # noqa: ANN001 - BatchEncoding
    """The first token that holds a character of ``text[begin:end]``; ``count`` (the token after the last) if none does."""
    for position in range(begin, end):  # some tokenizers give no token to a space: then the next character decides
        token = encoded.char_to_token(index, position)
        if token is not None:
            return token
    return count
