"""The whole grid file, and reading it: YAML → checked `Grid`.

Shorthands, defaults and references are settled here. What depends on a cell (merged training settings, swept values) is
made by `cft_ray.grid.cells`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from cft_ray.data.accounts import ALLOWED
from cft_ray.errors import UserError
from cft_ray.grid import sections as s
from cft_ray.grid.insight import Insight
from cft_ray.grid.problems import as_user_error, refuse_truths
from cft_ray.grid.settings import Settings, Template, TemplateChoice
from cft_ray.grid.source import parse, read
from cft_ray.grid.tree import Source
from cft_ray.grid.words import MOST, Name, PlaceName, Seed

FILTERS = ("include", "exclude")
SECTIONS = ("insight",)
"""Optional sections that a command may ask for (`--with`) where the file has none."""


def _switch(value: Any) -> Any:
    return {} if value is True else None if value is False else value


class Grid(Settings):
    """What to run: every model × pair × strategy × seed, and every value of a swept setting."""

    name: Name = Field(description="what the results call this grid")
    storage: s.StorageChoice = Field(description="where artifacts and tables lie")
    fetched: PlaceName | None = Field(
        default=None,
        min_length=1,
        description="folder or URI that `cft-ray fetch` has filled: what the grid takes from the hub is read there, at the "
        "commits that it holds; none: from the hub",
    )
    seeds: list[Seed] = Field(default=[0], min_length=1, description="one cell each; data sets and given checkpoints use seed 0")
    models: s.Models = Field(min_length=1, description="model -> checkpoint -> where it comes from; `base` is required")
    datasets: s.Datasets = Field(min_length=1, description="data set -> where it comes from")
    pairs: list[s.Pair] = Field(min_length=1, description="phase 1 and phase 2")
    allow_left_out: float = Field(
        default=ALLOWED,
        ge=0,
        le=1,
        description="share of the rows of a data set or training that may be left out (no answer, too long, a language spelled "
        "otherwise); more is refused; a data set may have its own; changes no result",
    )
    strategies: s.Strategies = Field(min_length=1, description="names, or mappings with `name`")
    template: TemplateChoice = Field(
        default=Template(name="alpaca"), description="how rows become text, where neither data set nor checkpoint says so"
    )
    training: s.TrainingSection = Field(
        default_factory=dict,
        description="of every training; `phase1` and `phase2` inside it change it for that phase, a strategy's own `training` "
        "changes phase 2 further; a list of values is swept",
    )
    replay: s.SamplingOverrides = Field(default_factory=dict, description="how replay is sampled; a list of values is swept")
    evaluation: s.Evaluation = Field(description="what is measured")
    insight: Annotated[Insight | None, BeforeValidator(_switch, json_schema_input_type=bool | Insight)] = Field(
        default=None, description="similarity of data sets and a look inside the models; none: not measured"
    )
    resources: dict[s.StageKind, s.StageResources] = Field(default_factory=dict, description="by kind of stage")
    cluster: s.Cluster = Field(default=s.Cluster(), description="what it runs on, for admission and estimates")
    loggers: s.Loggers = Field(
        default_factory=list, description="further places for training curves: names, or mappings with `name` and options"
    )
    include: list[s.Filter] = Field(default_factory=list, description="only cells that match one of these; all if none")
    exclude: list[s.Filter] = Field(default_factory=list, description="no cell that matches one of these")
    max_cells: int = Field(
        default=100_000,
        gt=0,
        le=MOST,
        description="most cells that sweeps and seeds may make; more are refused before they are made",
    )
    max_parallel: int | None = Field(default=None, gt=0, le=MOST, description="most stages at once; none: as many as fit")

    _source: Source = PrivateAttr(default_factory=lambda: Source("grid"))
    _filters_fit: bool = PrivateAttr(default=False)

    @property
    def source(self) -> Source:
        """Names file and line of a path inside the grid."""
        return self._source

    @property
    def filters_fit(self) -> bool:
        """Whether each filter is known to match a cell of the file's own grid: what it speaks of may be taken away by `--set`."""
        return self._filters_fit


def load_grid(path: str | Path, sets: Sequence[str] = (), sections: Sequence[str] = ()) -> Grid:
    """Read and check a grid file; nothing is written.

    Args:
        path: of the YAML file.
        sets: changes ``path=value`` (values in YAML, list items by index or name).
        sections: some of `SECTIONS`, to be there with their defaults where the file has none.

    Raises:
        UserError: whatever is wrong with the file, with its place in it.
    """
    return _loaded(lambda sets: read(path, sets), sets, sections)


def grid_from_text(text: str, name: str = "grid", sets: Sequence[str] = (), sections: Sequence[str] = ()) -> Grid:
    """As `load_grid`, from YAML that is already in memory; ``name`` stands for the file in messages."""
    return _loaded(lambda sets: parse(text, Source(name), sets), sets, sections)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a grid file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Grid.model_json_schema()


def _loaded(read: Callable[[Sequence[str]], tuple[dict[str, Any], Source]], sets: Sequence[str], sections: Sequence[str]) -> Grid:
    raw, source = read(sets)
    own = bool(sets) and not any(path[0] in FILTERS for path in source.changed) and any(raw.get(name) for name in FILTERS)
    return _checked(_with(raw, sections), source, filters_fit=own and _fits(read, sections))


def _fits(read: Callable[[Sequence[str]], tuple[dict[str, Any], Source]], sections: Sequence[str]) -> bool:
    """Whether the file is a grid without `--set` too, so that each of its filters says something there."""
    try:
        raw, source = read(())
        _checked(_with(raw, sections), source)
    except UserError:
        return False
    return True


def _with(raw: dict[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    return raw | {name: {} for name in sections if raw.get(name) in (None, False)}


def _checked(raw: dict[str, Any], source: Source, *, filters_fit: bool = False) -> Grid:
    from cft_ray.grid.cells import cells  # these read a Grid, so they cannot be imported before it exists
    from cft_ray.grid.checks import check_references

    refuse_truths(Grid, raw, source, ())
    try:
        grid = Grid.model_validate(raw)
    except ValidationError as error:
        raise as_user_error(error, Grid, raw, source) from None
    grid._source, grid._filters_fit = source, filters_fit
    check_references(grid)
    cells(grid)
    return grid
