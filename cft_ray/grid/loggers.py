"""Further places for training curves, beside the tables: what a grid's `loggers` may ask for.

The same model goes from the YAML to the training's process; `cft_ray.training.loggers` builds from it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cft_ray.errors import UserError
from cft_ray.grid.settings import Settings
from cft_ray.grid.words import wrong

OPTIONS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("folder",),
    "mlflow": ("tracking_uri", "experiment"),
    "wandb": ("project", "entity", "mode", "dir"),
}
"""Logger -> its options."""
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Logger -> the package that brings its module, which has the logger's name."""


class Logger(Settings):
    """One logger. Credentials come from the environment (`MLFLOW_TRACKING_TOKEN`, `WANDB_API_KEY` …)."""

    name: Literal["tensorboard", "mlflow", "wandb"] = Field(description="which")
    folder: str | None = Field(
        default=None, min_length=1, description="tensorboard: where the event files go, on the machine that trains; `tensorboard`"
    )
    tracking_uri: str | None = Field(default=None, min_length=1, description="mlflow: a server or folder; mlflow's own default")
    experiment: str | None = Field(default=None, min_length=1, description="mlflow: the experiment's name; `cft-ray`")
    project: str | None = Field(default=None, min_length=1, description="wandb: the project; wandb's own default")
    entity: str | None = Field(default=None, min_length=1, description="wandb: the user or team")
    mode: Literal["online", "offline", "disabled"] | None = Field(default=None, description="wandb: whether it sends")
    dir: str | None = Field(default=None, min_length=1, description="wandb: where its files go")

    @model_validator(mode="after")
    def _own_options(self) -> "Logger":
        for option in self.options:
            if option not in OPTIONS[self.name]:
                raise wrong(f"{self.name} has no option {option!r}", f"it has {', '.join(OPTIONS[self.name])}")
        return self

    def anchored(self, folder: Path) -> "Logger":
        """The same with relative folders below ``folder``: a training's process has a working directory of its own."""
        given: dict[str, str] = {}
        for option in ("folder", "dir", "tracking_uri"):
            value = getattr(self, option) or ("tensorboard" if self.name == "tensorboard" and option == "folder" else None)
            if value is not None and "://" not in value and not (option == "tracking_uri" and value.startswith("databricks")):
                given[option] = str(folder.absolute() / Path(value).expanduser())
        return self.model_copy(update=given)

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


def lacking(loggers: list[Logger]) -> UserError | None:
    """What a run with these loggers would fail for on this machine: the first whose package is not installed.

    Looks without importing; a training's machine has what this one has, or says the same before it loads its model.
    """
    for number, logger in enumerate(loggers):
        if find_spec(logger.name) is None:
            package = PACKAGES[logger.name]
            return UserError(
                f"the package {package} is not installed", where=f"loggers[{number}]: {logger.name}", fix=f"pip install {package}"
            )
    return None
