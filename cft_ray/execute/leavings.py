"""What a finished stage's attempts leave beside its artifact: checkpoints, scratch, outputs that came too late. It goes when the
artifact stands, or at the next run, where the process was killed between the two.
"""

import logging
from collections.abc import Iterable

from cft_ray.artifacts.lease import holders
from cft_ray.artifacts.manifest import Manifest
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.storage.errors import StorageError
from cft_ray.storage.local import remove_local

CHECKPOINTS = "checkpoints"


def clear(store: ArtifactStore, made: Manifest) -> None:
    """Remove what the attempts at an artifact that stands have left; what cannot be removed now costs its space only."""
    try:
        remove_local(store.scratch(made.fingerprint))
        store.tidy(made)
        store.storage.delete(CHECKPOINTS, made.fingerprint)
    except (OSError, StorageError) as error:
        logging.getLogger(__name__).warning("leavings of %s stay: %s", made.fingerprint[:12], error)


def clear_left(store: ArtifactStore, standing: Iterable[Manifest]) -> None:
    """The same for artifacts of earlier runs, one listing for all; what a living process may be at work with stays."""
    try:
        kept = {entry.name for entry in store.storage.list(CHECKPOINTS)}
        left = [made for made in standing if made.fingerprint in kept or store.has_left(made)]
        held = holders(store.storage, [made.fingerprint for made in left])
    except StorageError as error:
        logging.getLogger(__name__).warning("leavings were not looked for: %s", error)
        return
    for made in left:
        if made.fingerprint not in held:
            clear(store, made)
