"""Strategies that fail or do wrong on one rank of several, while the others go on into their collectives."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cft_ray.strategies.base import Strategy


class FailsOnOne(Strategy):
    def prepare(self, model: Any, inputs: Mapping[str, Path], seed: int) -> Any:
        if os.environ["RANK"] == "1":
            raise ZeroDivisionError("planted\non one rank")
        return model


class ComputesOtherwiseOnOne(Strategy):
    def prepare(self, model: Any, inputs: Mapping[str, Path], seed: int) -> Any:
        if os.environ["RANK"] == "1":
            model.model.norm.register_forward_hook(lambda module, given, hidden: 4 * hidden)
        return model
