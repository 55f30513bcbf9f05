"""One change after the other in a copy of the tree, and the tests of the room after each.

Starting Python and importing torch, Ray and the like takes longer than most tests of a room. So this process imports them once,
and each run is a fork of it that imports only the package and the tests, from the copy. cosmic-ray's own runner changes the
checkout and starts pytest anew for each change; mutmut forks too, but after having run the tests in the process that is forked,
which polars' threads do not survive.
"""

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from mutants import swapped
from mutants.changes import Change
from mutants.observe import Baseline, Order, Watch, run
from mutants.swapped import CANNOT, Session

PASSED = 0


@contextlib.contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of the checkout as it is, with changes and new files but without what git ignores, beside a link to its data."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="cft-ray-mutants-") as folder:
        tree = Path(folder).resolve() / "tree"
        for name in filter(None, names):
            if (root / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, tree / name)
        if (root.parent / "shared").is_dir():
            (tree.parent / "shared").symlink_to(root.parent / "shared")
        yield tree


def baseline(tree: Path, package: Path, tests: list[str]) -> Baseline:
    """Run the tests without a change, and import in this process what they imported that is not the tree's own.

    Raises:
        RuntimeError: pytest could not even collect them.
    """
    seen = tree.parent / "baseline.json"

    # What the tests start must find the copy as well.
    os.environ["PYTHONPATH"] = str(tree)

    def watched() -> int:
        watch = Watch(tree, package)
        code = run(tree, tests, [watch])
        seen.write_text(json.dumps(asdict(watch.finish())))
        return code

    output = tree.parent / "baseline.txt"
    _forked(watched, output, limit=3600.0)
    if not seen.exists():
        raise RuntimeError(f"the tests do not even run without a change:\n{output.read_text()[-3000:]}")
    found = json.loads(seen.read_text())
    # JSON has no whole numbers as keys.
    found["reached"] = {file: {int(line): ids for line, ids in lines.items()} for file, lines in found["reached"].items()}
    result = Baseline(**found)
    os.environ.update(result.environment)
    for name in result.modules:
        # Some modules import only from within another.
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)
    return result


def noticed(tree: Path, tests: list[str], change: Change, known: Baseline, session: Session | None = None) -> str | None:
    """What the tests say to a change: the first that failed, or None where all passed or none runs the changed line.

    A line that no test runs may run in a process that a test starts, so those tests are asked. Of a waiting session
    (`mutants.swapped`) the answer comes sooner, where it can give one.
    """
    module = tree / change.path
    source, times = module.read_text(encoding="utf-8"), module.stat()
    reached = known.reached.get(change.path, {})
    likely = {test for line in range(change.lines[0], change.lines[1] + 1) for test in reached.get(line, ())}
    imported = any(line in known.imported.get(change.path, ()) for line in range(change.lines[0], change.lines[1] + 1))
    everything = imported and not likely
    if everything:
        likely = {test for tests_there in reached.values() for test in tests_there}
    elif not likely:
        likely = set(known.starters)
        if not likely:
            return None
    module.write_text(change.applied(source), encoding="utf-8")
    try:
        if session is not None and not imported:
            said = session.notice(change.path, source, change.applied(source), likely)
            if said != CANNOT:
                return None if said == swapped.PASSED else said
        # Other files need not even be collected, as `Order` would leave them out.
        files = tests if everything else sorted({test.partition("::")[0] for test in likely})
        said = None
        if everything and change.path in known.noticing:
            # What noticed the last such change most likely notices this one, long before all have been asked.
            said = _asked(tree, [known.noticing[change.path]], known, likely, everything)
        said = said or _asked(tree, files, known, likely, everything)
    finally:
        module.write_text(source, encoding="utf-8")
        # The compiled module of the copy is valid again.
        os.utime(module, ns=(times.st_atime_ns, times.st_mtime_ns))
    if everything and said and said.startswith("FAILED"):
        known.noticing[change.path] = said.removeprefix("FAILED ").partition("::")[0]
    return said


def _asked(tree: Path, files: list[str], known: Baseline, likely: set[str], everything: bool) -> str | None:
    """What the tests of some files say to the tree as it is: the first that failed, or None."""
    output = tree.parent / "output.txt"
    limit = 120 + 10 * sum(known.seconds.values())
    code = _forked(lambda: run(tree, files, [Order(known, likely, everything)], "-x", "--tb=no"), output, limit)
    if code == PASSED:
        return None
    failed = [line for line in output.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].partition(" - ")[0] if failed else f"pytest ended with {code}"


def _forked(work: Callable[[], int], output: Path, limit: float) -> int:
    """Run something in a fork of this process, in a group of its own that is killed after ``limit`` seconds; returns its code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(written, stream)
            # Of the copy's unchanged modules the first run keeps the compiled form.
            if "baseline" not in output.name:
                sys.dont_write_bytecode = True
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ends = time.monotonic() + limit
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < ends:
        time.sleep(0.02)
    # Also what it started and left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
