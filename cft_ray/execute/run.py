"""Run a plan: what is cached is verified, the rest becomes one Ray Tune experiment.

Running the same command again continues: what has an artifact is done. Nothing of Tune's own state is kept.
"""

import contextlib
import logging
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from ray import tune
from ray.exceptions import RayError
from rich.console import Console

from cft_ray.artifacts.lease import check_locks, release_run
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.sound import CorruptArtifact, MissingArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import UserError, without_secrets
from cft_ray.execute.attempt import cause
from cft_ray.execute.cluster import OBJECT_STORE, capacity, connected
from cft_ray.execute.hosts import Hosts
from cft_ray.execute.leavings import clear_left
from cft_ray.execute.progress import Board, Display
from cft_ray.execute.record import save_plan
from cft_ray.execute.schedule import Schedule, State
from cft_ray.execute.searcher import StageSearcher, Starts
from cft_ray.execute.tables import send_cells, send_missing
from cft_ray.execute.trial import trial
from cft_ray.execute.work import Work
from cft_ray.grid.loggers import Logger
from cft_ray.metrics.accounts import accounts, lines
from cft_ray.metrics.reporter import Reporter, start_reporter
from cft_ray.plan.stage import Plan, Stage, skips
from cft_ray.stages.deaths import PREEMPTIONS
from cft_ray.storage.root import Storage

WARMED: dict[str, Callable[[Stage], bool]] = {
    "training": lambda stage: stage.kind == "finetune" and stage.resources.workers == 1,
    "engine": lambda stage: stage.loads is not None,
}
"""Sort of process (`cft_ray.stages.remote.IMPORTS`), in the order in which a grid needs them -> the stages that it serves."""


@dataclass(frozen=True)
class StageOutcome:
    """How one stage ended.

    ``status``: ``done`` (in this run), ``cached``, ``failed``, ``skipped`` (an ancestor failed, or the grid lacks what it
    needs: then ``skip`` says what) or ``interrupted``.
    """

    fingerprint: str
    kind: str
    label: str
    status: str
    error: str | None = None
    skip: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    stages: dict[str, StageOutcome]
    cells: int
    cells_complete: int
    interrupted: bool
    unsent: str | None = None
    """why rows of artifacts did not reach the tables, if so"""

    @property
    def failed(self) -> list[StageOutcome]:
        """Stages that failed themselves; what descends from them is `skipped`."""
        return [stage for stage in self.stages.values() if stage.status == "failed"]

    @property
    def complete(self) -> bool:
        """Whether all is there: every artifact that is not left out for want of what the grid lacks, and its rows."""
        there = all(stage.status in ("done", "cached") or stage.skip is not None for stage in self.stages.values())
        return there and self.cells_complete == self.cells and self.unsent is None

    @property
    def exit_code(self) -> int:
        """0: all there; 1: something is missing; 130: interrupted."""
        if self.interrupted:
            return 130
        return 0 if self.complete else 1


class Interrupt:
    """SIGINT and SIGTERM as a wish to stop cleanly; a second one stops at once (KeyboardInterrupt).

    Signals reach the main thread only; in another thread this is a wish nobody can make.
    """

    def __init__(self) -> None:
        self.wished = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interrupt"]:
        """Handle the signals inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _StopWhenWished(tune.Stopper):
    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._interrupt.wished


def run(
    plan: Plan,
    storage_uri: str,
    *,
    address: str | None = None,
    cpus: int | None = None,
    object_store: int = OBJECT_STORE,
    concurrent: int | None = None,
    loggers: Sequence[Logger] = (),
    console: Console | None = None,
) -> Outcome:
    """Make every artifact of a plan that is not there yet.

    Args:
        plan: what to make.
        storage_uri: folder, ``s3://…`` or ``gs://…``.
        address: of a running Ray cluster; None: a local one, which ends with the run. A driver that is connected to Ray
            already uses that connection.
        cpus: logical CPUs of the local cluster; None: all that this process may use.
        object_store: bytes of shared memory of the local cluster.
        concurrent: most stages at a time; None: as many as fit.
        loggers: what the grid asks for, for every training.
        console: where progress is shown; None: standard error.

    Raises:
        UserError: the storage cannot be written to, or the cluster cannot be reached. Failures of stages are part of the
            outcome instead.
    """
    console = console or Console(stderr=True)
    store = ArtifactStore(Storage(storage_uri))
    store.storage.check_writable()
    check_locks(store.storage)
    save_plan(store.storage, plan)
    name = uuid.uuid4().hex
    anchored = tuple(logger.anchored(Path.cwd()) for logger in loggers)

    def work(fingerprint: str, host: str | None) -> Work:
        stage = plan.stages[fingerprint]
        kinds = {source: plan.stages[source].kind for source in stage.inputs.values()}
        return Work(stage, kinds, store.storage.uri, plan.grid, name, anchored, host)

    with Interrupt().watching() as interrupt:
        cached = verify_cached(plan, store, console, interrupt)
        clear_left(store, cached)
        console.print(f"Connecting to Ray at {address} …" if address else "Starting Ray …", markup=False, highlight=False)
        with connected(address, cpus, object_store) as dashboard, interrupt.watching():  # again: Ray has taken SIGTERM
            reporter = start_reporter(store.storage.uri)
            send_cells(reporter, plan)
            send_missing(reporter, store, cached, plan.grid)
            schedule = Schedule(plan.stages, {made.fingerprint for made in cached}, capacity(), concurrent)
            if not schedule.finished and not interrupt.wished:
                title = f"{plan.grid} → {store.storage.uri}" + (f" · Ray dashboard {dashboard}" if dashboard else "")
                _experiment(schedule, work, Hosts(name), reporter, interrupt, console, title)
            unsent = _send_rest(reporter, store, plan, schedule)
        release_run(store.storage, schedule.running, name)  # of stages that were stopped; their processes are gone now
    outcome = _outcome(plan, schedule, store, interrupt.wished, unsent)
    read = accounts(store.storage)
    for text in lines((f"{stage.kind} {stage.label or key[:12]}", read.get(key)) for key, stage in outcome.stages.items()):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for text in skips(stage.skip for stage in outcome.stages.values() if stage.status == "skipped"):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if unsent is not None:
        text = f"rows of finished stages did not reach the tables: {unsent}. The same command sends them."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if outcome.interrupted:
        console.print("Stopped. Finished stages are kept: the same command continues.")
    return outcome


def _send_rest(reporter: Reporter, store: ArtifactStore, plan: Plan, schedule: Schedule) -> str | None:
    """Send the rows that finished stages could not, and end the tables' writing; what failed, in words."""
    done = [(plan.stages[key].kind, key) for key, state in schedule.states.items() if state == State.DONE]
    problem = None
    for work in (lambda: send_missing(reporter, store, _made(store, done), plan.grid), reporter.finish):
        try:
            work()
        except (UserError, CorruptArtifact, RayError) as error:
            problem = problem or next(iter(without_secrets(str(cause(error))).splitlines()), type(error).__name__)
    return problem


def _made(store: ArtifactStore, names: Iterable[tuple[str, str]]) -> list[Manifest]:
    return [manifest for name in names if (manifest := store.manifest(*name)) is not None]


def rebuild_tables(storage_uri: str, grid: str = "", *, address: str | None = None, console: Console | None = None) -> int:
    """Send to the tables whatever they lack of all artifacts of a storage; returns how many artifacts lacked something.

    An artifact whose rows fit no table, or whose files are damaged, is named and passed over.

    Args:
        storage_uri: the storage.
        grid: name to enter for attempts that have no row.
        address: see `run`.
        console: where artifacts that are passed over are named; None: standard error.
    """
    console = console or Console(stderr=True)
    store = ArtifactStore(Storage(storage_uri))

    def passed_over(made: Manifest, error: Exception) -> None:
        text = f"passed over: {made.kind} {made.fingerprint[:12]}: {str(error).splitlines()[0]}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with connected(address):
        reporter = start_reporter(store.storage.uri)
        sent = send_missing(reporter, store, store.manifests(), grid, unusable=passed_over)
        reporter.finish()
    return sent


def verify_cached(plan: Plan, store: ArtifactStore, console: Console, interrupt: Interrupt | None = None) -> list[Manifest]:
    """The manifests of the plan's artifacts that are there and whole; damaged ones are removed."""
    there = set(store.listing())
    wanted = [(stage.kind, key) for key, stage in plan.stages.items() if (stage.kind, key) in there]
    sound: list[Manifest] = []
    with (
        ThreadPoolExecutor(max_workers=4) as pool,
        console.status("") if wanted and console.is_terminal else contextlib.nullcontext() as status,
    ):
        checks = [pool.submit(store.verify, *name) for name in wanted]
        for number, check in enumerate(checks, 1):
            try:
                sound.append(check.result())
            except MissingArtifact:  # begun, perhaps by another run that is at it now
                continue
            except CorruptArtifact as error:
                console.print(f"removed, to be made again: {error}", markup=False, highlight=False, soft_wrap=True)
            if status is not None:
                status.update(f"verified {number} of {len(wanted)} artifacts")
            if interrupt is not None and interrupt.wished:
                for rest in checks:
                    rest.cancel()
                break
    return sound


def _experiment(
    schedule: Schedule,
    work: Callable[[str, str | None], Work],
    hosts: Hosts,
    reporter: Reporter,
    interrupt: Interrupt,
    console: Console,
    title: str,
) -> None:
    """Run what the schedule lacks; returns when all has ended, or soon after a wish to stop."""
    board = Board.start()
    cold = tuple(sort for sort, of in WARMED.items() if schedule.capacity.one_without_gpus and schedule.all_wait(of))

    def told(fingerprint: str, host: str | None) -> Work:
        nonlocal cold
        first, cold = cold, ()
        return replace(work(fingerprint, host), warm_up=first)

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it tells of files that nobody wants
    folder = tempfile.mkdtemp(prefix="cft-ray-tune-")  # Tune wants a folder; nothing in it is read again
    try:
        with Display(schedule, board, console, title) as display:
            trainable = tune.with_parameters(trial, reporter=reporter, board=board)
            searcher = StageSearcher(schedule, told, hosts, display.changed, lambda: interrupt.wished)
            tune.run(  # not Tuner, which pickles the searcher to be restored some day
                tune.with_resources(trainable, {"cpu": 0, "memory": 1}),  # whole CPUs stay free for the work
                name="plan",
                search_alg=searcher,
                callbacks=[Starts(searcher)],
                num_samples=-1,
                reuse_actors=True,
                max_failures=PREEMPTIONS,  # of the trials' own light actors; the stages' are counted in `watch`
                raise_on_failed_trial=False,
                stop=_StopWhenWished(interrupt),
                storage_path=folder,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                verbose=0,
            )
    finally:
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)


def _trial_name(trial: object) -> str:
    """Short and without the config, which Tune would put in."""
    return str(getattr(trial, "trial_id", "stage"))


def _outcome(plan: Plan, schedule: Schedule, store: ArtifactStore, interrupted: bool, unsent: str | None) -> Outcome:
    present = store.present((stage.kind, key) for key, stage in plan.stages.items())
    gone = "its artifact is no longer in the storage"
    ended = (State.DONE, State.CACHED, State.FAILED, State.SKIPPED)

    def status(key: str) -> str:
        state, there = schedule.states[key], (plan.stages[key].kind, key) in present
        if state in (State.DONE, State.CACHED) and not there:
            return "failed"
        if state in ended:
            return str(state)
        # stopped; it may have been past its end, with only the word of it under way
        return "done" if state == State.RUNNING and there else "interrupted"

    stages = {
        key: StageOutcome(
            key, stage.kind, stage.label, word, schedule.errors.get(key, gone if word == "failed" else None), stage.skip
        )
        for key, stage in plan.stages.items()
        for word in [status(key)]
    }
    there = {key for key, stage in stages.items() if stage.status in ("done", "cached") or stage.skip is not None}
    complete = sum(there.issuperset(cell.roles.values()) for cell in plan.cells)
    unfinished = any(stage.status == "interrupted" for stage in stages.values())
    return Outcome(stages, len(plan.cells), complete, interrupted and unfinished, unsent)
