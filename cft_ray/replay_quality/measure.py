"""Generated replay beside the original answers to the same prompts, row by row and in all.

Two sides: ``generated``, the replay artifact's rows; ``original``, the rows that its prompts come from, each once however
often it was answered. Empty answers count as answers of length 0; what cannot be said of an answer (no words, no letters,
too long for the model) leaves it out of that measure alone, and ``n`` says how many are left.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cft_ray.data.rows import SCHEMA as CANONICAL
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template
from cft_ray.inference.model import LoadedModel
from cft_ray.replay_quality.perplexity import likelihoods
from cft_ray.replay_quality.text import identified, repetition, self_bleu, words

GENERATED, ORIGINAL = "generated", "original"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
REPEATED = (2, 3, 4)
"""lengths of the n-grams whose repetition is counted"""

ROWS = pa.schema(
    [
        ("side", pa.string()),
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("language", pa.string()),
        ("identified", pa.string()),
        ("characters", pa.int64()),
        ("words", pa.int64()),
        ("tokens", pa.int64()),
        *((f"rep_{n}", pa.float64()) for n in REPEATED),
        ("empty", pa.bool_()),
        ("truncated", pa.bool_()),
        ("nats", pa.float64()),
        ("scored_tokens", pa.int64()),
    ]
)
"""One row an answer. ``nats``: sum of −log p under the model over ``scored_tokens`` (0: not scored)."""


@dataclass(frozen=True)
class Quality:
    """What was found: ``rows`` (`ROWS`) and ``measures``, rows of the table `replay` but for the artifact's name."""

    rows: pa.Table
    measures: list[dict[str, Any]]


def measure_quality(
    replay: pa.Table,
    english: pa.Table,
    model: LoadedModel,
    template: Template,
    *,
    max_length: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Look at a replay artifact.

    Args:
        replay: its rows: canonical, with ``prompt_id`` and ``finish_reason``.
        english: canonical rows that the prompts come from.
        model: whose perplexity is taken, and whose tokens are counted: Phase 1's.
        template: how a row becomes text for it.
        max_length: tokens of prompt and answer for the perplexity.
        seed: of the answers that self-BLEU is taken over.
        progress: called with the tokens scored and in all, a side at a time.

    Raises:
        UserError: a prompt that is not among ``english``; predictions that are not finite.
    """
    tables, measures = [], []
    for side, rows, ended in _sides(replay, english):
        texts = rows["output"].to_pylist()
        units = [words(text) for text in texts]
        nats, scored = likelihoods(model, rows.select(CANONICAL.names), ended, template, max_length, progress)
        encoded: Any = model.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        columns = {
            "side": [side] * len(texts),
            "id": rows["id"],
            "prompt_id": rows["prompt_id"],
            "language": rows["language"],
            "identified": [identified(text) for text in texts],
            "characters": [len(text) for text in texts],
            "words": [len(each) for each in units],
            "tokens": [len(ids) for ids in encoded["input_ids"]],
            **{f"rep_{n}": [repetition(each, n) for each in units] for n in REPEATED},
            "empty": [not text.strip() for text in texts],
            "truncated": [not whole for whole in ended],
            "nats": nats,
            "scored_tokens": scored,
        }
        found = pa.table(columns).select(ROWS.names).cast(ROWS)
        tables.append(found)
        languages = rows["language"].to_pylist()
        for language in [None, *dict.fromkeys(languages)]:
            chosen = [place for place, spoken in enumerate(languages) if language in (None, spoken)]
            own, heading = found.take(pa.array(chosen, pa.int64())), {"side": side, "language": language}
            measures += [heading | one for one in _measures(own, [units[place] for place in chosen], seed)]
    return Quality(pa.concat_tables(tables), measures)


def _sides(replay: pa.Table, english: pa.Table) -> Iterable[tuple[str, pa.Table, list[bool]]]:
    """(side, canonical rows with ``prompt_id``, whether each answer ended by itself)."""
    yield GENERATED, replay, [reason == "stop" for reason in replay["finish_reason"].to_pylist()]
    places = {name: place for place, name in enumerate(english["id"].to_pylist())}
    asked = list(dict.fromkeys(replay["prompt_id"].to_pylist()))
    if unknown := [name for name in asked if name not in places]:
        raise UserError(
            f"{len(unknown)} replayed prompts are not among the rows given, e.g. {unknown[0]!r}",
            where="replay_quality",
            fix="give the data set that the prompts were taken from as `english`",
        )
    originals = english.take(pa.array([places[name] for name in asked], pa.int64()))
    yield ORIGINAL, originals.append_column("prompt_id", originals["id"]), [True] * len(asked)


def _measures(rows: pa.Table, units: list[list[str]], seed: int) -> Iterable[dict[str, Any]]:
    """Measure, value and n of one side and language; without those that nothing can be said of."""
    side = rows["side"][0].as_py() if rows.num_rows else GENERATED
    for unit in ("characters", "words", "tokens"):
        lengths = rows[unit].to_numpy()
        yield from _mean(f"{unit}_mean", lengths)
        if len(lengths):
            for share, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True):
                yield _row(f"{unit}_q{round(100 * share):02d}", value, len(lengths))
    yield from _mean("empty", rows["empty"].to_pylist())
    if side == GENERATED:  # an original answer has no limit that it could have met
        yield from _mean("truncated", rows["truncated"].to_pylist())
    named = [
        found == language
        for found, language in zip(rows["identified"].to_pylist(), rows["language"].to_pylist(), strict=True)
        if found
    ]
    yield from _mean("language_expected", named)
    for n in REPEATED:
        yield from _mean(f"rep_{n}", [value for value in rows[f"rep_{n}"].to_pylist() if value is not None])
    alike, count = self_bleu(units, seed)
    if alike is not None:
        yield _row("self_bleu", alike, count)
    if tokens := int(rows["scored_tokens"].to_numpy().sum()):
        yield _row("perplexity", np.exp(rows["nats"].to_numpy().sum() / tokens), tokens)


def _mean(measure: str, values: Any) -> Iterable[dict[str, Any]]:
    if len(values):
        yield _row(measure, np.mean(values), len(values))


def _row(measure: str, value: Any, n: int) -> dict[str, Any]:
    return {"measure": measure, "value": float(value), "n": n}
