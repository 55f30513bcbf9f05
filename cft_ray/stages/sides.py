"""What the tables call a data set or a model that a stage looked at."""

from cft_ray.plan.specs import Checkpoint
from cft_ray.plan.stage import Stage


def name(stage: Stage, role: str) -> str:
    """The fingerprint of the input in a role, or the named checkpoint's id or digest."""
    if role in stage.inputs:
        return stage.inputs[role]
    checkpoint: Checkpoint = getattr(stage.spec, "checkpoints")[role]  # noqa: B009 - only some specs have them
    if checkpoint.hub:
        return f"{checkpoint.hub}@{checkpoint.revision}" if checkpoint.revision else checkpoint.hub
    return checkpoint.digest or str(checkpoint.path)
