"""Whose fault a death is: a node that goes takes with it what ran there, and that says nothing of the work."""

from ray.exceptions import LocalRayletDiedError, NodeDiedError, RayActorError

PREEMPTIONS = 50
"""times that work is started again because a node was lost"""


def is_preemption(error: BaseException) -> bool:
    """Whether a node went, with whatever ran there."""
    if isinstance(error, NodeDiedError | LocalRayletDiedError):
        return True
    if not isinstance(error, RayActorError):
        return False
    said = str(error).lower()
    return error.preempted or "node has died" in said or "node was terminated" in said or "node died" in said
