"""Where rows come from: the Hugging Face hub, files in a folder or an object store, or the toy world.

Every source gives the same stream of canonical tables (`cft_ray.data.rows`), language by language in the order that the
grid names. Sources that tell a language only by a file's name (MultiAlpaca) have ``{language}`` in their pattern; those
that tell it in a column map `language`; the others hold one language.

What real data sets get wrong is mended here and counted: null becomes ``""``; a row without instruction or without
output teaches nothing and is left out (a source that maps no output has prompts, which nothing is trained on). What
cannot be mended is a `UserError` that names the place. Only data is read: a hub repository that needs its own loading
script is refused.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from cft_ray.data import toy
from cft_ray.data.accounts import Tally
from cft_ray.data.chat import Conversation, Unfit, conversation
from cft_ray.data.formats import AUTO, CHATS, CONVERSATION, FORMATS, OPTIONAL, format_of
from cft_ray.data.languages import filled, meant, names_language
from cft_ray.data.paths import matching, named
from cft_ray.data.readers import BATCH, Wanted, as_text, column_names, read_file, require_columns
from cft_ray.data.rows import COLUMNS, SCHEMA, dump_turns, table
from cft_ray.errors import UserError, without_secrets
from cft_ray.plan.specs import DatasetSpec
from cft_ray.storage.hub import from_hub, transient

if TYPE_CHECKING:
    import datasets


def read(spec: DatasetSpec, tally: Tally) -> Iterator[pa.Table]:
    """All rows of a source as canonical tables of a few thousand rows; `spec.rows` concerns the toy world alone.

    Args:
        spec: which source, which columns, which languages.
        tally: counts the rows and what is left out of them, by reason; it is complete when the stream has ended.

    Raises:
        UserError: the source cannot be read as described; see `cft_ray.data.readers.read_file`.
    """
    if spec.toy is not None:
        yield from _toy(spec, spec.toy, tally)
        return
    if spec.format == AUTO:
        spec = _recognised(spec)
    patterns = (spec.files or spec.hub_files or "", spec.config or "", *spec.columns.values())
    by_name = any(names_language(pattern) for pattern in patterns)
    if not by_name and "language" not in spec.columns and len(spec.languages) != 1:
        raise UserError(
            f"nothing says which rows are of which of the languages {list(spec.languages)}",
            where=_name(spec),
            fix="put {language} into the files' pattern or a column's name, map the column `language`, or name one language",
        )
    for language in spec.languages if by_name else (None,):
        one = _of_language(spec, language) if language is not None else spec
        position = 0
        for batch in _tables(one):
            yield from _canonical(one, batch, language or spec.languages[0], position, tally)
            position += batch.num_rows


def _of_language(spec: DatasetSpec, language: str) -> DatasetSpec:
    """The source with one language in the places for it; all languages stay named."""
    columns = {name: filled(source, language) for name, source in spec.columns.items()}
    places = {name: filled(value, language) for name in ("files", "hub_files", "config") if (value := getattr(spec, name))}
    return spec.model_copy(update={"columns": columns, **places})


def _name(spec: DatasetSpec) -> str:
    return spec.files or spec.hub or f"toy data set {spec.toy}"


def _recognised(spec: DatasetSpec) -> DatasetSpec:
    """The source with the format that the columns of its first file show."""
    one = _of_language(spec, spec.languages[0])
    found = _loaded(one, one.hub).column_names if one.files is None and one.hub and not one.hub_files else None
    found = column_names(_locations(one)[0]) if found is None else found
    name = format_of(found)
    if name is None:
        raise UserError(
            f"the columns are of no known format; columns found: {', '.join(map(repr, found)) or 'none'}",
            where=_name(spec),
            fix="say which column is which: `columns: {instruction: …, output: …}`",
        )
    return spec.model_copy(update={"format": name, "columns": (FORMATS | CHATS)[name]})


def _toy(spec: DatasetSpec, name: str, tally: Tally) -> Iterator[pa.Table]:
    for language in spec.languages:
        rows = toy.generate(name, language, spec.rows, spec.seed)
        while batch := list(islice(rows, BATCH)):
            tally.came += len(batch)
            yield table(batch)


def _wanted(spec: DatasetSpec) -> Wanted:
    free = OPTIONAL if spec.format is not None else frozenset()
    return Wanted(
        columns=tuple(dict.fromkeys(spec.columns.values())),
        optional=frozenset(source for name, source in spec.columns.items() if name in free),
        lists=frozenset(source for name, source in spec.columns.items() if name == CONVERSATION),
    )


def _tables(spec: DatasetSpec) -> Iterator[pa.Table]:
    """The mapped columns of all files, under the source's names."""
    if spec.files is None and spec.hub is not None and spec.hub_files is None:
        yield from _hub(spec, spec.hub)
        return
    for location in _locations(spec):
        yield from read_file(location, _wanted(spec))


def _locations(spec: DatasetSpec) -> Sequence[str]:
    """Paths or URIs of the source's files, sorted; a pattern without ``*`` is itself."""
    if spec.files is None:
        if spec.hub is None or spec.hub_files is None:
            raise UserError("the data set has no source", where="datasets", fix="give one of hub, files, toy")
        return _hub_files(spec, spec.hub, spec.hub_files)
    if "*" not in spec.files:
        return [spec.files]
    try:
        found = [file.location for file in matching(spec.files)]
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"cannot be read ({str(error).splitlines()[0]})", where=spec.files, fix="check the path and access"
        ) from error
    if not found:
        raise UserError("no file has such a name", where=spec.files, fix="name existing data files")
    return found


def _hub_files(spec: DatasetSpec, repository: str, pattern: str) -> Sequence[str]:
    """Local copies (the hub client's cache) of a repository's files that a pattern names."""
    from huggingface_hub import HfApi, hf_hub_download

    where = f"{repository}/{pattern}"

    def bring() -> list[str]:
        names = [pattern]
        if "*" in pattern:
            listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=spec.revision)
            names = sorted(name for name in listed if named(pattern, name))
        return [hf_hub_download(repository, name, repo_type="dataset", revision=spec.revision) for name in names]

    paths = from_hub(where, bring)
    if not paths:
        raise UserError("no file in the hub repository has such a name", where=where, fix="look at the repository's files")
    return paths


def _loaded(spec: DatasetSpec, repository: str | None) -> "datasets.Dataset":
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    assert repository is not None

    def load() -> Any:
        try:
            return datasets.load_dataset(repository, name=spec.config, split=spec.split, revision=spec.revision)
        except (DatasetNotFoundError, ValueError, RuntimeError) as error:
            # ValueError: unknown split or configuration; RuntimeError: the repository wants to run a script of its own.
            if transient(error):
                raise
            raise _hub_error(error, repository) from error

    loaded = from_hub(repository, load)
    if not isinstance(loaded, datasets.Dataset):
        raise UserError(f"split {spec.split!r} is no single table", where=repository, fix="name one split")
    return loaded


def _hub(spec: DatasetSpec, repository: str) -> Iterator[pa.Table]:
    loaded, wanted, first = _loaded(spec, repository), _wanted(spec), 1
    require_columns(loaded.column_names, wanted.required, repository)
    columns = wanted.sources(loaded.column_names)
    for batch in loaded.select_columns(columns).with_format("arrow").iter(BATCH):
        yield as_text(batch, wanted, repository, first)  # pyright: ignore[reportArgumentType] - the format says Arrow
        first += len(batch)


def _hub_error(error: Exception, where: str) -> UserError:
    reason = without_secrets(str(error)).strip().split("\n")[0] or type(error).__name__
    return UserError(
        f"cannot be had from the Hugging Face hub ({type(error).__name__}: {reason})",
        where=where,
        fix="check name, revision, configuration, split and network, and HF_TOKEN where the data set is gated; or use `files`",
    )


def _canonical(spec: DatasetSpec, batch: pa.Table, language: str, position: int, tally: Tally) -> Iterator[pa.Table]:
    """A canonical table of the rows that teach something (nothing, if none does)."""
    tally.came += batch.num_rows
    frame = pl.DataFrame({name: pl.Series(name, batch.column(source)) for name, source in spec.columns.items()})
    frame = frame.with_columns(pl.all().cast(pl.String).fill_null(""))
    made = pl.format(f"{language}-{{}}", pl.int_range(position, position + batch.num_rows).cast(pl.String).str.zfill(7))
    if "id" not in spec.columns:
        identity = made
    else:
        # A row whose source has no name for it gets one; parallel files name their rows alike.
        identity = pl.when(pl.col("id") == "").then(made).otherwise(pl.col("id"))
        if "language" not in spec.columns and len(spec.languages) > 1:
            identity = pl.concat_str(identity, pl.lit(f":{language}"))
    absent = {name: pl.lit("") for name in COLUMNS if name not in spec.columns}
    if "language" in absent:
        absent["language"] = pl.lit(language)
    unfit = pl.lit(None, pl.String)
    if CONVERSATION in spec.columns:
        frame, unfit = _spoken(frame), pl.col("unfit")
        absent = {name: value for name, value in absent.items() if name not in frame.columns}
    rows = frame.with_columns(**{**absent, "id": identity}, unfit=unfit).select(*COLUMNS, "unfit")

    blank = {name: pl.col(name).str.strip_chars() == "" for name in ("instruction", "input", "output")}
    asks = not {"instruction", "input", CONVERSATION}.isdisjoint(spec.columns)
    answers = not {"output", CONVERSATION}.isdisjoint(spec.columns)
    elsewhere = {text: reason for text in rows["language"].unique() if (reason := _elsewhere(text, spec.languages))}
    reasons = (
        pl.when(pl.col("language").is_in(list(elsewhere)))
        .then(pl.col("language").replace_strict(elsewhere, default=None, return_dtype=pl.String))
        .when(pl.col("unfit").is_not_null())
        .then(pl.col("unfit"))
        .when(blank["instruction"] & blank["input"] & pl.lit(asks))
        .then(pl.lit("no_instruction"))
        .when(blank["output"] & pl.lit(answers))
        .then(pl.lit("no_output"))
    )
    rows = rows.with_columns(reason=reasons.otherwise(pl.lit(None, pl.String)))
    _count(rows.filter(pl.col("reason").is_not_null()), tally)
    rows = rows.filter(pl.col("reason").is_null()).select(COLUMNS)
    if rows.height:
        yield rows.to_arrow().cast(SCHEMA)


def _spoken(frame: pl.DataFrame) -> pl.DataFrame:
    """Canonical columns of conversations; ``unfit`` is why one is left out. A system column counts where no turn is one."""
    columns: dict[str, list[str | None]] = {"instruction": [], "output": [], "system": [], "turns": [], "unfit": []}
    given = frame["system"] if "system" in frame.columns else [""] * frame.height
    for text, system in zip(frame[CONVERSATION], given, strict=True):
        try:
            said, unfit = conversation(text), None
        except Unfit as error:
            said, unfit = Conversation("", (), "", ""), str(error)
        values = (said.question, said.answer, said.system or system, dump_turns(said.turns), unfit)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return frame.with_columns(pl.Series(name, values, pl.String) for name, values in columns.items())


OTHER_LANGUAGE = "other_language"
_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]+)*")


def _elsewhere(text: str, asked: Sequence[str]) -> str | None:
    """Why a row with this in its column `language` is not of the languages asked for; None: it is."""
    if text in asked:
        return None
    if not text.strip():
        return "no_language"
    language = meant(text)
    if language in asked:
        return "language_spelled_otherwise"
    return OTHER_LANGUAGE if language is not None or _CODE.fullmatch(text) else "unknown_language"


def _count(left_out: pl.DataFrame, tally: Tally) -> None:
    for reason, language, count in left_out.group_by("reason", "language").len().iter_rows():
        if reason == OTHER_LANGUAGE:
            tally.set_aside[reason] += count
            continue
        tally.left_out[reason] += count
        if "language" in reason:
            tally.found.setdefault(reason, Counter())[language] += count
