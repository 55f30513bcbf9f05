"""Stage `replay`: answers of the Phase 1 model to prompts of the English counterpart, in a fixed order.

Row i of the artifact answers prompt i of the selection, so a smaller ratio's rows are a prefix. Each answer has a random
seed of its own, made of the stage's seed, the prompt's row and the pass over the prompts. Finished answers are put into
``scratch`` as they come, a part at a time; a generation that is killed goes on with the prompts that no part answers.

One worker is an engine in a process, the one that evaluation uses too (`cft_ray.generation.single`); several are engines that
Ray Data feeds (`cft_ray.generation.batches`).
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cft_ray.data.accounts import KEY, RowAccount
from cft_ray.data.encoding import Encoder
from cft_ray.data.rows import FILE, SCHEMA, dictionaries, read_rows, write_rows
from cft_ray.errors import UserError
from cft_ray.generation import batches, single
from cft_ray.generation.budget import room
from cft_ray.generation.requests import Answer, Prompt
from cft_ray.generation.settings import end_tokens
from cft_ray.models.config import positions, read_config
from cft_ray.models.limits import within
from cft_ray.plan.specs import ReplaySpec
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext
from cft_ray.strategies.selection import replay_count, select

REPLAY_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("pass", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)
"""Canonical columns; the id of the prompt's row; which pass over the prompts; ``stop``, ``length`` or ``no_room``."""
PART_ROWS = 512
PART_SECONDS = 30.0
"""A part is written after so many answers or seconds, whichever comes first."""
SENT_SECONDS = 0.5
"""The engine's process sends answers this often."""


def run(context: StageContext) -> dict[str, Any]:
    """Generate and write ``rows.parquet``.

    Returns:
        ``rows``; ``tokens`` generated; ``empty`` answers; answers ``truncated`` at the limit (prompts that leave no room
        for an answer among them).

    Raises:
        UserError: the prompts or the model cannot be read.
    """
    spec = cast(ReplaySpec, context.stage.spec)
    model = context.model("model")
    source = read_rows(context.input("prompts"))
    count = replay_count(spec.ratio, int(context.summary("target")["rows"]))
    rows, passes = select(source.num_rows, count, spec.seed)
    chosen = source.take(pa.array(rows))
    prompts, ends = _prompts(spec, model, dictionaries(chosen), rows.tolist(), passes.tolist())

    parts = context.scratch / "answers"
    parts.mkdir(exist_ok=True)
    found = _read_parts(parts)
    asked = []
    for item in prompts:
        if item.new_tokens < 1:
            found[item.index] = Answer(item.index, "", 0, "no_room")
        elif item.index not in found:
            asked.append(item)
    if asked:
        _generate(context, model, spec, asked, ends, found, parts)
    return _write(context, spec, chosen, passes.tolist(), [found[index] for index in range(count)])


def answer_seed(seed: int, row: int, number: int) -> int:
    """Seed of one answer's random numbers, in [0, 2^63): a hash of stage seed, prompt row and pass."""
    return int.from_bytes(sha256(f"{seed}/{row}/{number}".encode()).digest()[:8], "big") >> 1


def _prompts(
    spec: ReplaySpec, model: str, chosen: Sequence[dict[str, str]], rows: Sequence[int], passes: Sequence[int]
) -> tuple[list[Prompt], tuple[int, ...]]:
    """What is asked, and the ids at which an answer ends."""
    from transformers import AutoTokenizer

    length = within(positions(read_config(model)), spec.sampling.max_length)
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = Encoder(tokenizer, spec.template)
    tokens = encoder.prompts(chosen)
    if any(not ids for ids in tokens):
        raise UserError("a prompt is empty", where="replay", fix="use prompts with an instruction")
    asked = [
        Prompt(index, ids, answer_seed(spec.seed, row, number), room(len(ids), spec.sampling.max_new_tokens, length))
        for index, (ids, row, number) in enumerate(zip(tokens, rows, passes, strict=True))
    ]
    return asked, end_tokens(model, encoder.ends)


def _generate(
    context: StageContext,
    model: str,
    spec: ReplaySpec,
    asked: list[Prompt],
    ends: tuple[int, ...],
    found: dict[int, Answer],
    parts: Path,
) -> None:
    total = len(found) + len(asked)
    context.progress(done=len(found), total=total, unit="answers", note="the engine starts")
    fresh: list[Answer] = []
    tokens, started, written, told = 0, None, time.monotonic(), 0.0
    for some in _answers(context, model, spec, asked, ends):
        now = time.monotonic()
        started = started or now
        found |= {answer.index: answer for answer in some}
        fresh += some
        tokens += sum(answer.tokens for answer in some)
        if len(fresh) >= PART_ROWS or now - written > PART_SECONDS:
            _write_part(parts, fresh)
            fresh, written = [], now
        if now - told > 1.0 and now > started:
            context.progress(done=len(found), total=total, unit="answers", tokens_per_second=tokens / (now - started), note="")
            told = now
    _write_part(parts, fresh)
    context.progress(done=len(found), total=total, unit="answers", note="")


def _answers(
    context: StageContext, model: str, spec: ReplaySpec, asked: list[Prompt], ends: tuple[int, ...]
) -> Iterator[list[Answer]]:
    needs = context.stage.resources
    if needs.workers == 1:
        yield from remote.stream(partial(_ask, asked, ends), context, engine=True)
    else:
        for answer in batches.answers(model, asked, spec.sampling, spec.engine, ends, needs):
            yield [answer]


def _ask(asked: list[Prompt], ends: tuple[int, ...], context: StageContext) -> Iterator[list[Answer]]:
    """In the worker: answers, some at a time."""
    spec = cast(ReplaySpec, context.stage.spec)
    fresh: list[Answer] = []
    since = time.monotonic()
    gpus = context.stage.resources.gpus
    for some in single.answers(context.model("model"), asked, spec.sampling, spec.engine, ends, gpus):
        fresh += some
        if time.monotonic() - since > SENT_SECONDS:
            yield fresh
            fresh, since = [], time.monotonic()
    if fresh:
        yield fresh


def _write_part(parts: Path, fresh: list[Answer]) -> None:
    if not fresh:
        return
    path = parts / f"{fresh[0].index:012d}-{len(fresh)}.parquet"
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.Table.from_pylist([asdict(answer) for answer in fresh]), unfinished)
    unfinished.rename(path)


def _read_parts(parts: Path) -> dict[int, Answer]:
    found = {}
    for path in sorted(parts.glob("[0-9]*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["index"]] = Answer(**row)
    return found


def _write(context: StageContext, spec: ReplaySpec, chosen: pa.Table, passes: list[int], found: list[Answer]) -> dict[str, Any]:
    # Chat templates bring the white space around an answer themselves.
    texts = [answer.text.strip() if spec.template.name == "chat" else answer.text for answer in found]
    prompt_ids = chosen["id"].to_pylist()
    columns = {
        **{name: chosen[name] for name in SCHEMA.names},
        "id": [f"replay/{name}/{number}" for name, number in zip(prompt_ids, passes, strict=True)],
        "output": texts,
        "prompt_id": prompt_ids,
        "pass": passes,
        "finish_reason": [answer.finish_reason for answer in found],
    }
    write_rows(context.output / FILE, [pa.table(columns)], REPLAY_SCHEMA)
    noted = {
        "empty": sum(not text.strip() for text in texts),
        "truncated": sum(answer.finish_reason != "stop" for answer in found),
    }
    account = RowAccount(came=len(chosen), used=len(found), noted={reason: count for reason, count in noted.items() if count})
    return {
        "rows": len(found),
        "tokens": sum(answer.tokens for answer in found),
        "empty": sum(not text.strip() for text in texts),
        "truncated": sum(answer.finish_reason != "stop" for answer in found),
        KEY: account.model_dump(),
    }
