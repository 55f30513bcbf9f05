"""Who reaches other machines: `cft_ray.storage` alone, and the hub's client only through it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

OPENERS = {
    "obstore",
    "pyarrow.fs",
    "fsspec",
    "s3fs",
    "gcsfs",
    "boto3",
    "botocore",
    "smart_open",
    "cloudpathlib",
    "urllib.request",
}
"""what opens addresses of other machines by itself"""
OF_THE_HUB = {"HfApi", "snapshot_download", "hf_hub_download", "load_dataset", "load_dataset_builder"}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules, and names of modules, that a file imports at any place, for types alone left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def opened(tree: ast.AST) -> set[str]:
    """Which of `OPENERS` a file imports, itself or something inside it."""
    found = set(imported(tree))
    return {opener for opener in OPENERS for name in found if f"{name}.".startswith(f"{opener}.")}


def asked(tree: ast.AST) -> set[str]:
    """What of the hub's clients a file calls."""
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {node.id for node in called if isinstance(node, ast.Name)}
    return (names | {node.attr for node in called if isinstance(node, ast.Attribute)}) & OF_THE_HUB


@pytest.fixture(scope="module")
def modules(repository: Path) -> dict[str, ast.AST]:
    package = repository / "cft_ray"
    return {path.relative_to(package).as_posix(): ast.parse(path.read_text()) for path in package.rglob("*.py")}


def test_no_room_but_storage_opens_what_is_elsewhere(modules):
    by_themselves = {name: opened(tree) for name, tree in modules.items() if not name.startswith("storage/")}
    assert {name: found for name, found in by_themselves.items() if found} == {}
    assert opened(modules["storage/bucket.py"]), "else this test sees nothing"


def test_whoever_asks_the_hub_does_it_patiently(modules):
    hasty = [name for name, tree in modules.items() if asked(tree) and "cft_ray.storage.hub.from_hub" not in set(imported(tree))]
    assert hasty == []
    assert any(asked(tree) for tree in modules.values()), "else this test sees nothing"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from pyarrow import fs", {"pyarrow.fs"}),
        ("import pyarrow.fs as x", {"pyarrow.fs"}),
        ("def f():\n    from obstore import store", {"obstore"}),
        ("import pyarrow\nfrom pyarrow import parquet", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyarrow import fs", set()),
        ("import urllib.parse", set()),
    ],
)
def test_what_counts_as_opening(code, found):
    assert opened(ast.parse(code)) == found
