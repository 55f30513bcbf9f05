"""Planted answers, every measure by hand; the perplexity against transformers' own loss, and of a model that knows its word."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from alone import Alone
from tinymodels import of_architecture
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template
from cft_ray.inference.model import load
from cft_ray.plan.specs import ReplayQualitySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.replay_quality.measure import measure_quality
from cft_ray.stages.replay import REPLAY_SCHEMA
from cft_ray.stages.replay_quality import run

TOY = Template(name="toy")


def english() -> pa.Table:
    originals = ["MARK", "one two", "", "drei vier", "unused"]
    return table(
        {"id": f"p{number}", "language": "en" if number < 3 else "de", "instruction": f"Do {number}:", "output": output}
        for number, output in enumerate(originals)
    )


def replay() -> pa.Table:
    """Five answers to four prompts: one whole, one cut off, one empty, one too long for the model, one asked twice."""
    answers = [
        ("p0", "en", "MARK", "stop"),
        ("p1", "en", "MAR", "length"),
        ("p2", "en", "", "stop"),
        ("p3", "de", "x y x y " * 60, "stop"),
        ("p0", "en", "MARK", "stop"),
    ]
    rows = [
        {"id": f"replay/{name}/{number}", "language": language, "system": "", "instruction": f"Do {name[1]}:", "input": ""}
        | {"output": text, "turns": "", "prompt_id": name, "pass": number // 4, "finish_reason": reason}
        for number, (name, language, text, reason) in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schema=REPLAY_SCHEMA)


def measured(model: str, **more: Any) -> tuple[pa.Table, dict[tuple[str, str | None, str], tuple[float, int]]]:
    found = measure_quality(replay(), english(), load(model), TOY, **{"max_length": 200, "seed": 0, **more})
    return found.rows, {(row["side"], row["language"], row["measure"]): (row["value"], row["n"]) for row in found.measures}


def test_measures_by_hand(planted: str) -> None:
    rows, found = measured(planted)
    lengths = np.array([4, 3, 0, 480, 4])
    assert found["generated", None, "characters_mean"] == (pytest.approx(lengths.mean()), 5)
    assert found["generated", None, "characters_q50"] == (4.0, 5)
    assert found["generated", None, "characters_q95"] == (pytest.approx(np.quantile(lengths, 0.95)), 5)
    assert found["generated", "de", "words_mean"] == (240.0, 1)
    assert found["generated", "en", "tokens_mean"] == (pytest.approx(11 / 4), 4)  # a token is a byte here
    assert found["generated", None, "empty"] == (pytest.approx(1 / 5), 5)
    assert found["generated", None, "truncated"] == (pytest.approx(1 / 5), 5)
    assert found["generated", "de", "rep_2"] == (pytest.approx(1 - 2 / 239), 1)  # xy and yx, 239 times
    assert found["generated", None, "rep_2"] == found["generated", "de", "rep_2"]  # one word is no pair
    assert ("generated", "en", "rep_2") not in found
    # Each prompt once: MARK, one two, (empty), drei vier; p4 was not asked.
    assert found["original", None, "words_mean"] == (pytest.approx((1 + 2 + 0 + 2) / 4), 4)
    assert found["original", None, "empty"] == (pytest.approx(1 / 4), 4)
    assert ("original", None, "truncated") not in found
    assert rows.num_rows == 9
    generated = rows.to_pylist()[:5]
    assert [row["truncated"] for row in generated] == [False, True, False, False, False]
    assert [row["scored_tokens"] for row in generated] == [5, 3, 1, 0, 5]  # with the end where the answer came to one


def test_a_model_is_not_surprised_by_its_own_word(planted: str) -> None:
    """It says MARK and ends; of an answer that was cut off the end is not asked."""
    rows = measured(planted)[0].to_pylist()
    assert [rows[place]["nats"] for place in (0, 1, 4)] == pytest.approx([0.0, 0.0, 0.0], abs=1e-4)
    assert rows[2]["nats"] > 50  # an empty answer: it would have said M


@pytest.mark.parametrize("kind", ["mistral", "cohere", "gemma2"])
def test_perplexity_is_that_of_the_model_itself(random_model: str, tmp_path: Path, kind: str) -> None:
    """Cohere scales what its head gives, Gemma 2 caps it, and its attention's scores as well."""
    folder = random_model if kind == "mistral" else of_architecture(kind, tmp_path)
    rows, found = measured(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, tokens = [], []
    for row, ended in zip(replay().to_pylist(), (True, False, True, None, True), strict=True):
        if ended is None:
            continue
        prompt = tokenizer(row["instruction"] + " =").input_ids
        answer = tokenizer(row["output"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ended
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
        nats.append(float(loss) * len(answer))
        tokens.append(len(answer))
    mine = [row for row in rows.to_pylist()[:5] if row["scored_tokens"]]
    assert [row["nats"] for row in mine] == pytest.approx(nats, rel=1e-4)
    assert found["generated", None, "perplexity"] == (pytest.approx(np.exp(sum(nats) / sum(tokens)), rel=1e-4), sum(tokens))


def test_answers_that_do_not_fit_have_no_perplexity(planted: str) -> None:
    rows, found = measured(planted, max_length=4)
    assert not any(row["scored_tokens"] for row in rows.to_pylist())
    assert "perplexity" not in {measure for _, _, measure in found}


def test_a_prompt_that_is_not_there(planted: str) -> None:
    with pytest.raises(UserError) as raised:
        measure_quality(replay(), english().slice(1), load(planted), TOY, max_length=200, seed=0)
    assert "p0" in raised.value.what


def test_stage_in_a_ray_task(tmp_path: Path, ray_session: None, planted: str) -> None:
    for name, rows, schema in (("replay", replay(), REPLAY_SCHEMA), ("english", english(), english().schema)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / FILE, [rows], schema)
    spec = ReplayQualitySpec(template=TOY, max_length=200)
    stage = Stage(spec, {"replay": "a" * 64, "english": "b" * 64, "model": "c" * 64}, resources=Resources(cpus=1))
    inputs = {name: tmp_path / name for name in ("replay", "english")}
    made = Alone(tmp_path, stage, inputs, {"model": planted}, {"replay": {"rows": 5}})
    outputs = run(made)
    assert outputs["rows"] == 5 and outputs["empty"] == pytest.approx(0.2)
    written = pq.read_table(made.output / "tables" / "replay.parquet").to_pylist()
    assert {row["replay"] for row in written} == {"a" * 64}
    whole = {row["measure"]: row for row in written if row["side"] == "generated" and row["language"] is None}
    assert whole["perplexity"]["value"] == pytest.approx(outputs["perplexity"])
    assert pq.read_table(made.output / "rows.parquet").num_rows == 9
