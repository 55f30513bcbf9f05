"""What all tests share: an offline, single-threaded world, one Ray, one tiny model."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3double import S3Double

ROOT = Path(__file__).resolve().parent.parent
PLANTED = ROOT / "tests" / "planted"

# Modules that Ray's workers must find too: stage kinds from outside the package.
sys.path.insert(0, str(PLANTED))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PLANTED), os.environ.get("PYTHONPATH"))))

# Before anything imports torch, transformers, vLLM or Ray: they read these once. Ray's workers inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    TQDM_DISABLE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; they are not ours to ship, so elsewhere the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of our own with 2 logical CPUs and a GPU that is only counted, for the whole session."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=1,
            object_store_memory=200 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Double"]:
    """An S3 on loopback that misbehaves when told to."""
    pytest.importorskip("moto.server")
    from s3double import running

    with running() as double:
        yield double


@pytest.fixture
def s3(s3_server: "S3Double", monkeypatch: pytest.MonkeyPatch) -> "S3Double":
    """The same, and this process and its children use it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    s3_server.asked.clear()
    return s3_server
