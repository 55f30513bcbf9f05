"""What well-known data sets call their columns: canonical column -> the source's column. Pure.

A canonical column that a format does not name is ``""`` in every row (`id` and `language` aside: ids are then made from
the file and the row's place in it, languages come from the grid).
"""

from collections.abc import Collection

FORMATS: dict[str, dict[str, str]] = {
    "alpaca": {"instruction": "instruction", "input": "input", "output": "output"},
    "orca": {"id": "id", "system": "system_prompt", "instruction": "question", "output": "response"},
    "canonical": {
        "id": "id",
        "language": "language",
        "system": "system",
        "instruction": "instruction",
        "input": "input",
        "output": "output",
    },
}

CONVERSATION = "conversation"
"""Stands for a canonical column where a source has whole conversations, see `cft_ray.data.chat`."""

CHATS: dict[str, dict[str, str]] = {
    "messages": {CONVERSATION: "messages", "system": "system"},
    "sharegpt": {CONVERSATION: "conversations", "system": "system"},
}
"""Formats whose rows are conversations."""

OPTIONAL = frozenset({"id", "system", "input"})
"""Canonical columns that a source may lack where a format, and not the grid, says what they are called."""

AUTO = "auto"
"""In place of a format: the one that the source's columns show."""


def format_of(found: Collection[str]) -> str | None:
    """The format of a source with these columns; None if it is none that is known here."""
    for name in ("canonical", "alpaca", "orca", *CHATS):
        columns = (FORMATS | CHATS)[name]
        needed = columns.values() if name == "canonical" else [columns[key] for key in columns if key not in OPTIONAL]
        if set(needed) <= set(found):
            return name
    return None
