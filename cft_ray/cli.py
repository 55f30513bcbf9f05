"""The command `cft-ray`: each command is a few lines over a function that a script can call too.

Everything heavy is imported inside the command that needs it, so that `plan` answers in about a second. Results go to
standard output, everything else to standard error. Exit codes: see `docs/cli.md`.
"""

import atexit
import contextlib
import json
import os
import sys
import threading
from contextlib import redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cft_ray import machine, output
from cft_ray.errors import UserError, without_secrets
from cft_ray.storage import retry

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from cft_ray.grid.schema import Grid

EXIT_CODES = (
    "Exit codes: 0 done; 1 not complete (a stage failed or is missing, a check is broken); "
    "2 to be mended by you (command line, grid, files, storage); 130 interrupted."
)
app = typer.Typer(
    name="cft-ray",
    help="Experiment grids for continual fine-tuning of language models, on Ray.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

GridFile = Annotated[Path, typer.Argument(metavar="GRID", help="the grid's YAML file; - for standard input", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="change one value of the grid; a list is swept", show_default=False),
]
ResultsStorage = Annotated[
    str | None,
    typer.Option(help="where the results lie, without a grid those of all grids there (folder, s3://…)", show_default=False),
]


class Section(StrEnum):
    """What `--with` may ask for: an optional section of the grid, with its defaults where the file has none."""

    insight = "insight"


With = Annotated[
    list[Section] | None,
    typer.Option("--with", help="also measure similarity and look inside the models (docs/insight.md)", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="of a running Ray cluster, e.g. auto; a local one otherwise", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table")]


class Format(StrEnum):
    """How `results` gives its rows."""

    table = "table"
    parquet = "parquet"
    csv = "csv"
    json = "json"


def entry() -> NoReturn:
    """The command: `main`, and an end without the interpreter's own.

    polars reads the tables in threads of its own. One that still lets go of a Python object while the interpreter is being
    taken down is ended by it in the midst of native code, and that ends the process with SIGABRT after all has been done
    ("terminate called without an active exception").
    """
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    """Runs the command line; turns what ends a command into its exit code."""
    output.prepare()
    machine.prepare_home()
    retry.impatient()
    code = 0
    try:
        try:
            app()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except UserError as error:
        typer.echo(f"cft-ray: {without_secrets(str(error))}", err=True)
        code = 2
    except KeyboardInterrupt:
        typer.echo("cft-ray: interrupted", err=True)
        code = 130
    except BrokenPipeError:  # who read it has seen enough
        output.give_up()
        code = 1
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cft-ray {metadata.version('cft-ray')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and end", show_default=False)
    ] = False,
) -> None:
    """Experiment grids for continual fine-tuning of language models, on Ray."""


@app.command(epilog=EXIT_CODES)
def init(folder: Annotated[Path, typer.Argument(help="where to write; is made if need be")] = Path()) -> None:
    """Write a commented grid that runs as it is, and a cluster to run larger ones on. Overwrites nothing."""
    from cft_ray import starter

    for path in starter.write(folder):
        typer.echo(f"wrote {path}")
    typer.echo(f"next: cft-ray plan {folder / 'grid.yaml'}")


@app.command(epilog=EXIT_CODES)
def plan(grid: GridFile, sets: Sets = None, sections: With = None, as_json: AsJson = False) -> None:
    """Show cells, unique stages, what is cached or new and why, and what it will take. Starts nothing."""
    from cft_ray.plan import show
    from cft_ray.plan.build import build

    loaded = _load(grid, sets, sections)
    planned = build(loaded)
    rows = {}
    if any(getattr(stage.spec, "files", None) for stage in planned.stages.values()):
        from cft_ray.data.preflight import check_files

        rows = check_files(planned.stages.values())
    from cft_ray.lacks import lacks

    artifacts = list(show.stored(loaded))
    missing = lacks(planned, loaded, (made.fingerprint for made in artifacts))
    if as_json:
        _print_json(show.as_json(planned, loaded, artifacts, rows=rows, lacks=missing))
    else:
        show.show(planned, loaded, _console(), artifacts, rows=rows, lacks=missing)


@app.command(epilog=EXIT_CODES)
def run(
    grid: GridFile,
    sets: Sets = None,
    sections: With = None,
    address: Address = None,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="of a cluster of its own; all that this process may use otherwise", show_default=False),
    ] = None,
) -> None:
    """Do what is not done yet, then show the results. The same command continues after an interruption."""
    from cft_ray.data.preflight import check_files
    from cft_ray.lacks import lacks, refuse
    from cft_ray.plan.build import build, require_resolved
    from cft_ray.plan.view import stored

    if cpus is not None and address not in (None, "local"):
        raise UserError(
            "goes with a cluster of its own", where="--cpus", fix=f"leave it out, or do not use the cluster {address}"
        )
    loaded = _load(grid, sets, sections)
    planned = build(loaded)
    require_resolved(planned, loaded)
    check_files(planned.stages.values())
    refuse(lacks(planned, loaded, (made.fingerprint for made in stored(loaded))))
    from cft_ray.execute.run import run as execute  # Ray takes seconds to import: only for a grid that is in order

    uri = loaded.storage.uri
    with redirect_stdout(sys.stderr):  # where Ray prints its own warnings; standard output is for the results
        outcome = execute(planned, uri, address=address, cpus=cpus, concurrent=loaded.max_parallel, loggers=loaded.loggers)
    _show_results(uri, loaded.name)
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=EXIT_CODES)
def status(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="the grid's YAML file", show_default=False)] = None,
    sets: Sets = None,
    storage: ResultsStorage = None,
    as_json: AsJson = False,
    errors: Annotated[bool, typer.Option("--errors", help="show errors whole")] = False,
) -> None:
    """Where the last run of a grid stands: done, running, failed and why. Exit code 0 when everything is there."""
    uri, name = _results_of(grid, sets, storage, "cft-ray status")
    from cft_ray.execute import status as stages

    found = stages.status(uri, name)
    if as_json:
        _print_json(found.to_json())
    else:
        stages.show(found, _console(), errors_whole=errors)
    raise typer.Exit(int(not found.complete))


@app.command(epilog=EXIT_CODES)
def results(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="the grid's YAML file", show_default=False)] = None,
    sets: Sets = None,
    storage: ResultsStorage = None,
    form: Annotated[
        Format, typer.Option("--format", help="a table to read, or rows: one per cell, benchmark and language")
    ] = Format.table,
    to: Annotated[
        Path | None, typer.Option("--output", help="file to write; standard output otherwise, as with -", show_default=False)
    ] = None,
) -> None:
    """Show the scores of every cell: before, after Phase 1, after Phase 2, and the change."""
    uri, name = _results_of(grid, sets, storage, "cft-ray results")
    if form is Format.table:
        if to is not None:
            raise UserError("a table to read is not written to a file", where="--output", fix="add --format parquet, csv or json")
        _show_results(uri, name)
        return
    from cft_ray.metrics.show import exported

    frame = _frame(uri, name, "results")
    output.write_file(to or Path("-"), exported(frame, form))
    if to is not None:
        typer.echo(f"wrote {frame.height} rows to {to}", err=True)


@app.command(epilog=EXIT_CODES)
def fetch(
    grid: GridFile,
    to: Annotated[str, typer.Option("--to", metavar="URI", help="folder, s3://… or gs://… to copy to", show_default=False)],
    sets: Sets = None,
) -> None:
    """Copy what a grid takes from the internet to one place, once, so that a cluster without internet runs it."""
    loaded = _load(grid, sets)
    from cft_ray.fetch.grid import fetch as copy

    done = copy(loaded, to, tell=lambda line: typer.echo(line, err=True))
    for part, result in done.parts:
        typer.echo(f"{part} at {result.copied.revision[:12]}: {'fetched' if result.new else 'there'}")
    for name in done.unknown:
        typer.echo(f"benchmark {name} is not fetched: give its files, --set evaluation.data.{name}=URI", err=True)
    typer.echo(f"next, without internet: cft-ray run {grid} --set fetched={done.uri}")


@app.command(epilog=EXIT_CODES)
def figures(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="the grid's YAML file", show_default=False)] = None,
    sets: Sets = None,
    storage: ResultsStorage = None,
    to: Annotated[Path, typer.Option(help="folder to write to, a folder below for each grid")] = Path("reports/figures"),
) -> None:
    """Draw the study's figures from the tables, and whether similarity predicts forgetting."""
    uri, only = _results_of(grid, sets, storage, "cft-ray figures")
    import cft_ray
    from cft_ray.report import tables, write

    results = cft_ray.open(uri)
    names = [only] if only else tables.grids(results)
    if not names:
        raise UserError("no results of any grid here yet", where=uri, fix="`cft-ray run GRID` makes some")
    for name in names:
        folder = to / write.file_name(name)
        report = write.write(tables.gather(results, name), folder)
        _console().print(write.written_table(report, folder))
        if report.correlations is not None:
            _console().print(write.correlation_table(report.correlations, title=f"{name}: does similarity predict forgetting?"))


@app.command(epilog=EXIT_CODES)
def rebuild_tables(
    storage: Annotated[str, typer.Argument(help="the grid's storage.uri: a folder, s3://… or gs://…", show_default=False)],
    address: Address = None,
) -> None:
    """Send to the tables the rows that they lack of the artifacts of a storage, e.g. after `tables/` was lost."""
    import cft_ray

    cft_ray.open(storage)  # says where there is no storage, before Ray is imported
    from cft_ray.execute.run import rebuild_tables as rebuild

    with redirect_stdout(sys.stderr):
        sent = rebuild(storage, address=address)
    typer.echo(f"{sent} artifacts had rows that the tables lacked." if sent else "The tables lacked nothing.")


@app.command(epilog=EXIT_CODES)
def schema() -> None:
    """Print the JSON Schema of grid files."""
    from cft_ray.grid.schema import json_schema

    _print_json(json_schema())


@app.command(epilog=EXIT_CODES)
def doctor(
    grid: Annotated[Path | None, typer.Argument(metavar="[GRID]", help="a grid to be run here", show_default=False)] = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, memory, storage, disk and the hub. Exit code 1 if something needed is broken."""
    from cft_ray.doctor import examine, table

    checks = examine(_load(grid, sets) if grid else None)
    if as_json:
        _print_json([asdict(check) for check in checks])
    else:
        console = _console()
        console.print(output.fitted(table(checks), console))
    raise typer.Exit(int(any(check.state == "broken" for check in checks)))


def _load(path: Path, sets: list[str] | None, sections: list[Section] | None = None) -> "Grid":
    from cft_ray.grid.schema import grid_from_text, load_grid

    if str(path) == "-":
        return grid_from_text(_standard_input(), "standard input", sets or [], sections or [])
    return load_grid(path, sets or [], sections or [])


def _standard_input() -> str:
    from cft_ray.grid.source import MAX_BYTES

    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError("too large for a grid", where="standard input", fix=f"at most {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot be read: {error}", where="standard input", fix="a YAML file in UTF-8") from None


def _frame(uri: str, grid: str | None, name: str) -> "pl.DataFrame":
    """`Results.results()` or `Results.summary()` of one grid, or of all."""
    import polars as pl

    import cft_ray

    frame = getattr(cft_ray.open(uri), name)().collect()
    return frame if grid is None else frame.filter(pl.col("grid") == grid)


def _show_results(uri: str, grid: str | None) -> None:
    import cft_ray
    from cft_ray.metrics.show import results_table, row_lines

    frame = _frame(uri, grid, "summary")
    if frame.is_empty():
        fix = "`cft-ray run GRID` makes some" if grid is None else "run it, or see `cft-ray results --storage` for other grids"
        raise UserError(f"no results of {grid or 'any grid'} here yet", where=uri, fix=fix)
    console = _console()
    console.print(results_table(frame, title=grid, width=console.width))
    for line in row_lines(cft_ray.open(uri), grid):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.width >= output.NARROWEST else Console(width=output.NARROWEST)


def _results_of(grid: Path | None, sets: list[str] | None, storage: str | None, command: str) -> tuple[str, str | None]:
    """Where results lie, and the name of the grid that they are wanted of; None: of all there."""
    loaded = _load(grid, sets) if grid else None
    uri = storage if storage is not None else loaded and loaded.storage.uri
    if uri is None:
        raise UserError("which results?", where=command, fix="name a grid, or a storage with --storage")
    return uri, loaded.name if loaded else None


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
