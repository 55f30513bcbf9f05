"""The whole of it: what a grid takes from the internet, copied to one place."""

from collections.abc import Callable
from dataclasses import dataclass

from cft_ray.artifacts.fetched import Fetched, Part
from cft_ray.fetch.copy import Result, copy
from cft_ray.fetch.needs import needs
from cft_ray.fetch.punkt import copy_punkt
from cft_ray.grid.schema import Grid


@dataclass(frozen=True)
class Summary:
    """What a call of `fetch` found and did.

    Args:
        uri: absolute, where everything lies: the grid's `fetched`.
        parts: each part and what became of it.
        punkt: files of nltk's data copied now; None: the grid needs none.
        unknown: benchmarks whose items nobody declares, so that they were not fetched.
    """

    uri: str
    parts: tuple[tuple[Part, Result], ...]
    punkt: int | None
    unknown: tuple[str, ...]


def fetch(grid: Grid, uri: str, tell: Callable[[str], None] = lambda _: None) -> Summary:
    """Copy everything that a grid takes from the internet to a folder or bucket; what is there and whole stays.

    Args:
        grid: what for.
        uri: folder, ``s3://…`` or ``gs://…``.
        tell: is given a line before each download.

    Raises:
        UserError: the grid cannot be planned; the hub or the network refuses; the storage cannot be written to. What
            was whole by then stays, and the next call goes on from there.
    """
    wanted, fetched = needs(grid), Fetched(uri)
    fetched.storage.check_writable()
    done = [(part, copy(part, fetched, tell)) for part in wanted.parts]
    punkt = copy_punkt(fetched) if wanted.punkt else None
    return Summary(fetched.storage.uri, tuple(done), punkt, wanted.unknown)
