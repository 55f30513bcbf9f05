"""Ray-distributed experiment grids for continual fine-tuning of language models.

`cft_ray.open(uri)` gives the results of a storage as polars LazyFrames; everything else is in the rooms below
(`docs/design.md`) and in the command `cft-ray`. Importing the package imports nothing heavy.
"""

from typing import TYPE_CHECKING

from cft_ray.errors import StageFailed, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from cft_ray.metrics.reading import Results

__version__ = "0.1.0"
__all__ = ["StageFailed", "UserError", "__version__", "open"]


def open(uri: "str | Path") -> "Results":
    """The results under a storage: tables, `results()` and `summary()` as polars LazyFrames.

    Args:
        uri: the grid's ``storage.uri``: a folder, ``s3://…`` or ``gs://…``.

    Raises:
        UserError: there is no such storage, or it cannot be reached.
    """
    from cft_ray.metrics.reading import open_results  # polars and pyarrow only where results are read

    return open_results(uri)
