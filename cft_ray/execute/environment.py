"""Every environment variable that this package sets for Ray, in one place. Call `prepare` before Ray is imported.

A variable that the user has set stays as it is.
"""

import os
from typing import Any

from cft_ray.machine import prepare_home

SETTINGS = {
    # Ray Train
    "RAY_TRAIN_V2_ENABLED": "1",  # the only Train that this package drives
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint counts once polled: the default of 2 s loses more work
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",  # a cloud node takes minutes to come; the default is 60 s
    # Ray Tune: the searcher decides what runs, the artifact store what is kept
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # else a custom searcher has one pending trial at a time
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # resume is the artifact store; a snapshot a trial grows quadratically
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files of stages
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `run` stops the experiment itself, on SIGTERM too
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # `run` shows errors once, in words
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",  # waiting for a node to start is no mistake
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: no tables beside our own display
    # Ray itself
    "RAY_DEDUP_LOGS": "1",
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a driver without GPUs leaves CUDA_VISIBLE_DEVICES alone
}

TRAVELS = ("CFT_RAY_STORAGE_PATIENCE", "CFT_RAY_CACHE_GIB")
"""Variables of our own that reach the workers of a cluster where they are set."""

LOCAL_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process a training that waits for a cloud to take the node away
}
"""Further ones for a Ray node of our own."""


def prepare() -> None:
    """Set what is not set."""
    prepare_home()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def prepare_local() -> None:
    """Set what is not set, for a local node."""
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)


def local_system_config(cpus: int) -> dict[str, Any]:
    """Settings of the local Ray node.

    Ray ends an idle worker process after a second once there are more processes than CPUs, and our light drivers alone
    are more than that. A process that has imported vLLM or torch is worth keeping for the next stage: allow, for each
    CPU, a trial, a stage, a working process and three idle ones (torch, an engine, nothing yet), and a dozen actors: a
    run's own, and those that Ray Train starts for a training of several workers. As many may start at a time before Ray
    warns.
    """
    processes = 6 * cpus + 12
    return {"num_workers_soft_limit": processes, "worker_maximum_startup_concurrency": processes}
