"""cluster.yaml against Ray's own schema and loaders, and against the repository that it installs."""

import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
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


def test_what_starts_a_machine_is_what_aws_takes(cluster):
    """AWS's own model of the request, without a request."""
    request = botocore.session.get_session().get_service_model("ec2", "2016-11-15").operation_model("RunInstances").input_shape
    for name, node in cluster["available_node_types"].items():
        report = ParamValidator().validate({**node["node_config"], "MinCount": 1, "MaxCount": 1}, request)
        assert not report.has_errors(), (name, report.generate_report())


def test_disks_are_encrypted_and_metadata_wants_a_token(cluster):
    for node in cluster["available_node_types"].values():
        config = node["node_config"]
        assert config["MetadataOptions"]["HttpTokens"] == "required" and config["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert config["BlockDeviceMappings"] and all(disk["Ebs"]["Encrypted"] is True for disk in config["BlockDeviceMappings"])


def _policies(repository: Path) -> dict[str, list[dict[str, Any]]]:
    """Worker's and head's policy, as the documents give them."""
    blocks = re.findall(r"```json\n(.*?)```", (repository / "docs" / "cluster.md").read_text(), re.DOTALL)
    worker, head = (json.loads(block)["Statement"] for block in blocks)
    return {"cft-ray-worker": worker, "cft-ray-head": head}


def _actions(statements: list[dict[str, Any]]) -> set[str]:
    given = [statement["Action"] for statement in statements]
    return {action for actions in given for action in ([actions] if isinstance(actions, str) else actions)}


def test_head_and_workers_have_profiles_of_their_own(cluster, repository):
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in cluster["available_node_types"].items()}
    assert profiles.pop("head") == "cft-ray-head" and set(profiles.values()) == {"cft-ray-worker"}
    assert set(_policies(repository)) == {"cft-ray-head", "cft-ray-worker"}


def test_nobody_has_more_rights_than_the_work_needs(cluster, repository):
    policies = _policies(repository)
    assert {action.partition(":")[0] for action in _actions(policies["cft-ray-worker"])} == {"s3"}
    assert not [action for statements in policies.values() for action in _actions(statements) if "*" in action]
    head = policies["cft-ray-head"]
    # What Ray's node provider calls, machines that are stopped instead of ended aside.
    assert {action for action in _actions(head) if action.startswith("ec2:")} == {
        "ec2:DescribeInstances", "ec2:DescribeImages", "ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags",
    }  # fmt: skip
    assert cluster["provider"]["cache_stopped_nodes"] is False
    changing = [one for one in head if {"ec2:TerminateInstances", "ec2:CreateTags"} & _actions([one])]
    assert changing and all("Condition" in one for one in changing)
    (run,) = [one for one in head if _actions([one]) == {"ec2:RunInstances"} and "Condition" in one]
    allowed = run["Condition"]["StringEquals"]
    workers = {node["node_config"]["InstanceType"] for name, node in cluster["available_node_types"].items() if name != "head"}
    assert set(allowed["ec2:InstanceType"]) == workers and allowed["aws:RequestTag/ray-cluster-name"] == cluster["cluster_name"]
    (passed,) = [one["Resource"] for one in head if one["Action"] == "iam:PassRole"]
    assert passed.endswith(":role/cft-ray-worker")
