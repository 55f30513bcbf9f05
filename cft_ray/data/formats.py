"""What well-known data sets call their columns: canonical column -> the source's column. Pure.

A canonical column that a format does not name is ``""`` in every row (`id` and `language` aside: ids are then made from
the file and the row's place in it, languages come from the grid).
"""

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
