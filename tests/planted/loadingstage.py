"""A stage kind that loads a model, as evaluation does: its process counts how often it loaded one."""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import ray

from cft_ray.plan.specs import SPECS, Spec, locator
from cft_ray.stages import remote
from cft_ray.stages.context import StageContext


class LoadingSpec(Spec):
    kind: ClassVar[str] = "loadingstage"
    module: ClassVar[str | None] = "loadingstage"
    name: str
    model: str | None = None
    """None: nothing that can be shared"""
    engine: bool = False
    """in the processes of those that ask an engine"""
    dies: str | None = locator("a file; where it is not there, it is made and the process dies")

    @property
    def loads(self) -> str | None:
        return self.model


SPECS["loadingstage"] = LoadingSpec
_loaded: list[str | None] = []


def run(context: StageContext) -> dict[str, Any]:
    spec = context.stage.spec
    assert isinstance(spec, LoadingSpec)
    return remote.call(work, context, engine=spec.engine)


def work(context: StageContext) -> dict[str, Any]:
    spec = context.stage.spec
    assert isinstance(spec, LoadingSpec)
    if spec.dies is not None and not Path(spec.dies).exists():
        Path(spec.dies).touch()
        os.kill(os.getpid(), 9)
    if not _loaded or _loaded[-1] != spec.model:
        _loaded.append(spec.model)
    imported = [sort for sort, modules in remote.IMPORTS.items() if sys.modules.keys() >= {*modules}]
    return {"pid": os.getpid(), "loads": len(_loaded), "gpus": ray.get_gpu_ids(), "imported": imported}
