"""The tables' columns: what every Parquet file under ``{storage}/tables/`` looks like.

A row is *keyed*: ``(fingerprint, attempt, sequence)`` is unique in its table. A table is the union of its files' rows by
key, so a row that was written twice counts once, whoever wrote it. Those who measure give rows without the key
(`table_of`); whoever sends them knows the stage and adds it (`keyed`). Every column has a description with its unit in
the field's metadata, which Parquet keeps. Pure: pyarrow only.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cft_ray.errors import UserError


class UnfitRows(UserError):
    """Rows that do not fit their table: an unknown table or column, one that is absent, a value of another type."""


KEY = ("fingerprint", "attempt", "sequence")


def _column(name: str, dtype: pa.DataType, description: str, *, required: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=not required, metadata={"description": description})


_TEXT, _INT, _FLOAT, _TIME = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us", tz="UTC")


def _table(name: str, row: str, columns: Iterable[pa.Field], fingerprint: str = "stage that the row comes from") -> pa.Schema:
    key = (
        _column("fingerprint", _TEXT, f"{fingerprint}: 64 hexadecimal digits", required=True),
        _column("attempt", _INT, "attempt that the row comes from; the highest wins", required=True),
        _column("sequence", _INT, "number of the row within fingerprint and attempt", required=True),
    )
    return pa.schema([*key, *columns], metadata={"table": name, "row": row})


_CELLS = _table(
    "cells",
    "one per cell and role (base, phase1, phase2, phase2:TA:ifeval …), each time that the grid is run",
    [
        _column("grid", _TEXT, "name of the grid", required=True),
        _column("cell", _TEXT, "name of the cell: model/phase1→phase2/strategy/seed[/setting=value…]", required=True),
        _column("model", _TEXT, "name of the model in the grid", required=True),
        _column("phase1", _TEXT, "name of the Phase 1 data set, or of the checkpoint that stands for it", required=True),
        _column("phase2", _TEXT, "name of the Phase 2 data set", required=True),
        _column("strategy", _TEXT, "name of the mitigation strategy", required=True),
        _column("seed", _INT, "the cell's seed", required=True),
        _column("settings", _TEXT, "swept settings as a JSON object, keys sorted; {} where nothing is swept", required=True),
        _column("role", _TEXT, "role of the stage in the cell", required=True),
        _column("phase", _TEXT, "model role: base, phase1 or phase2; null for other roles"),
        _column("ability", _TEXT, "TA or LA, for score roles"),
        _column("benchmark", _TEXT, "benchmark, for score roles"),
        _column("stage", _TEXT, "fingerprint of the stage in this role", required=True),
        _column("skipped", _TEXT, "why the stage is not run, where the grid lacks what it needs (a judge); null: it is run"),
    ],
    fingerprint="SHA-256 of the grid's name",
)

_STAGES = _table(
    "stages",
    "one per attempt and change of state; the last sequence of an attempt is its state",
    [
        _column("grid", _TEXT, "name of the grid that ran the attempt"),
        _column("kind", _TEXT, "stage kind: dataset, finetune, replay, drift, evaluate …", required=True),
        _column("label", _TEXT, "what people read"),
        _column("status", _TEXT, "running, done or failed", required=True),
        _column("start", _TIME, "start of the attempt, UTC"),
        _column("end", _TIME, "end of the attempt, UTC; null while running"),
        _column("seconds", _FLOAT, "wall-clock seconds from start to end"),
        _column("node", _TEXT, "host name of the node that drove it"),
        _column("devices", _TEXT, "devices used, e.g. 2 x NVIDIA H100, or 1 x CPU"),
        _column("gpu_seconds", _FLOAT, "seconds x GPUs held; 0 without GPU"),
        _column("cpu_seconds", _FLOAT, "seconds x logical CPUs held"),
        _column("error", _TEXT, "why it failed; null otherwise"),
        _column("versions", _TEXT, "JSON object: package -> version"),
        _column("outputs", _TEXT, "JSON object: the manifest's outputs, once done"),
    ],
)

_STEPS = _table(
    "steps",
    "one per optimizer step; sequence = step",
    [
        _column("step", _INT, "optimizer step, from 1", required=True),
        _column("epoch", _FLOAT, "passes over the data after this step"),
        _column("loss", _FLOAT, "mean cross-entropy per target token of the global batch, nats", required=True),
        _column("lr", _FLOAT, "learning rate of this step"),
        _column("grad_norm", _FLOAT, "global L2 norm of the gradient before clipping"),
        _column("tokens", _INT, "non-padding tokens in the global batch"),
        _column("target_tokens", _INT, "tokens in the loss, global batch"),
        _column("samples", _INT, "rows in the global batch"),
        _column("seconds", _FLOAT, "wall-clock seconds of the step"),
        _column("tokens_per_s", _FLOAT, "non-padding tokens per second over all workers"),
        _column("mfu", _FLOAT, "model FLOPs utilisation, 0 to 1; 0 for an unknown device"),
        _column("peak_memory", _INT, "peak memory of a worker so far, bytes (GPU memory; resident memory on a CPU)"),
    ],
)

_SCORES = _table(
    "scores",
    "one per evaluation, language and metric",
    [
        _column("ability", _TEXT, "TA or LA", required=True),
        _column("benchmark", _TEXT, "benchmark, e.g. ifeval, toy_letters", required=True),
        _column("task", _TEXT, "lm-evaluation-harness task", required=True),
        _column("language", _TEXT, "ISO 639-1 code", required=True),
        _column("metric", _TEXT, "metric, as the harness names it", required=True),
        _column("shown", pa.bool_(), "the metric that the results table shows", required=True),
        _column("value", _FLOAT, "value of the metric; null where it could not be computed"),
        _column("stderr", _FLOAT, "standard error of the value, in its unit"),
        _column("n", _INT, "items scored"),
    ],
)

_SAMPLES = _table(
    "samples",
    "one per test item answered",
    [
        _column("benchmark", _TEXT, "benchmark", required=True),
        _column("task", _TEXT, "lm-evaluation-harness task", required=True),
        _column("language", _TEXT, "ISO 639-1 code", required=True),
        _column("item", _TEXT, "id of the item within its task", required=True),
        _column("cluster", _TEXT, "what items that belong together share (paragraph, subject); null: on its own"),
        _column("target", _TEXT, "right answer"),
        _column("response", _TEXT, "the model's answer, or the choice it prefers"),
        _column(
            "metrics",
            pa.list_(pa.struct([pa.field("metric", _TEXT), pa.field("value", _FLOAT)])),
            "value of each metric on this item",
            required=True,
        ),
    ],
)

_SIMILARITY = _table(
    "similarity",
    "one per measure and pair of data sets or models (and layer, projection, head where the measure has them)",
    [
        _column("measure", _TEXT, "mpd, rms, l2, des …", required=True),
        _column("left", _TEXT, "fingerprint or name of one side", required=True),
        _column("right", _TEXT, "fingerprint or name of the other side", required=True),
        _column("layer", _INT, "decoder layer, from 0; null: the whole model"),
        _column("projection", _TEXT, "q, k, v or a parameter's name; null: all"),
        _column("head", _INT, "attention head (KV head for k and v), from 0; null: all"),
        _column("language", _TEXT, "ISO 639-1 code of the rows compared; null: all, or a measure without rows"),
        _column("value", _FLOAT, "value of the measure", required=True),
    ],
)

_LAYERS = _table(
    "layers",
    "one per model, decoder layer and language of the prompts, and one for all languages together",
    [
        _column("model", _TEXT, "fingerprint or name of the model", required=True),
        _column("prompts", _TEXT, "fingerprint of the data set that the prompts come from"),
        _column("language", _TEXT, "ISO 639-1 code of the prompts; null: all"),
        _column("n", _INT, "prompts"),
        _column("layer", _INT, "decoder layer, from 0", required=True),
        _column("mean", pa.list_(pa.float32()), "mean hidden activation over the prompts, one number per hidden dimension"),
        _column("variance", _FLOAT, "trace of the covariance of the activations over the prompts; null for a single prompt"),
        _column("frobenius", _FLOAT, "Frobenius norm of that covariance"),
        _column("spectral", _FLOAT, "spectral norm of that covariance"),
    ],
)

_REPLAY = _table(
    "replay",
    "one per replay artifact, side (the generated answers, or the original ones to the same prompts), measure and language",
    [
        _column("replay", _TEXT, "fingerprint of the replay stage", required=True),
        _column(
            "side", _TEXT, "generated: the model's answers; original: those of the rows that the prompts come from", required=True
        ),
        _column("measure", _TEXT, "characters_mean, rep_4, self_bleu, perplexity …: docs/insight.md has them all", required=True),
        _column("language", _TEXT, "ISO 639-1 code of the prompts; null: all"),
        _column("value", _FLOAT, "value of the measure; shares and BLEU are 0 to 1", required=True),
        _column("n", _INT, "answers that it is taken over (perplexity: tokens)", required=True),
    ],
)

_ROWS = _table(
    "rows",
    "one per stage that reads rows and fate of them: came, used, and left_out, set_aside, noted for each reason",
    [
        _column("kind", _TEXT, "stage kind", required=True),
        _column("label", _TEXT, "what people read"),
        _column(
            "fate",
            _TEXT,
            "came: rows in; used; left_out: wanted and missing; set_aside: not asked for; noted: used, with something to know",
            required=True,
        ),
        _column("reason", _TEXT, "too_long, no_output …; null for came and used"),
        _column("count", _INT, "rows", required=True),
        _column("share", _FLOAT, "used, left_out: of the rows wanted (came less set_aside); noted: of used; else of came"),
        _column("found", _TEXT, "what was found in such rows, e.g. how a language is spelled"),
    ],
)

SCHEMAS: dict[str, pa.Schema] = {
    "cells": _CELLS,
    "stages": _STAGES,
    "steps": _STEPS,
    "scores": _SCORES,
    "samples": _SAMPLES,
    "similarity": _SIMILARITY,
    "layers": _LAYERS,
    "replay": _REPLAY,
    "rows": _ROWS,
}
"""Table -> schema, key columns first."""


def body_schema(name: str) -> pa.Schema:
    """The columns of a table that a measurement gives: all but the key.

    Raises:
        UnfitRows: there is no such table.
    """
    if name not in SCHEMAS:
        raise UnfitRows(f"there is no table {name!r}", fix=f"use one of {', '.join(SCHEMAS)}")
    return pa.schema([field for field in SCHEMAS[name] if field.name not in KEY], metadata=SCHEMAS[name].metadata)


def table_of(name: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Rows as a table of the right columns and types, without the key; this is what a stage leaves in its artifact.

    Args:
        name: table, a key of `SCHEMAS`.
        rows: mappings column -> value, or a table. A nullable column may be left out. Whole numbers stand for floats;
            nothing else is converted.

    Raises:
        UnfitRows: an unknown table or column, a required column that is absent or null, or a value of another type.
    """
    schema = body_schema(name)
    table: Any = rows if isinstance(rows, pa.Table) else _gathered(name, schema, list(rows))
    _check_columns(name, schema, table.column_names, "the table")
    return conform(name, table, schema.names)


def conform(name: str, table: pa.Table, columns: list[str]) -> pa.Table:
    """Columns of a stored table in their right types; a nullable column that an older file lacks is null.

    Raises:
        UnfitRows: a required column is absent or has nulls, or a column has another type.
    """
    fields = [SCHEMAS[name].field(column) for column in columns]
    for field in fields:
        if not field.nullable and field.name not in table.column_names:
            raise UnfitRows(f"the column {field.name!r} is absent", where=f"table {name}", fix=described(field))
    there = table.column_names
    arrays = [
        _cast(name, field, table[field.name]) if field.name in there else pa.nulls(table.num_rows, field.type) for field in fields
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=SCHEMAS[name].metadata))


def keyed(table: pa.Table, *, fingerprint: str, attempt: int, sequence: int) -> pa.Table:
    """The table with its key columns in front; row i gets the number ``sequence + i``."""
    rows = table.num_rows
    key = (
        pa.repeat(pa.scalar(fingerprint, _TEXT), rows),
        pa.repeat(pa.scalar(attempt, _INT), rows),
        pa.array(range(sequence, sequence + rows), _INT),
    )
    schema = SCHEMAS[table.schema.metadata[b"table"].decode()]
    return pa.Table.from_arrays([*key, *table.columns], schema=schema)


def _check_columns(name: str, schema: pa.Schema, columns: Sequence[str], where: str) -> None:
    for column in columns:
        if column in KEY:
            raise UnfitRows(
                f"{where} has the key column {column!r}", where=f"table {name}", fix="leave it out: the sender adds it"
            )
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"use {', '.join(schema.names)}"
            raise UnfitRows(f"{where} has the unknown column {column!r}", where=f"table {name}", fix=fix)


def _gathered(name: str, schema: pa.Schema, rows: list[Mapping[str, Any]]) -> pa.Table:
    """Mappings as columns of the types that pyarrow infers: building with the wanted types would cut 1.5 down to 1."""
    shapes = set()
    for number, row in enumerate(rows):
        if (shape := tuple(row)) not in shapes:  # rows of one sender mostly have the same columns
            _check_columns(name, schema, shape, f"row {number}")
            shapes.add(shape)
    columns = {}
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns[field.name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            what = f"column {field.name!r} takes {field.type}, and has values of several types or of an unknown one: {error}"
            raise UnfitRows(what, where=f"table {name}", fix=described(field)) from error
    return pa.table(columns)


def _cast(name: str, field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not field.nullable and column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UnfitRows(f"row {row} has null in {field.name!r}", where=f"table {name}", fix=f"give it: {described(field)}")
    try:
        if column.type == field.type:
            return column
        if pa.types.is_null(column.type) or _widens(column.type, field.type):
            return column.cast(field.type)
        problem = f"is {column.type}"
    except pa.ArrowException as error:
        problem = f"is {column.type} ({error})"
    example = next((value for value in column.to_pylist() if value is not None), None)
    what = f"column {field.name!r} takes {field.type}, and {problem}, e.g. {example!r}"
    raise UnfitRows(what, where=f"table {name}", fix=described(field))


def _widens(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Integers stand for floats, and narrow types for wide ones of the same sort."""
    if pa.types.is_list(wanted):
        # Not list views: pyarrow 26 makes lists with too few offsets of them.
        return pa.types.is_list(given) or pa.types.is_large_list(given)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(given)
    if pa.types.is_floating(wanted):
        return pa.types.is_integer(given) or pa.types.is_floating(given)
    if pa.types.is_string(wanted):
        return pa.types.is_large_string(given) or pa.types.is_string_view(given) or pa.types.is_dictionary(given)
    return pa.types.is_timestamp(wanted) and pa.types.is_timestamp(given)


def described(field: pa.Field) -> str:
    """A column's description with its unit."""
    return (field.metadata or {}).get(b"description", b"").decode()
