"""An engine that holds numbers and trains nothing: what checkpoints carry to and fro."""

from collections.abc import Iterator
from typing import Any

import torch


class Numbers:
    """One rank's parts of two parameters, all of one value.

    Args:
        value: of every number.
        size: numbers in the larger parameter.
    """

    def __init__(self, value: float, size: int = 64) -> None:
        self.state = {
            "a": {"weight": torch.full((size,), value), "exp_avg": torch.full((size,), value / 2)},
            "b": {"weight": torch.full((3,), -value)},
        }
        self.restored: list[int] = []

    def shares(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        yield from self.state.items()

    def begin_restore(self, step: int) -> None:
        self.restored.append(step)

    def end_restore(self) -> None:
        self.restored.append(-1)

    @property
    def value(self) -> Any:
        """The one value of all numbers."""
        (found,) = set(self.state["a"]["weight"].tolist())
        assert set(self.state["a"]["exp_avg"].tolist()) == {found / 2} and set(self.state["b"]["weight"].tolist()) == {-found}
        return found
