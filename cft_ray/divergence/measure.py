"""KL(left‖right) per token on rows: where the models predict the prompt, and where they predict the answer.

Both models are on the device at once (two of 7B parameters in bfloat16 are 28 GB) and read the same batch one after the
other; what is kept of a batch are its last hidden states. The tokens are laid out as training lays them out. A token
belongs to the answer where training would take the loss on it; nothing predicts a row's first token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cft_ray.data.accounts import RowAccount
from cft_ray.divergence.kl import divergences
from cft_ray.errors import UserError
from cft_ray.grid.settings import DivergenceSettings, Template, TrainingSettings
from cft_ray.inference.batches import by_length, padded, taken
from cft_ray.inference.model import LoadedModel, load
from cft_ray.models.finite import not_finite
from cft_ray.strategies.selection import select
from cft_ray.training.examples import Examples, encode

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("answer_tokens", pa.int64()),
        ("prompt_nats", pa.float64()),
        ("answer_nats", pa.float64()),
    ]
)
_PARTS = {"kl_prompt": ("prompt",), "kl_answer": ("answer",), "kl_all": ("prompt", "answer")}


@dataclass(frozen=True)
class Divergence:
    """Of two models.

    Args:
        rows: per row used: ``id``, ``language``, the tokens of prompt and answer, and the sums of KL over them in nats.
        drawn: rows drawn from the data set.
        too_long: rows of these that were left out because of their length.
        account: of all rows of the data set.
    """

    rows: pa.Table
    drawn: int
    too_long: int
    account: RowAccount

    def similarity(self, left: str, right: str) -> list[dict[str, Any]]:
        """Rows of the table `similarity`: ``kl_prompt``, ``kl_answer``, ``kl_all``, of all rows and of each language's.

        Each is a mean over tokens, in nats.

        Args:
            left: what the left model is called in the table.
            right: the right one.
        """
        languages = np.asarray(self.rows["language"].to_pylist())
        everything: list[str | None] = [None, *dict.fromkeys(languages.tolist())]
        return [
            {"measure": measure, "left": left, "right": right, "language": language, "value": value}
            for language in everything
            for measure, value in self._means(
                np.ones(len(languages), bool) if language is None else languages == language
            ).items()
        ]

    @property
    def summary(self) -> dict[str, Any]:
        """``rows``, ``too_long``, ``tokens`` and the means over all rows."""
        everything = np.ones(self.rows.num_rows, bool)
        return {
            "rows": self.rows.num_rows,
            "too_long": self.too_long,
            "tokens": sum(int(np.sum(self.rows[f"{part}_tokens"].to_numpy())) for part in ("prompt", "answer")),
            **self._means(everything),
        }

    def _means(self, chosen: np.ndarray) -> dict[str, float]:
        """Measure -> mean over the tokens; without those that have no tokens."""
        means = {}
        for measure, parts in _PARTS.items():
            tokens, nats = (
                sum(float(np.sum(self.rows[f"{part}_{unit}"].to_numpy()[chosen])) for part in parts)
                for unit in ("tokens", "nats")
            )
            if tokens:
                means[measure] = nats / tokens
        return means


def measure_divergence(
    left_folder: str,
    right_folder: str,
    rows: pa.Table,
    template: Template,
    settings: DivergenceSettings,
    *,
    where: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Divergence:
    """Compare two models of one vocabulary on rows.

    Args:
        left_folder: local Hugging Face folder.
        right_folder: the same for the other model.
        rows: canonical rows.
        template: how a row becomes text.
        settings: sample, length, dtype and batches.
        where: the rows' source, for messages.
        progress: called with the tokens done and in all.

    Raises:
        UserError: models that cannot be loaded or compared, no row that fits, numbers that are not finite.
    """
    left, right = (load(folder, settings.dtype) for folder in (left_folder, right_folder))
    return compare(left, right, rows, template, settings, where=where, progress=progress)


def compare(
    left: LoadedModel,
    right: LoadedModel,
    rows: pa.Table,
    template: Template,
    settings: DivergenceSettings,
    *,
    where: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Divergence:
    """As `measure_divergence`, of models that are loaded."""
    _check(left, right)
    available = rows.num_rows
    if settings.sample is not None:
        chosen, _ = select(rows.num_rows, min(settings.sample, rows.num_rows), settings.seed)
        rows = rows.take(pa.array(np.sort(chosen)))
    limit = min(left.limit(settings.max_length), right.limit(settings.max_length))
    examples = encode(rows, template, left.tokenizer, TrainingSettings(max_length=limit), where=where, unanswered=True)
    total, done = int(examples.lengths.sum()), 0
    nats = np.zeros((len(examples), 2))
    for batch in by_length(examples.lengths.tolist(), settings.batch_tokens):
        nats[batch] = _batch(left, right, examples, batch)
        done += int(examples.lengths[batch].sum())
        progress(done, total)
    names = rows.select(["id", "language"]).take(pa.array(examples.places))
    tokens = [examples.lengths - 1 - examples.targets, examples.targets]
    columns = [*names.columns, *(pa.array(column) for column in (*tokens, nats[:, 0], nats[:, 1]))]
    drawn = examples.counts.account(TrainingSettings(max_length=limit))
    aside = {"not_in_sample": available - rows.num_rows} if available > rows.num_rows else {}
    account = drawn.model_copy(update={"came": available, "set_aside": aside})
    return Divergence(pa.Table.from_arrays(columns, schema=_SCHEMA), rows.num_rows, examples.counts.too_long, account)


@torch.inference_mode()
def _batch(left: LoadedModel, right: LoadedModel, examples: Examples, batch: list[int]) -> np.ndarray:
    """[rows, 2] sums over the tokens of prompt and answer."""
    ids = [examples.ids(row) for row in batch]
    input_ids = padded(ids, left.pad_id).to(left.device)
    predicting = taken([row[1:] for row in ids], input_ids.shape[1]).flatten().nonzero()[:, 0].to(left.device)
    hidden = [
        model.decoder(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1).index_select(0, predicting)
        for model in (left, right)
    ]
    found = divergences(hidden[0], hidden[1], (left.scores, right.scores), left.head.weight.shape[0]).cpu()
    if not bool(torch.isfinite(found).all()):
        for model, states in zip((left, right), hidden, strict=True):
            if not all(bool(torch.isfinite(numbers).all()) for numbers in (states, model.head.weight)):
                raise not_finite(model.folder)
        raise UserError("the divergence is not finite", where=f"{left.folder} and {right.folder}", fix="use dtype: float32")
    by_row = found.split([len(row) - 1 for row in ids])
    answers = [torch.from_numpy(np.array(examples.mask(row)[1:])) for row in batch]
    return np.array([[each[~answer].sum(), each[answer].sum()] for each, answer in zip(by_row, answers, strict=True)])


def _check(left: LoadedModel, right: LoadedModel) -> None:
    both = f"{left.folder} and {right.folder}"
    sizes = [model.head.weight.shape[0] for model in (left, right)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the vocabularies have {sizes[0]} and {sizes[1]} tokens: their distributions cannot be compared",
            where=both,
            fix="compare models tuned from one base without new tokens",
        )
    if left.tokenizer.get_vocab() != right.tokenizer.get_vocab():
        raise UserError(
            "the tokenizers give the same numbers to other tokens", where=both, fix="compare models tuned from one base"
        )
    for model in (left, right):
        model.check_head()
