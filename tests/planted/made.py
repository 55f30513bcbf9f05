"""What the plan knows of an artifact (`cft_ray.plan.why.Artifact`), without a store."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Made:
    kind: str
    version: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
