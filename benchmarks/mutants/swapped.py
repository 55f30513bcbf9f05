"""A pytest session that has collected its tests and waits: for each change a fork of it gets the changed functions and runs them.

Most of what a change costs is not its tests but to start pytest and to import the package and the tests again. So they are
imported once, and a fork puts the changed code into the functions that are there. That is the same as importing the changed
module as long as nothing of it has run on import; where it has (constants, classes, decorators, what these call), and where
the function is not found, the change is left to a run that imports everything (`mutants.trial`). The changed module lies on
the disk all the while, for processes that tests start.
"""

import contextlib
import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.main import pytest_runtestloop as run_items

from mutants.observe import Baseline, Order, run

CANNOT = "cannot"
PASSED = "passed"
_OPTIMIZED = 0x1
_EXPRESSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


def swaps(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """(code before, code after) of the functions in which two versions of a module differ, the outermost of each first.

    None: they differ in what runs when the module is imported.
    """
    if _plain(old) != _plain(new):
        return None
    found: list[tuple[CodeType, CodeType]] = []
    for before, after in zip(_nested(old), _nested(new), strict=True):
        if before.co_flags & _OPTIMIZED and before.co_name not in _EXPRESSIONS:
            if before != after:
                found += _inside(before, after)
        elif (deeper := swaps(before, after)) is None:
            return None
        else:
            found += deeper
    return found


def _plain(code: CodeType) -> tuple[Any, ...]:
    """What a code does by itself, whatever the functions in it do."""
    constants = [(type(value), repr(value)) for value in code.co_consts if not isinstance(value, CodeType)]
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_exceptiontable, names, constants, len(_nested(code))


def _nested(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _inside(before: CodeType, after: CodeType) -> list[tuple[CodeType, CodeType]]:
    """A function's pair, and those of the functions in it that may live already (a decorator's)."""
    found = [(before, after)]
    if len(_nested(before)) == len(_nested(after)):
        for one, other in zip(_nested(before), _nested(after), strict=True):
            found += _inside(one, other) if one != other else []
    return found


def put_in(path: Path, before: str, after: str) -> bool:
    """Give the living functions of a module their changed code; False: not all of them could get it.

    Args:
        path: of the module.
        before: its source, as it was imported.
        after: its changed source.
    """
    pairs = swaps(compile(before, str(path), "exec"), compile(after, str(path), "exec"))
    if not pairs:
        return False
    living = [each for each in gc.get_objects() if type(each) is FunctionType and each.__code__.co_filename == str(path)]
    covered: set[CodeType] = set()
    for old, new in pairs:
        mine = [each for each in living if each.__code__ == old]
        if not mine and old not in covered:
            return False
        try:
            for each in mine:
                each.__code__ = new
        except ValueError:  # it closes over other variables
            return False
        covered |= set(_nested(old))
    return True


class _Server:
    """The plugin in the waiting session."""

    def __init__(self, root: Path, known: Baseline, asked: int, answered: int) -> None:
        self.root, self.known, self.asked, self.answered = root, known, asked, answered

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Answer one question after the other, instead of running what was collected."""
        with os.fdopen(self.asked, "rb") as asked, os.fdopen(self.answered, "wb") as answered:
            while True:
                try:
                    question = pickle.load(asked)  # noqa: S301 - of our own process
                except EOFError:
                    os._exit(0)
                pickle.dump(self._answer(session, question), answered)
                answered.flush()

    def _answer(self, session: pytest.Session, question: dict[str, Any]) -> str:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = "pytest ended with an error"
            try:
                os.setsid()
                os.close(read)
                said = self._child(session, question)
            finally:
                os.write(write, said.encode())
                os._exit(0)
        os.close(write)
        ends, said = time.monotonic() + question["limit"], None
        while time.monotonic() < ends:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(0.01)
        else:
            said = "the tests did not end"
        # Also what it started and left behind.
        _quietly(lambda: os.killpg(child, signal.SIGKILL))
        os.waitpid(child, 0)
        os.set_blocking(read, False)  # what was left behind in a group of its own may hold the pipe
        with os.fdopen(read, "rb", buffering=0) as pipe:
            return said or (pipe.read(65_536) or b"").decode() or "pytest ended with an error"

    def _child(self, session: pytest.Session, question: dict[str, Any]) -> str:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        if question["path"] is not None and not put_in(self.root / question["path"], question["before"], question["after"]):
            return CANNOT
        Order(self.known, question["likely"], question["path"] is None).pytest_collection_modifyitems(session.items)
        failed: list[str] = []
        session.config.pluginmanager.register(_First(failed))
        with contextlib.suppress(session.Failed, session.Interrupted):
            run_items(session)
        return failed[0] if failed else PASSED


class _First:
    def __init__(self, failed: list[str]) -> None:
        self.failed = failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(f"{'FAILED' if report.when == 'call' else 'ERROR'} {report.nodeid}")


class Session:
    """A waiting session of a tree's tests.

    Args:
        root: of the tree.
        tests: folders of the tests.
        known: what they do where nothing is changed.
    """

    def __init__(self, root: Path, tests: Sequence[str], known: Baseline) -> None:
        self.limit = 120 + 10 * sum(known.seconds.values())
        (asked, ask), answer = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(ask)
                os.close(answer[0])
                silent = os.open(root.parent / "session.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(silent, stream)
                server = _Server(root, known, asked, answer[1])
                run(root, tests, [server], "-x", "--tb=no", f"--basetemp={root.parent / 'tests'}")
            finally:
                os._exit(70)
        os.close(asked)
        os.close(answer[1])
        self._ask, self._answer = os.fdopen(ask, "wb"), os.fdopen(answer[0], "rb")
        # Forks of this process must do what the tests do elsewhere.
        said = self._said({"path": None, "likely": set(known.seconds)})
        self.sound = said == PASSED
        if not self.sound:
            print(f"every change is imported anew, since without one a fork says: {said}", flush=True)

    def notice(self, path: str, before: str, after: str, likely: set[str]) -> str:
        """The first test that fails with a change; `PASSED`; or `CANNOT`: the functions could not be changed.

        Args:
            path: of the module, from the root of the tree, where the changed source lies.
            before: its source.
            after: its changed source.
            likely: node ids of the tests that reach the change.
        """
        return self._said({"path": path, "before": before, "after": after, "likely": likely}) if self.sound else CANNOT

    def _said(self, question: dict[str, Any]) -> str:
        try:
            pickle.dump(question | {"limit": self.limit}, self._ask)
            self._ask.flush()
            return pickle.load(self._answer)  # noqa: S301 - of our own process
        except (EOFError, BrokenPipeError):
            return "no session"

    def close(self) -> None:
        """End it."""
        for pipe in (self._ask, self._answer):
            _quietly(pipe.close)
        _quietly(lambda: os.kill(self.process, signal.SIGKILL))
        _quietly(lambda: os.waitpid(self.process, 0))


def _quietly(work: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError):
        work()
