"""What a storage may refuse. Two sorts: `Unavailable` has passed, or may pass, by itself; every other `StorageError` does not."""

from cft_ray.errors import UserError


class StorageError(UserError):
    """The storage refused: no such bucket, no rights, no space."""


class Unavailable(StorageError):
    """The storage did not answer, or answered that it cannot now, for as long as was to be waited. What was to be written is
    still where it was, and the same call may succeed later."""
