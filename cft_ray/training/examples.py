"""Canonical rows to token ids, kept flat in memory-mapped arrays that all ranks of a machine share.

How a row becomes tokens is in `cft_ray.data.encoding`; here it is decided which rows are kept, and what is counted of them.
The loss is taken on every answer of a row, end token included; a column ``finish_reason`` other than ``stop`` says that the
row's answer was cut, and then it has no end token.
"""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import file_digest
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cft_ray.data.accounts import RowAccount
from cft_ray.data.encoding import Encoder
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.plan.specs import FinetuneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENCODES = ("tokenizers", "transformers")
ROWS_AT_ONCE = 256
"""rows; with more, what is made of them lives long enough for the garbage collector to look through the whole process"""
_ARRAYS, _KEY = ("tokens", "offsets", "taught", "places"), "key"


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
    """rows left out because their answer lies beyond ``max_length``"""
    no_output: int = 0
    """rows left out because they have no answer; a generated one may be empty"""
    refused: int = 0
    """rows left out because the chat template changes what they spell like control tokens"""
    cut: int = 0
    """rows used whose answer was cut when it was generated: no end token is taught"""
    special_in_text: int = 0
    """rows used whose text spells a control token; it is encoded as characters"""
    seam: int = 0
    """rows used whose text encoded as one would have a token across a seam of question and answer"""
    untaught: int = 0
    """rows used with an earlier answer that is not taught, as the template asks for it in other words"""

    def account(self, settings: TrainingSettings) -> RowAccount:
        """The same as every stage says it; `TrainingSettings.long_rows` tells whether long rows were left out or cut."""
        cut = settings.long_rows == "truncate"
        left_out = {
            "no_output": self.no_output,
            "without_target": self.without_target,
            "template_changes_spelling": self.refused,
        } | ({} if cut else {"too_long": self.too_long})
        noted = {
            "answer_cut": self.cut,
            "special_in_text": self.special_in_text,
            "seam": self.seam,
            "earlier_untaught": self.untaught,
        } | ({"truncated": self.too_long} if cut else {})
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
        taught: [all tokens] bool, which are targets; never a row's first, which nothing predicts.
        places: [rows] int64, which row of the given table each is; rows that were left out are missing.
        counts: see `RowCounts`.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    taught: np.ndarray
    places: np.ndarray
    counts: RowCounts

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[rows] tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> np.ndarray:
        """[rows] target tokens of each row."""
        return np.add.reduceat(self.taught, self.offsets[:-1], dtype=np.int64)

    @cached_property
    def prompts(self) -> np.ndarray:
        """[rows] tokens before a row's first target."""
        return np.array([int(np.argmax(self.mask(row))) for row in range(len(self))], dtype=np.int64)

    def mask(self, row: int) -> np.ndarray:
        """[tokens] bool, which tokens of a row are targets."""
        return self.taught[self.offsets[row] : self.offsets[row + 1]]

    def ids(self, row: int) -> np.ndarray:
        """Token ids of a row."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def save(self, folder: Path, key: str = "") -> None:
        """Write to a folder, in the place of what is there; `load` maps it, and `kept` knows it by its key."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "counts.json").write_text(json.dumps(asdict(self.counts)))
        (folder / _KEY).write_text(key)  # last: with it, all is there

    @classmethod
    def kept(cls, folder: Path, key: str) -> "Examples | None":
        """What was saved under a key; None: nothing was, or not to its end."""
        try:
            return cls.load(folder) if (folder / _KEY).read_text() == key else None
        except FileNotFoundError:
            return None

    @classmethod
    def load(cls, folder: Path) -> "Examples":
        """Map what `save` wrote; costs no memory that other processes do not share."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(**arrays, counts=RowCounts(**json.loads((folder / "counts.json").read_text())))


def encoding_key(
    rows: Path, template: Template, tokenizer: "PreTrainedTokenizerBase", settings: TrainingSettings, positions: int | None
) -> str:
    """A digest of all that `encode` depends on: the rows' file, the tokenizer, the settings, and the code's versions."""
    with rows.open("rb") as opened:
        digest = file_digest(opened, "sha256")
    said = [template.model_dump(mode="json"), settings.model_dump(mode="json"), positions, tokenizer.chat_template]
    used = [FinetuneSpec.version, *(metadata.version(name) for name in _ENCODES)]
    digest.update(json.dumps([*said, *used, sorted(map(repr, tokenizer.special_tokens_map.items()))]).encode())
    backend: Any = tokenizer.backend_tokenizer
    digest.update(backend.to_str().encode())
    return digest.hexdigest()


def encode(
    rows: pa.Table,
    template: Template,
    tokenizer: "PreTrainedTokenizerBase",
    settings: TrainingSettings,
    *,
    where: str,
    positions: int | None = None,
    unanswered: bool = False,
) -> Examples:
    """Encode canonical rows.

    Args:
        rows: canonical rows.
        template: how a row becomes text.
        tokenizer: a fast tokenizer with an end-of-sequence token.
        settings: ``max_length``, ``long_rows``, ``train_on_prompt`` are obeyed.
        where: the rows' source, for messages.
        positions: of the model, which bound ``max_length`` where it is not given; None: not known.
        unanswered: rows without an answer are kept; their end is what is answered.

    Raises:
        UserError: no row is left; a row is too long and ``long_rows`` is "refuse"; the tokenizer lacks what is needed.
    """
    encoder = Encoder(tokenizer, template)
    longest = settings.longest(positions)
    tokens: list[np.ndarray] = []
    taught: list[np.ndarray] = []
    lengths: list[int] = []
    places: list[int] = []
    tally: Counter[str] = Counter()
    begin = 0
    for batch in rows.to_batches(max_chunksize=ROWS_AT_ONCE):
        given = batch.to_pylist()
        answered = [index for index, row in enumerate(given) if unanswered or row["output"].strip()]
        tally["no_output"] += len(given) - len(answered)
        whole = [given[index].get("finish_reason") in (None, "", "stop") for index in answered]
        found = encoder.rows([given[index] for index in answered], whole)
        kept: list[int] = []
        targets: list[tuple[int, int]] = []
        for index, row, ended in zip(answered, found, whole, strict=True):
            if row.refused is not None:
                tally["refused"] += 1
                continue
            ids = row.ids
            answers = [(0, len(ids))] if settings.train_on_prompt else row.answers
            if len(ids) > longest:
                tally["too_long"] += 1
                if settings.long_rows == "drop":
                    continue
                ids = ids[:longest]
            # Nothing predicts a row's first token.
            spans = [(max(first, 1), min(stop, len(ids))) for first, stop in answers]
            if row.prompt >= len(ids) or all(first >= stop for first, stop in spans):
                tally["without_target"] += 1
                continue
            tally["cut"] += not ended
            tally["special_in_text"] += row.spelled
            tally["seam"] += row.seam
            tally["untaught"] += row.untaught > 0
            targets += [(len(kept) + first, len(kept) + stop) for first, stop in spans]
            kept += ids
            lengths.append(len(ids))
            places.append(begin + index)
        tokens.append(np.array(kept, dtype=np.int32))
        taught.append(np.zeros(len(kept), dtype=bool))
        for first, stop in targets:
            taught[-1][first:stop] = True
        begin += len(given)
    too_long = tally["too_long"]
    if too_long and settings.long_rows == "refuse":
        raise UserError(
            f"{too_long} of {rows.num_rows} rows are longer than {longest} tokens",
            where=f"{where}: training.max_length",
            fix="raise max_length, or set long_rows to drop or truncate",
        )
    if not places:
        raise UserError(
            f"none of {rows.num_rows} rows can be used ({too_long} too long, "
            f"{tally['no_output'] + tally['without_target']} without an answer)",
            where=where,
            fix="raise max_length or give other rows",
        )
    return Examples(
        tokens=np.concatenate(tokens),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        taught=np.concatenate(taught),
        places=np.asarray(places, dtype=np.int64),
        counts=RowCounts(rows=rows.num_rows, used=len(places), **{"too_long": 0, "without_target": 0, **tally}),
    )
