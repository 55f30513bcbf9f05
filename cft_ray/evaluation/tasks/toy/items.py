"""Items and scores of the toy world's tasks; loaded by the harness from the YAMLs beside it."""

from difflib import SequenceMatcher
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset


def load(items: str = "rows.parquet", language: str = "en", **_: Any) -> dict[str, Dataset]:
    """The items of one language.

    Args:
        items: Parquet file of canonical rows, from the harness' metadata.
        language: ISO 639-1 code, from the task's ``dataset_kwargs``.
    """
    with pq.ParquetFile(items) as file:
        rows = file.read(columns=["id", "language", "system", "instruction", "input", "output"])
    return {"test": Dataset(rows.filter(pc.field("language") == language))}


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """``exact_match``: the answer is the right one, white space around it aside; ``similarity``: share of matching
    characters (Ratcliff and Obershelp), which shows an ability that fades before it is gone."""
    answer, target = results[0].strip(), doc["output"].strip()
    return {
        "exact_match": float(answer == target),
        "similarity": SequenceMatcher(None, answer, target, autojunk=False).ratio(),
    }
