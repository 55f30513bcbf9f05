"""What a grid names instead of making it: data sets and published or local checkpoints, as specs say them.

A local file is known by its content; a data set that is still to be supplied by its name, so that it can be planned with.
"""

from typing import TYPE_CHECKING

from cft_ray.data.formats import AUTO, CHATS, FORMATS
from cft_ray.grid.insight import Embedder
from cft_ray.grid.schema import Grid
from cft_ray.grid.sections import DatasetSource
from cft_ray.plan.config import local_config
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import Checkpoint, DatasetSpec, Spec
from cft_ray.storage.location import is_uri, local_path

if TYPE_CHECKING:
    from cft_ray.artifacts.fetched import Fetched, Part

_UNRESOLVED = "unresolved:"


def is_unresolved(spec: Spec) -> bool:
    """Whether a spec is that of a data set that is still to be supplied."""
    return isinstance(spec, DatasetSpec) and (spec.digest or "").startswith(_UNRESOLVED)


def dataset_part(spec: DatasetSpec) -> "Part":
    """What a data set of the hub asks of its repository, for `cft-ray fetch` and what it left."""
    from cft_ray.artifacts.fetched import Part

    assert spec.hub is not None
    config, split = (spec.config, spec.split) if spec.hub_files is None else (None, None)
    return Part(spec.hub, "dataset", spec.revision, config, split, spec.hub_files, spec.languages)


class Sources:
    """The grid's data sets and named checkpoints."""

    def __init__(self, grid: Grid, digests: Digests) -> None:
        self.grid, self.digests = grid, digests
        self.fetched = fetched_of(grid)
        """what `cft-ray fetch` has left for machines without the hub, where the grid says so"""
        self._checkpoints: dict[tuple[str, str], Checkpoint] = {}

    def dataset(self, name: str) -> DatasetSpec:
        """A data set of the grid.

        Raises:
            UserError: its local files are missing or cannot be read.
        """
        return self.source(self.grid.datasets[name], ("datasets", name), name)

    def source(self, source: DatasetSource, path: tuple[str | int, ...], name: str = "") -> DatasetSpec:
        """A data set that stands at ``path`` in the grid; ``name`` keeps those apart that are still to be supplied.

        Raises:
            UserError: its local files are missing or cannot be read.
        """
        languages, rows = source.languages, source.rows
        allowed = self.grid.allow_left_out if source.allow_left_out is None else source.allow_left_out
        if source.toy is not None:
            return DatasetSpec(toy=source.toy, columns={}, languages=languages, rows=rows, allow_left_out=allowed)
        form = None if source.columns else source.format or AUTO
        columns = source.columns or (FORMATS | CHATS).get(form or "", {})
        if source.hub is not None:
            spec = DatasetSpec(
                hub=source.hub,
                revision=source.revision,
                config=source.config,
                split=source.split,
                hub_files=source.hub_files,
                columns=columns,
                format=form,
                languages=languages,
                rows=rows,
                allow_left_out=allowed,
            )
            return self._copied(spec, self.grid.source.where(("datasets", name, "hub")))
        if source.files is None:
            return DatasetSpec(digest=f"{_UNRESOLVED}{name}", columns=columns, format=form, languages=languages, rows=rows)
        where = self.grid.source.where((*path, "files"))
        files = source.files if is_uri(source.files) else str(local_path(source.files))
        digest = self.digests.files(files, languages, where=where)
        return DatasetSpec(
            files=files,
            digest=digest,
            columns=columns,
            format=form,
            languages=languages,
            rows=rows,
            allow_left_out=allowed,
        )

    def judge(self) -> Checkpoint | None:
        """The local judge that the grid takes as it is; None where it takes none.

        Raises:
            UserError: its local folder is missing or holds no model.
        """
        judge = self.grid.evaluation.judge
        if judge is None or (judge.hub is None and judge.path is None):
            return None
        if judge.path is None:
            return self._published(judge.hub, judge.revision, ("evaluation", "judge"))
        where = self.grid.source.where(("evaluation", "judge", "path"))
        path = judge.path if is_uri(judge.path) else str(local_path(judge.path))
        if not is_uri(path):
            local_config(path, where=where)
        return Checkpoint(path=path, digest=self.digests.folder(path, where=where))

    def checkpoint(self, model: str, name: str) -> Checkpoint:
        """A checkpoint that the grid takes as it is; the same object whenever it is asked for.

        Raises:
            UserError: its local folder is missing or holds no model.
        """
        key = (model, name)
        if key not in self._checkpoints:
            source = self.grid.models[model][name]
            if source.path is None:
                self._checkpoints[key] = self._published(source.hub, source.revision, ("models", model, name))
            else:
                where = self.grid.source.where(("models", model, name, "path"))
                path = source.path if is_uri(source.path) else str(local_path(source.path))
                if not is_uri(path):
                    local_config(path, where=where)
                self._checkpoints[key] = Checkpoint(path=path, digest=self.digests.folder(path, where=where))
        return self._checkpoints[key]

    def embedder(self, model: Embedder) -> Checkpoint:
        """The embedding model that the grid names.

        Raises:
            UserError: its local folder is missing or holds no sentence-transformers model.
        """
        if model.path is None:
            return self._published(model.hub, model.revision, ("insight", "embedding", "model"))
        where = self.grid.source.where(("insight", "embedding", "model", "path"))
        path = model.path if is_uri(model.path) else str(local_path(model.path))
        return Checkpoint(path=path, digest=self.digests.folder(path, where=where, mark="modules.json"))

    def _published(self, hub: str | None, revision: str | None, path: tuple[str | int, ...]) -> Checkpoint:
        """A model of the hub; its commit and where its copy lies, where it has been fetched."""
        if self.fetched is None or hub is None:
            return Checkpoint(hub=hub, revision=revision)
        from cft_ray.artifacts.fetched import Part

        part = Part(hub, "model", revision)
        commit = self.fetched.find(part, where=self.grid.source.where((*path, "hub"))).revision
        return Checkpoint(hub=hub, revision=commit, path=self.fetched.location(part, commit))

    def _copied(self, spec: DatasetSpec, where: str) -> DatasetSpec:
        """The same, with its commit and where its copy lies, where it has been fetched."""
        if self.fetched is None:
            return spec
        part = dataset_part(spec)
        commit = self.fetched.find(part, where=where).revision
        return spec.model_copy(update={"revision": commit, "files": self.fetched.location(part, commit)})


def fetched_of(grid: Grid) -> "Fetched | None":
    """What `cft-ray fetch` has left for machines without the hub, where the grid says so."""
    if grid.fetched is None:
        return None
    from cft_ray.artifacts.fetched import Fetched  # loads pyarrow, which no other plan needs

    return Fetched(grid.fetched)
