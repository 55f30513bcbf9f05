"""A run killed before and after each thing that it does to the storage, and run again: as if it had not been killed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

WALK = Path(__file__).resolve().parent.parent / "planted" / "killwalk.py"
LIFE = (
    "leases",
    "attempts",
    "tables steps",
    "step-0",
    "artifacts toystage",
    "checkpoints",
    "tables stages",
    "runs",
    "tables cells",
)
"""what a life changes in the storage"""


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_run_killed_anywhere_ends_as_an_undisturbed_one(where, s3, tmp_path):
    root = str(tmp_path / "storage") if where == "folder" else f"s3://{s3.bucket()}/walk"
    command = [sys.executable, str(WALK), root, str(tmp_path)]
    walked = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert walked.returncode == 0, walked.stderr
    points = json.loads(walked.stdout)
    assert all(point["killed"] for point in points)
    assert not [point for point in points if point["different"]]
    named = [point["point"] for point in points]
    for change in LIFE:
        assert any(f" {change}" in name and "-before" in name for name in named), change
        assert any(f" {change}" in name and "-after" in name for name in named), change
    # The work is done once, unless it was killed at it; what it had finished is published by the second run.
    number = {name: int(re.match(r"\d+", name)[0]) for name in named}  # type: ignore[index]
    begun = {number[point["point"]] for point in points if point["begun"]["one"] == 2}
    working = [number[name] for name in named if " tables steps" in name or " step-0" in name][:4]
    assert begun and min(begun) == min(working) and len(begun) <= 5
