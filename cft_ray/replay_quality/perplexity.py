"""How likely a model finds answers: sums of −log p over their tokens, prompts given, laid out as training lays them out.

The head is applied to the positions that predict an answer, a block at a time, so memory does not grow with the vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch

from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.inference.batches import by_length, padded
from cft_ray.inference.model import LoadedModel
from cft_ray.models.finite import not_finite
from cft_ray.plan.memory import LOGITS_AT_ONCE
from cft_ray.training.examples import Examples, encode

BATCH_TOKENS = 8192
"""most tokens in one forward pass"""
_ANY = 10**9


def likelihoods(
    model: LoadedModel,
    rows: pa.Table,
    ended: Sequence[bool],
    template: Template,
    max_length: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row's answer, how unlikely it is and how many tokens that is over.

    Args:
        model: on its device.
        rows: canonical rows.
        ended: whether the answer came to its end by itself: then the end-of-sequence token is one of its tokens.
        template: how a row becomes text.
        max_length: tokens of prompt and answer; a longer row has no tokens here.
        progress: called with the tokens done and in all.

    Returns:
        [rows] float64 sums of −log p, in nats; [rows] int64 tokens, 0 where nothing could be said.

    Raises:
        UserError: predictions that are not finite; a tokenizer that cannot be used.
    """
    nats, tokens = np.zeros(rows.num_rows), np.zeros(rows.num_rows, dtype=np.int64)
    model.check_head()
    limit = model.limit(max_length)
    if not rows.num_rows:
        return nats, tokens
    if not any(whole or text for whole, text in zip(ended, rows["output"].to_pylist(), strict=True)):
        return nats, tokens
    reasons = pa.array(["stop" if each else "length" for each in ended], pa.string())
    rows = rows.append_column("finish_reason", reasons)
    # Encoded whole; long rows are left out below.
    settings = TrainingSettings(max_length=_ANY)
    examples = encode(rows, template, model.tokenizer, settings, where=model.folder, unanswered=True)
    lengths = examples.lengths
    usable = [row for row in range(len(examples)) if lengths[row] <= limit]
    total, done = int(lengths[usable].sum()), 0
    for batch in by_length([int(lengths[row]) for row in usable], BATCH_TOKENS):
        chosen = [usable[place] for place in batch]
        places = examples.places[chosen]
        nats[places] = _batch(model, examples, chosen)
        tokens[places] = examples.targets[chosen]
        done += int(lengths[chosen].sum())
        progress(done, total)
    return nats, tokens


@torch.inference_mode()
def _batch(model: LoadedModel, examples: Examples, chosen: list[int]) -> np.ndarray:
    """[rows] sums over the answers' tokens."""
    ids = [examples.ids(row) for row in chosen]
    answers = [np.flatnonzero(examples.mask(row)) for row in chosen]
    hidden = model.decoder(input_ids=padded(ids, model.pad_id).to(model.device), use_cache=False).last_hidden_state
    states = torch.cat([hidden[place, torch.from_numpy(answer - 1).to(model.device)] for place, answer in enumerate(answers)])
    labels = torch.from_numpy(
        np.concatenate([row[answer] for row, answer in zip(ids, answers, strict=True)]).astype(np.int64)
    ).to(model.device)
    found = torch.empty(len(labels), dtype=torch.float64)
    step = max(1, LOGITS_AT_ONCE // model.head.weight.shape[0])
    for start in range(0, len(labels), step):
        block = slice(start, start + step)
        found[block] = (
            torch.nn.functional.cross_entropy(model.scores(states[block]), labels[block], reduction="none").double().cpu()
        )
    if not bool(torch.isfinite(found).all()):
        raise not_finite(model.folder)
    by_row = found.split([len(answer) for answer in answers])
    return np.array([float(part.sum()) for part in by_row])
