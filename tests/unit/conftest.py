"""What unit tests share: a bucket without a server."""

import pytest
from obstore.store import MemoryStore

from cft_ray.storage.bucket import Bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """obstore's own store in memory stands behind every bucket's address."""
    store = MemoryStore()
    monkeypatch.setattr(Bucket, "_store", store)
    return store
