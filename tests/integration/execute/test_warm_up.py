"""The process that imports for the engines is the one that the first stage with an engine gets."""

import os
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from cft_ray.generation import settings
from cft_ray.plan.stage import Resources
from cft_ray.stages import remote

pytestmark = pytest.mark.usefixtures("ray_session")


def _seen(context: object) -> tuple[int, bool]:
    return os.getpid(), {"vllm", "lm_eval", "cft_ray.evaluation.vllm_model"} <= sys.modules.keys()


class _Context:
    """What `remote.call` asks of a stage's context."""

    host = None
    stage = SimpleNamespace(kind="evaluate", resources=Resources(cpus=1))

    def progress(self) -> None:
        """Nobody watches."""


def test_an_engines_process_has_imported_before_it_is_asked(monkeypatch):
    monkeypatch.setitem(settings.ENVIRONMENT, "CFT_RAY_TEST", "processes of this test alone")
    ray.get(remote.warm_up(), timeout=300)
    context = cast(Any, _Context())
    first, imported = remote.call(_seen, context, engine=True)
    assert imported
    assert remote.call(_seen, context, engine=True) == (first, True)
    assert remote.call(_seen, context)[0] != first  # work without an engine has other processes
