"""What a trial is told: one stage and what surrounds it, as JSON text, because Tune copies and compares its configs.

A stage kind from outside the package is registered where its spec's module is imported, so that module travels by name.
"""

import json
from dataclasses import dataclass
from importlib import import_module

from cft_ray.grid.loggers import Logger
from cft_ray.plan.stage import Stage


@dataclass(frozen=True)
class Work:
    """One stage to be run.

    Args:
        stage: what to run.
        kinds: fingerprint of an input -> its kind (which names its artifact).
        storage: absolute URI of the storage root.
        grid: name of the grid, for the tables.
        run: unique name of this run, for the leases.
        loggers: what the grid asks for.
        host: name of the actor that keeps its model (see `cft_ray.execute.hosts`); None: none does.
        warm_up: what processes are to import for later stages (`cft_ray.stages.remote.IMPORTS`).
    """

    stage: Stage
    kinds: dict[str, str]
    storage: str
    grid: str
    run: str
    loggers: tuple[Logger, ...] = ()
    host: str | None = None
    warm_up: tuple[str, ...] = ()

    def encode(self) -> str:
        """As text, for another process."""
        fields = {**vars(self), "stage": self.stage.to_json(), "loggers": [logger.model_dump() for logger in self.loggers]}
        return json.dumps({"module": type(self.stage.spec).__module__, **fields})

    @classmethod
    def decode(cls, text: str) -> "Work":
        """Inverse of `encode`."""
        fields = json.loads(text)
        import_module(fields.pop("module"))
        fields["stage"] = Stage.from_json(fields["stage"])
        fields["loggers"] = tuple(Logger(**each) for each in fields["loggers"])
        fields["warm_up"] = tuple(fields["warm_up"])
        return cls(**fields)
