"""Rows that replay adds."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.data import rows as canonical
from cft_ray.errors import UserError
from cft_ray.strategies import build, named
from cft_ray.strategies.selection import select

SEED = 5


def rows_of(prefix: str, count: int, language: str) -> pa.Table:
    return canonical.table(
        {"id": f"{prefix}-{n}", "language": language, "instruction": f"{prefix} {n}?", "output": f"{prefix} {n}!"}
        for n in range(count)
    )


@pytest.fixture
def phase2() -> pa.Table:
    return rows_of("de", 90, "de")


@pytest.fixture
def english(tmp_path) -> pa.Table:
    table = rows_of("en", 6, "en")
    (tmp_path / "english").mkdir()
    pq.write_table(table, tmp_path / "english" / "rows.parquet")
    return table


@pytest.fixture
def generated(tmp_path, english) -> pa.Table:
    """What the replay stage leaves: the selected prompts in their order, with answers of its own."""
    selected, passes = select(english.num_rows, 9, SEED)
    table = english.take(pa.array(selected))
    answers = [f"answer {n}" for n in range(9)]
    columns = {
        **{name: table[name] for name in table.column_names},
        "id": [f"generated-{n}" for n in range(9)],
        "output": answers,
        "prompt_id": table["id"],
        "pass": pa.array(passes),
        "finish_reason": ["length" if n == 3 else "stop" for n in range(9)],
    }
    (tmp_path / "replay").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "replay" / "rows.parquet")
    return pa.table(columns)


def added(name: str, phase2: pa.Table, folder) -> list[dict]:
    strategy = build(*named(name))
    result = strategy.rows(phase2, {"replay": folder / "replay", "english": folder / "english"}, SEED)
    canonical.validate(result, name)
    assert result.slice(0, phase2.num_rows).select(phase2.column_names).equals(phase2)
    return result.slice(phase2.num_rows).to_pylist()


def test_gr_5_is_a_prefix_of_gr_10(phase2, generated, tmp_path):
    five, ten = added("GR_5", phase2, tmp_path), added("GR_10", phase2, tmp_path)
    assert (len(five), len(ten)) == (5, 9)
    assert five == ten[:5]
    assert [row["output"] for row in ten] == [f"answer {n}" for n in range(9)]
    assert [row["finish_reason"] for row in ten] == ["stop"] * 3 + ["length"] + ["stop"] * 5


def test_er_has_the_prompts_of_gr_with_the_original_answers(phase2, generated, tmp_path):
    gr, er = added("GR_10", phase2, tmp_path), added("ER_10", phase2, tmp_path)
    assert [row["instruction"] for row in er] == [row["instruction"] for row in gr]
    assert [row["output"] for row in er] == [row["instruction"].replace("?", "!") for row in er]


def test_too_short_a_generation_is_refused(phase2, generated, tmp_path):
    with pytest.raises(UserError, match="18 are needed"):
        added("GR_20", phase2, tmp_path)


def test_plain_strategies_leave_the_rows_alone(phase2, tmp_path):
    for name in ("none", "LF_H1", "LF_H2", "LoRA"):
        assert build(*named(name)).rows(phase2, {}, SEED) is phase2
