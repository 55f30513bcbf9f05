"""cluster.yaml against Ray's own schema and loaders, and against the repository that it installs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.aws.config import _check_ami
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig


@pytest.fixture(scope="module")
def cluster(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "cluster.yaml").read_text())


def test_passes_rays_schema_and_loader(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    _check_ami(prepared)
    loaded = AutoscalingConfig(prepared, skip_content_hash=True)
    assert set(loaded.get_node_type_configs()) == {"head", "a100_spot", "a100", "h100_spot"}


def test_scales_from_zero_gpu_machines_and_takes_spot_first(cluster):
    loaded = AutoscalingConfig(prepare_config(cluster), skip_content_hash=True).get_node_type_configs()
    workers = {name: node for name, node in loaded.items() if name != "head"}
    assert all(node.min_worker_nodes == 0 for node in workers.values())
    assert any(node.max_worker_nodes > 0 for node in workers.values())
    types = cluster["available_node_types"]
    spot = {name for name in workers if types[name]["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"}
    assert min(workers[name].priority for name in spot) > max(workers[name].priority for name in set(workers) - spot)
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_sends_no_environment_and_no_results(cluster, repository):
    ignored = (repository / ".gitignore").read_text().split()
    assert cluster["rsync_filter"] == [".gitignore"] and {".venv/", "/runs/"} <= set(ignored)


def test_installs_the_gpu_lock_that_exists(cluster, repository):
    commands = " ".join(cluster["setup_commands"])
    assert "cft-ray/requirements/gpu.lock" in commands
    pins = (repository / "requirements" / "gpu.lock").read_text().splitlines()
    names = {line.partition("==")[0] for line in pins if "==" in line}
    assert {"torch", "ray", "vllm", "deepspeed", "boto3", "uv", "lm-eval"} <= names
