"""Which texts a model reads when its activations are taken."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from cft_ray.data.accounts import RowAccount
from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import dictionaries
from cft_ray.errors import UserError
from cft_ray.grid.settings import ActivationSettings, Template
from cft_ray.strategies.selection import select


@dataclass(frozen=True)
class Prompts:
    """Token ids, in the data set's order.

    Args:
        ids: [prompts] row ids.
        languages: [prompts] ISO 639-1 codes.
        tokens: [prompts] token ids, cut at the limit.
        truncated: [prompts] whether it was cut.
        available: rows of the data set that they were drawn from.
    """

    ids: list[str]
    languages: list[str]
    tokens: list[list[int]]
    truncated: list[bool]
    available: int

    @property
    def account(self) -> RowAccount:
        """Of all rows of the data set."""
        aside, cut = self.available - len(self), sum(self.truncated)
        return RowAccount(
            came=self.available,
            used=len(self),
            set_aside={"not_in_sample": aside} if aside else {},
            noted={"truncated": cut} if cut else {},
        )

    def __len__(self) -> int:
        return len(self.ids)


def sample(rows: pa.Table, settings: ActivationSettings) -> pa.Table:
    """At most ``settings.sample`` rows of each language, in the order of the rows.

    The draw depends on the seed and on how many rows a language has: parallel data sets give the same sentences.
    """
    if settings.sample is None:
        return rows
    languages = np.asarray(rows["language"].to_pylist())
    kept = []
    for language in dict.fromkeys(languages.tolist()):
        places = np.flatnonzero(languages == language)
        kept.append(places[select(len(places), min(settings.sample, len(places)), settings.seed)[0]])
    return rows.take(pa.array(np.sort(np.concatenate(kept))))


def read_prompts(
    rows: pa.Table,
    template: Template | None,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    *,
    where: str,
    available: int | None = None,
) -> Prompts:
    """Encode the prompts of canonical rows, as generation does; answers are not looked at.

    Args:
        rows: canonical rows.
        template: how a prompt is wrapped; None: system, instruction and input as they are, blank lines between.
        tokenizer: of the model.
        limit: tokens; what is beyond is cut off and counted.
        where: the rows' source, for messages.
        available: rows that these were drawn from; none: these.

    Raises:
        UserError: a row without a prompt.
    """
    given = dictionaries(rows)
    for row in given:
        if not (row["instruction"] or row["input"]):
            raise UserError(
                f"row {row['id']} has no prompt", where=where, fix="map the data set's column of prompts to `instruction`"
            )
    encoder = Encoder(tokenizer, template)
    if template:
        tokens = encoder.prompts(given)
    else:
        parts = [(row["system"], row["instruction"], row["input"]) for row in given]
        tokens = encoder.texts(["\n\n".join(part for part in plain if part) for plain in parts])
    if empty := [place for place, ids in enumerate(tokens) if not ids]:
        raise UserError(f"row {rows['id'][empty[0]]} has no tokens", where=where, fix="give prompts with text")
    return Prompts(
        ids=rows["id"].to_pylist(),
        languages=rows["language"].to_pylist(),
        tokens=[ids[:limit] for ids in tokens],
        truncated=[len(ids) > limit for ids in tokens],
        available=rows.num_rows if available is None else available,
    )
