"""What the models' own files say, as far as a plan can read them, and the trainings that have to keep to it.

A model that is made here, a folder, a bucket or a copy that `cft-ray fetch` has left can be read; of a model of the hub
nothing is known until it is fetched, and its training says what does not fit before its first step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cft_ray.grid.schema import Grid
from cft_ray.grid.sections import CheckpointSource
from cft_ray.grid.settings import LENGTH, TrainingSettings
from cft_ray.models.limits import (
    Limits,
    Read,
    check_end,
    check_length,
    check_packed,
    check_vocabulary,
    in_folder,
    limits_of,
    positions_in,
)
from cft_ray.storage.location import is_uri, local_path

if TYPE_CHECKING:
    from cft_ray.artifacts.fetched import Fetched

Path = tuple[str | int, ...]


def positions(checkpoint: CheckpointSource, fetched: "Fetched | None") -> int | None:
    """Tokens that a checkpoint reads at most; None: not known, or no limit.

    Args:
        checkpoint: of the grid.
        fetched: the grid's copies of hub models, if it has such.
    """
    if checkpoint.scratch is not None:
        return checkpoint.scratch.max_positions
    read = _reader(checkpoint, fetched)
    return positions_in(read) if read is not None else None


class Fitting:
    """Whether what a grid asks of its models fits them.

    Args:
        grid: where settings come from, for messages.
        fetched: the grid's copies of hub models, if it has such.
    """

    def __init__(self, grid: Grid, fetched: "Fetched | None") -> None:
        self.grid, self.fetched = grid, fetched
        self.notes: dict[str, None] = {}
        """what is done otherwise than the grid's defaults say"""
        self._read: dict[tuple[str, str], Limits] = {}

    def limits(self, model: str, name: str) -> Limits:
        """Of a checkpoint that is not trained from another one; what is not known is not limited.

        Raises:
            UserError: its tokenizer does not fit it.
        """
        if (model, name) not in self._read:
            self._read[model, name] = self._limits(model, name)
        return self._read[model, name]

    def training(self, training: TrainingSettings, limits: Limits, model: str, given: Sequence[Path]) -> None:
        """Whether a model can be trained, on rows as long as the grid says; a note where the model shortens the default.

        Args:
            training: as the grid has it. It stays as it is, so that its fingerprint is the same whether the model's files
                can be read here or not.
            limits: of the model.
            model: what messages call it.
            given: where the grid may give settings of this training, the nearest first.

        Raises:
            UserError: the model is quantised, or the grid says a length that it does not have.
        """
        check_packed(limits, where=self.grid.source.where(("models", model)))
        if limits.positions is None:
            return
        if training.max_length is not None:
            source = self.grid.source
            places = [(*path, "max_length") for path in given]
            place = next((path for path in places if source.gives(path)), places[-1])
            check_length(limits, training.max_length, where=source.where(place), model=model)
        elif limits.positions < LENGTH:
            self.notes[
                f"training.max_length is not set: {limits.positions} tokens, the positions of {model}, "
                f"instead of the default of {LENGTH}"
            ] = None

    def _limits(self, model: str, name: str) -> Limits:
        checkpoint = self.grid.models[model][name]
        if checkpoint.scratch is not None:
            return Limits(positions=checkpoint.scratch.max_positions)
        read = _reader(checkpoint, self.fetched)
        if read is None:
            return Limits()
        found = limits_of(read)
        origin = "path" if checkpoint.path is not None else "hub"
        where = self.grid.source.where(("models", model, name, origin))
        check_vocabulary(found, where=where)
        check_end(found, where=where)
        return found


def _reader(checkpoint: CheckpointSource, fetched: "Fetched | None") -> Read | None:
    """Reads the files of a checkpoint; None where they are not within reach."""
    if checkpoint.path is not None and not is_uri(checkpoint.path):
        return in_folder(local_path(checkpoint.path))
    if checkpoint.path is not None:
        from cft_ray.storage.root import Storage

        return Storage(checkpoint.path).read
    if checkpoint.hub is None or fetched is None:
        return None
    from cft_ray.artifacts.fetched import Part

    part = Part(checkpoint.hub, "model", checkpoint.revision)
    copied, storage = fetched.read(part), fetched.storage
    if copied is None:
        return None
    folder = fetched.folder(part, copied.revision)
    return lambda name: storage.read(*folder, name)
