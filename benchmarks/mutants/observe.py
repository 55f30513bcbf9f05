"""A run of pytest inside a process that is thrown away afterwards: in which order, for how long at most, and what it saw."""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

# The same examples in each run, and none kept from an earlier one.
OPTIONS = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-p", "no:logging")

# What the interpreter calls the start of a process.
STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty"}


@dataclass
class Baseline:
    """What the room's tests do where nothing is changed."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of each test that passes, by its node id."""
    broken: list[str] = field(default_factory=list)
    """Tests that fail without any change."""
    reached: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    """The tests that run a line, by module and line."""
    imported: dict[str, list[int]] = field(default_factory=dict)
    """The lines that run on import, by module."""
    modules: list[str] = field(default_factory=list)
    """Everything foreign that was imported, in the order of import."""
    environment: dict[str, str] = field(default_factory=dict)
    """As the tests' own set-up leaves it."""
    starters: list[str] = field(default_factory=list)
    """The tests that start processes, in which nobody sees which lines run."""
    noticing: dict[str, str] = field(default_factory=dict)
    """The file of tests that last noticed a change of a line that runs on import, by module."""


class Watch:
    """A pytest plugin that writes down what a :class:`Baseline` holds."""

    def __init__(self, root: Path, package: Path) -> None:
        self.root, self.seen = root, Baseline()
        self.measured = coverage.Coverage(data_file=None, config_file=False, source=[str(package)])
        self.measured.start()
        self.running = ""
        sys.addaudithook(self._started)

    def _started(self, event: str, _: Any) -> None:
        """Told by the interpreter."""
        if event in STARTS and self.running and self.running not in self.seen.starters:
            self.seen.starters.append(self.running)

    def pytest_collection_finish(self) -> None:
        """The tests' conftest has set the environment by now."""
        self.seen.environment = dict(os.environ)

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Lines that run from here on belong to this test."""
        self.measured.switch_context(item.nodeid)
        self.running = item.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and teardown of one test are three reports."""
        self.seen.seconds[report.nodeid] = self.seen.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.seen.broken.append(report.nodeid)

    def finish(self) -> Baseline:
        """What was seen, once pytest has ended."""
        self.measured.stop()
        data = self.measured.get_data()
        for file in data.measured_files():
            module, lines = Path(file).relative_to(self.root).as_posix(), data.contexts_by_lineno(file)
            self.seen.reached[module] = {line: sorted(filter(None, tests)) for line, tests in lines.items()}
            self.seen.imported[module] = [line for line, tests in lines.items() if "" in tests]
        # What the tree itself holds must be read anew by each run.
        self.seen.modules = [
            name
            for name, module in sys.modules.items()
            if (origin := getattr(getattr(module, "__spec__", None), "origin", None)) and not origin.startswith(str(self.root))
        ]
        return self.seen


class Order:
    """A pytest plugin that runs the tests most likely to notice first, each with a time limit, and stops at the first that does.

    Args:
        baseline: of the unchanged tree.
        likely: node ids of the tests that reach the change, or the module.
        everything: whether the tests of other files are run as well.
    """

    def __init__(self, baseline: Baseline, likely: set[str], everything: bool) -> None:
        self.baseline, self.likely, self.everything = baseline, likely, everything

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Tests of one file stay together, since they share what was set up for them.

        Where tests reach the change, the other tests of their files run after them: what a fixture sets up for a whole file
        counts as reached by the first test alone. The other files cannot notice anything, unless the line runs on import: then
        any test may use what it made.
        """
        files = {item.path for item in items if item.nodeid in self.likely}
        broken = self.baseline.broken
        items[:] = [item for item in items if item.nodeid not in broken and (item.path in files or self.everything)]
        weights: dict[tuple[bool, str], float] = defaultdict(float)
        for item in items:
            weights[self._group(item)] += self._seconds(item)
        items.sort(key=lambda item: (not self._group(item)[0], weights[self._group(item)], item.path, self._seconds(item)))
        for item in items:
            # Far more than a busy machine needs: what a change makes endless is noticed too. By a thread that ends the process:
            # what is raised in a test, Hypothesis takes for a failure and tries again.
            item.add_marker(pytest.mark.timeout(20 + 10 * self._seconds(item), method="thread"), append=False)

    def _group(self, item: pytest.Item) -> tuple[bool, str]:
        return item.nodeid in self.likely, str(item.path)

    def _seconds(self, item: pytest.Item) -> float:
        return self.baseline.seconds.get(item.nodeid, 0.0)


def run(root: Path, tests: Sequence[str], plugins: Sequence[Any], *options: str) -> int:
    """Run tests of a tree in this process, which is of no use for anything else afterwards; returns pytest's exit code."""
    if (root / "cft_ray").is_dir():
        import ray

        # A test that starts Ray takes many seconds, and half of what it runs is in processes that are not watched.
        ray.init = lambda *_, **__: pytest.skip("starts Ray")
    os.chdir(root)
    sys.path.insert(0, str(root))
    return int(pytest.main([*OPTIONS, f"--rootdir={root}", *options, *tests], plugins=list(plugins)))
