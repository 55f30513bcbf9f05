"""Which changes are tried, and that the trial notices what it should and only that."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

pytest.importorskip("cosmic_ray", reason="needs the extra dev")

import mutants.__main__ as mutants
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


def test_what_was_not_noticed_is_found_again_where_it_stands_now_and_counts_once(tmp_path):
    survivor = {"at": "m.py:6", "operator": "DropCall", "line": "lock.release()", "change": "pass", "file": "m.py"}
    survivors = [survivor, survivor | {"line": None}, survivor | {"line": "lock.keep()"}, survivor | {"at": "gone.py:1"}]
    assert mutants._survivors(tmp_path, survivors) == []
    (tmp_path / "m.py").write_text("more = 1\n" + SOURCE + "\n\ndef later():\n    lock.release()\n")
    found = mutants._survivors(tmp_path, survivors)
    assert [(change.operator, change.line) for change in found] == [("DropCall", 7), ("DropCall", 12)]
    before = {"drawn": 12, "tried": 10, "noticed": 6, "survivors": survivors, "equivalent": [1, 2], "commit": "old"}
    now = {"noticed": 1, "survivors": [], "equivalent": [3]}
    joined = mutants._joined(before, now, len(found))
    assert (joined["drawn"], joined["tried"], joined["noticed"], joined["share_noticed"]) == (12, 7, 7, 1.0)
    assert (joined["equivalent"], joined["gone"], joined["whole_trial"]) == ([1, 2, 3], 2, "old")
    assert mutants._joined(joined | {"commit": "new"}, now | {"noticed": 0}, 0)["whole_trial"] == "old"


MODULE = """
import functools

LIMIT = 4

def fits(n):
    return n < LIMIT

def never(n):
    return n + 1

def elsewhere(n):
    return n + 2

def doubling(work):
    @functools.wraps(work)
    def twice(*given):
        return 2 * work(*given)
    return twice

@doubling
def three(n):
    return n + 3

def on_import():
    return 5 - 1

MADE = on_import()

class Box:
    size = 7 * 1

    def area(self, scale=8 * 1):
        return [self.size * (lambda n: n - 9)(side) * scale for side in (10, 11)]
"""
TESTS = """
from package import m

def test_fits():
    assert m.fits(3)

def test_broken():
    assert False

def test_three():
    assert m.three(1) == 8

def test_box():
    assert m.MADE == 4 and m.Box().area() == [7 * 8, 7 * 2 * 8]
"""
PROCESS = """
import subprocess, sys

def test_elsewhere():
    code = "from package import m; print(m.elsewhere(1))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "3\\n"
"""
TRIAL = """
import sys
from pathlib import Path
from mutants.changes import changes_of
from mutants.swapped import CANNOT, Session
from mutants.trial import baseline, noticed
tree = Path(sys.argv[1])
ANEW = {
    "LIMIT = 5", "LIMIT = 3", "return n >= LIMIT", "return n - 1", "return n - 2", "return n - 3", "return 3 * work(*given)",
    "return 5 + 1", "size = 8 * 1", "return [self.size * (lambda n: n + 9)(side) * scale for side in (10, 11)]",
}
known = baseline(tree, tree / "package", ["tests"])
session = Session(tree, ["tests"], known)
assert session.sound
source, quick = (tree / "package/m.py").read_text(), []
for place in changes_of("package/m.py", source):
    for change in place:
        after = change.applied(source)
        line = " ".join(after.splitlines()[change.line - 1].split())
        if line not in ANEW:
            continue
        quick += [line] if session.notice(change.path, source, after, set()) != CANNOT else []
        both = [noticed(tree, ["tests"], change, known, each) for each in (None, session)]
        said = both[0] if both[0] == both[1] else both
        print(line, said, sep="|")
session.close()
assert (tree / "package/m.py").read_text() == source
print(known.broken)
print(quick)
"""


def test_a_change_is_noticed_by_the_test_that_reaches_it(tmp_path, repository):
    """Whether all is imported anew or the changed functions are put into a session that waits."""
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "tests").mkdir()
    (tree / "package" / "__init__.py").touch()
    (tree / "package" / "m.py").write_text(MODULE)
    (tree / "tests" / "test_m.py").write_text(TESTS)
    (tree / "tests" / "test_process.py").write_text(PROCESS)
    (tree / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ""\n')
    ran = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tree)],
        env={"PYTHONPATH": str(repository / "benchmarks"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, broken, quick = ran.stdout.splitlines()
    found = dict(line.split("|") for line in lines)
    assert found["LIMIT = 5"] == "None", "nothing tests the bound"
    assert found["return n - 1"] == "None", "no test runs it"
    assert found["return n - 2"] == "FAILED tests/test_process.py::test_elsewhere", "those that start a process are asked"
    file = "FAILED tests/test_m.py::"
    assert {found["LIMIT = 3"], found["return n >= LIMIT"]} == {f"{file}test_fits"}, "a constant may be used by any test"
    assert {found["return n - 3"], found["return 3 * work(*given)"]} == {f"{file}test_three"}
    inside = "return [self.size * (lambda n: n + 9)(side) * scale for side in (10, 11)]"
    assert {found[line] for line in ("return 5 + 1", "size = 8 * 1", inside)} == {f"{file}test_box"}
    assert broken == "['tests/test_m.py::test_broken']"
    taken = set(ast.literal_eval(quick))
    assert taken >= {"return n >= LIMIT", "return 3 * work(*given)", "return n - 3", inside}
    assert not taken & {"LIMIT = 3", "size = 8 * 1"}, "what runs on import is imported anew"
