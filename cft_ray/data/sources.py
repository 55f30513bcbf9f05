"""Where rows come from: the Hugging Face hub, files in a folder or an object store, or the toy world.

Every source gives the same stream of canonical tables (`cft_ray.data.rows`), language by language in the order that the
grid names. Sources that tell a language only by a file's name (MultiAlpaca) have ``{language}`` in their pattern; those
that tell it in a column map `language`; the others hold one language.

What real data sets get wrong is mended here and counted: null becomes ``""``; a row without instruction or without
output teaches nothing and is left out (a source that maps no output has prompts, which nothing is trained on). What
cannot be mended is a `UserError` that names the place. Only data is read: a hub repository that needs its own loading
script is refused.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

import polars as pl
import pyarrow as pa
from pyarrow import fs

from cft_ray.data import toy
from cft_ray.data.languages import filled, names_language
from cft_ray.data.readers import BATCH, as_text, item, open_location, read_file, require_columns
from cft_ray.data.rows import COLUMNS, SCHEMA, table
from cft_ray.errors import UserError
from cft_ray.plan.specs import DatasetSpec


def read(spec: DatasetSpec, dropped: Counter[str]) -> Iterator[pa.Table]:
    """All rows of a source as canonical tables of a few thousand rows; `spec.rows` concerns the toy world alone.

    Args:
        spec: which source, which columns, which languages.
        dropped: counts what is left out, by reason (``no_instruction``, ``no_output``, ``other_language``); it is
            complete when the stream has ended.

    Raises:
        UserError: the source cannot be read as described; see `cft_ray.data.readers.read_file`.
    """
    if spec.toy is not None:
        yield from _toy(spec, spec.toy)
        return
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
            yield from _canonical(one, batch, language or spec.languages[0], position, dropped)
            position += batch.num_rows


def _of_language(spec: DatasetSpec, language: str) -> DatasetSpec:
    """The source with one language in the places for it; all languages stay named."""
    columns = {name: filled(source, language) for name, source in spec.columns.items()}
    places = {name: filled(value, language) for name in ("files", "hub_files", "config") if (value := getattr(spec, name))}
    return spec.model_copy(update={"columns": columns, **places})


def _name(spec: DatasetSpec) -> str:
    return spec.files or spec.hub or f"toy data set {spec.toy}"


def _toy(spec: DatasetSpec, name: str) -> Iterator[pa.Table]:
    for language in spec.languages:
        rows = toy.generate(name, language, spec.rows, spec.seed)
        while batch := list(islice(rows, BATCH)):
            yield table(batch)


def _tables(spec: DatasetSpec) -> Iterator[pa.Table]:
    """The mapped columns of all files, under the source's names."""
    wanted = list(dict.fromkeys(spec.columns.values()))
    if spec.files is not None:
        for location in _matches(spec.files):
            yield from read_file(location, wanted)
    elif spec.hub is not None and spec.hub_files is not None:
        for location in _hub_files(spec, spec.hub, spec.hub_files):
            yield from read_file(location, wanted)
    elif spec.hub is not None:
        yield from _hub(spec, spec.hub, wanted)
    else:
        raise UserError("the data set has no source", where="datasets", fix="give one of hub, files, toy")


def _matches(pattern: str) -> Sequence[str]:
    """The locations that a pattern with ``*`` names, sorted; a pattern without is itself."""
    if "*" not in pattern:
        return [pattern]
    if "://" not in pattern:
        found = sorted(glob.glob(pattern))  # noqa: PTH207 - an absolute pattern, which Path.glob refuses
    else:
        filesystem, path = open_location(pattern)
        folder = str(PurePosixPath(path).parent)
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        root = pattern.removesuffix(PurePosixPath(path).name)
        found = sorted(root + info.base_name for info in infos if PurePosixPath(info.path).match(PurePosixPath(path).name))
    if not found:
        raise UserError("no file has such a name", where=pattern, fix="name existing data files")
    return found


def _hub_files(spec: DatasetSpec, repository: str, pattern: str) -> Sequence[str]:
    """Local copies (the hub client's cache) of a repository's files that a pattern names."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    where = f"{repository}/{pattern}"
    try:
        names = [pattern]
        if "*" in pattern:
            listed = HfApi().list_repo_files(repository, repo_type="dataset", revision=spec.revision)
            names = sorted(name for name in listed if PurePosixPath(name).match(pattern))
        paths = [hf_hub_download(repository, name, repo_type="dataset", revision=spec.revision) for name in names]
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise _hub_error(error, where) from error
    if not paths:
        raise UserError("no file in the hub repository has such a name", where=where, fix="look at the repository's files")
    return paths


def _hub(spec: DatasetSpec, repository: str, wanted: Sequence[str]) -> Iterator[pa.Table]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = datasets.load_dataset(repository, name=spec.config, split=spec.split, revision=spec.revision)
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as error:
        # ValueError: unknown split or configuration; RuntimeError: the repository wants to run a script of its own.
        raise _hub_error(error, repository) from error
    if not isinstance(loaded, datasets.Dataset):
        raise UserError(f"split {spec.split!r} is no single table", where=repository, fix="name one split")
    require_columns(loaded.column_names, wanted, repository)
    columns = list(dict.fromkeys(item(name, loaded.column_names)[0] for name in wanted))
    for batch in loaded.select_columns(columns).with_format("arrow").iter(BATCH):
        yield as_text(batch, wanted, repository)  # pyright: ignore[reportArgumentType] - the format says Arrow


def _hub_error(error: Exception, where: str) -> UserError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(
        f"cannot be had from the Hugging Face hub ({type(error).__name__}: {reason})",
        where=where,
        fix="check name, revision, configuration, split and network, and HF_TOKEN where the data set is gated; or use `files`",
    )


def _canonical(spec: DatasetSpec, batch: pa.Table, language: str, position: int, dropped: Counter[str]) -> Iterator[pa.Table]:
    """A canonical table of the rows that teach something (nothing, if none does)."""
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
    rows = frame.with_columns(**{**absent, "id": identity}).select(COLUMNS)

    blank = {name: pl.col(name).str.strip_chars() == "" for name in ("instruction", "input", "output")}
    asks = "instruction" in spec.columns or "input" in spec.columns
    reasons = (
        pl.when(~pl.col("language").is_in(spec.languages))
        .then(pl.lit("other_language"))
        .when(blank["instruction"] & blank["input"] & pl.lit(asks))
        .then(pl.lit("no_instruction"))
        .when(blank["output"] & pl.lit("output" in spec.columns))
        .then(pl.lit("no_output"))
    )
    rows = rows.with_columns(reason=reasons.otherwise(pl.lit(None, pl.String)))
    dropped.update(rows["reason"].drop_nulls().to_list())
    rows = rows.filter(pl.col("reason").is_null()).select(COLUMNS)
    if rows.height:
        yield rows.to_arrow().cast(SCHEMA)
