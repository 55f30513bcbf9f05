"""The processes that import while nothing else can run are those that the first training and the first engine get."""

import json
import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: in a shared Ray node other tests' engines may have imported already.
RUN = """
import io, json, sys
from pathlib import Path
from loadingstage import LoadingSpec
from rich.console import Console
from toygraph import World, plan
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.execute.run import WARMED, run
from cft_ray.plan.stage import Resources, Stage
from cft_ray.storage.root import Storage

world = World(Path(sys.argv[1]))
first = world.stage("first", seconds=float(sys.argv[2]))
asked = [
    Stage(LoadingSpec(name=name, model="m", engine=engine), {"role": first.fingerprint}, label=name, resources=Resources(cpus=1))
    for name, engine in (("engine", True), ("work", False))
]
WARMED["training"] = lambda stage: stage.label == "work"
outcome = run(plan(first, *asked), world.storage, cpus=1, console=Console(file=io.StringIO()))
assert outcome.exit_code == 0, [stage.error for stage in outcome.failed]
store = ArtifactStore(Storage(world.storage))
print(json.dumps({stage.label: store.verify(stage.kind, stage.fingerprint).outputs for stage in asked}))
"""


def test_processes_have_imported_before_they_are_asked(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CFT_RAY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", RUN, str(tmp_path / "world"), "30"]
    (tmp_path / "world").mkdir()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["engine"]["imported"] == ["engine"] and told["work"]["imported"] == ["training"]
    assert told["engine"]["pid"] != told["work"]["pid"]
