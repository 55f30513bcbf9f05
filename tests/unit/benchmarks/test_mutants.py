"""Which changes are tried, and that the trial notices what it should and only that."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

pytest.importorskip("cosmic_ray", reason="needs the extra dev")

from mutants.changes import changes_of, sample

SOURCE = '''"""A docstring with 1 + 1."""

def area(width: int | None, /, *sides: int, scale: float = 2.0) -> "int | None":
    if width is None:
        raise ValueError(f"{1 + 1} sides")
    lock.release()
    return width * scale if isinstance(width, int | float) else UserError("x", where=str(3 + 4))
'''


def changed(source: str) -> set[str]:
    """The lines that the changes make."""
    before = source.splitlines()
    made = set()
    for place in changes_of("m.py", source):
        for change in place:
            after = change.applied(source).splitlines()
            assert len(after) == len(before)
            ((number, line),) = [(n, new) for n, (old, new) in enumerate(zip(before, after, strict=True), 1) if old != new]
            assert change.line == number and change.lines[0] <= number <= change.lines[1]
            made.add(" ".join(line.split()))
    return made


def test_only_what_can_change_a_result_is_changed():
    assert changed(SOURCE) == {
        'def area(width: int | None, /, *sides: int, scale: float = 3.0) -> "int | None":',
        'def area(width: int | None, /, *sides: int, scale: float = 1.0) -> "int | None":',
        "if width is not None:",
        "if not width is None:",
        "pass",
        'return width / scale if isinstance(width, int | float) else UserError("x", where=str(3 + 4))',
        'return width * scale if not isinstance(width, int | float) else UserError("x", where=str(3 + 4))',
    }


def test_a_seed_draws_the_same_places_once_each(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    drawn = [sample(tmp_path, "*.py", [], tmp_path, 3, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and len({(change.line, change.column) for change in drawn[0]}) == 3
    assert len(sample(tmp_path, "*.py", ["other*.py"], tmp_path, 99, 0)) == len(changes_of("m.py", SOURCE))
    assert sample(tmp_path, "other*.py", [], tmp_path, 99, 0) == sample(tmp_path, "*.py", ["m*.py"], tmp_path, 99, 0) == []


TRIAL = """
import sys
from pathlib import Path
from mutants.changes import changes_of
from mutants.trial import baseline, noticed
tree = Path(sys.argv[1])
known = baseline(tree, tree / "package", ["tests"])
source = (tree / "package/m.py").read_text()
for place in changes_of("package/m.py", source):
    for change in place:
        line = " ".join(change.applied(source).splitlines()[change.line - 1].split())
        if line in ("LIMIT = 5", "LIMIT = 3", "return n >= LIMIT", "return n - 1", "return n - 2"):
            print(line, noticed(tree, ["tests"], change, known), sep="|")
assert (tree / "package/m.py").read_text() == source
print(known.broken)
"""

PROCESS = """
import subprocess, sys

def test_elsewhere():
    code = "from package import m; print(m.elsewhere(1))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "3\\n"
"""


def test_a_change_is_noticed_by_the_test_that_reaches_it(tmp_path, repository):
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "package" / "__init__.py").touch()
    module = "LIMIT = 4\n\ndef fits(n):\n    return n < LIMIT\n\ndef never(n):\n    return n + 1\n\n"
    tests = "from package import m\n\ndef test_fits():\n    assert m.fits(3)\n\ndef test_broken():\n    assert False\n"
    (tree / "package" / "m.py").write_text(module + "def elsewhere(n):\n    return n + 2\n")
    (tree / "tests" / "test_m.py").write_text(tests)
    (tree / "tests" / "test_process.py").write_text(PROCESS)
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ""\n')
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tree)],
        env={"PYTHONPATH": str(repository / "benchmarks"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, broken = ran.stdout.splitlines()
    assert dict(line.split("|") for line in lines) == {
        "LIMIT = 5": "None",  # nothing tests the bound
        "LIMIT = 3": "FAILED tests/test_m.py::test_fits",  # runs on import: all tests are asked
        "return n >= LIMIT": "FAILED tests/test_m.py::test_fits",
        "return n - 1": "None",  # no test runs it
        "return n - 2": "FAILED tests/test_process.py::test_elsewhere",  # runs in another process: those that start one are asked
    }
    assert broken == "['tests/test_m.py::test_broken']"
