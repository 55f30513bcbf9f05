"""KL between two models against direct computation on whole rows; the stage; and what is refused."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import torch
from alone import Alone
from tinymodels import copied, of_architecture, spoiled
from transformers import AutoModelForCausalLM, AutoTokenizer

from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.data.templates import conversation, prompts
from cft_ray.divergence.measure import Divergence, measure_divergence
from cft_ray.errors import UserError
from cft_ray.grid.settings import DivergenceSettings, Template
from cft_ray.metrics.schemas import body_schema
from cft_ray.plan.specs import Checkpoint, DivergenceSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import divergence as divergence_stage

TOY = Template(name="toy")
SETTINGS = DivergenceSettings(batch_tokens=100)
ROWS = table(
    [
        {"id": f"{code}{n}", "language": code, "instruction": question, "output": answer}
        for code, pairs in {
            "en": [("what is one and one", "two"), ("say nothing", ""), ("", "plain text to learn from")],
            "de": [("was ist eins und eins, wenn man es genau nimmt", "zwei"), ("wie", "so, und nicht anders: so")],
        }.items()
        for n, (question, answer) in enumerate(pairs)
    ]
)


@pytest.fixture(scope="module")
def pair(random_model, other_model) -> tuple[str, str]:
    return random_model, other_model


def measured(pair: tuple[str, str], rows: pa.Table = ROWS, settings: DivergenceSettings = SETTINGS) -> Divergence:
    return measure_divergence(*pair, rows, TOY, settings, where="rows")


@torch.inference_mode()
def reference(pair: tuple[str, str], row: dict[str, str]) -> tuple[list[float], list[float]]:
    """KL in float64 at the tokens of prompt and answer; one byte is one token."""
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    (prompt,), answer = prompts(TOY, conversation(TOY, row)), row["output"]
    count = 1 + len(prompt.encode())
    ids = torch.tensor([[*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id]])
    p, q = (
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()(ids).logits[0, :-1].log_softmax(-1)
        for folder in pair
    )
    values = (p.exp() * (p - q)).sum(-1).tolist()
    return values[: count - 1], values[count - 1 :]


def test_it_equals_a_direct_computation(pair):
    found = measured(pair)
    expected = [reference(pair, row) for row in ROWS.to_pylist()]
    rows = found.rows.to_pylist()
    assert [row["id"] for row in rows] == ROWS["id"].to_pylist()
    for row, (prompt, answer) in zip(rows, expected, strict=True):
        assert (row["prompt_tokens"], row["answer_tokens"]) == (len(prompt), len(answer))
        assert row["prompt_nats"] == pytest.approx(sum(prompt), rel=1e-4)
        assert row["answer_nats"] == pytest.approx(sum(answer), rel=1e-4)
    values = {(row["measure"], row["language"]): row["value"] for row in found.similarity("l", "r")}
    assert len(values) == 9
    for language in (None, "en", "de"):
        chosen = [each for each, row in zip(expected, rows, strict=True) if language in (None, row["language"])]
        prompt, answer = ([value for each in chosen for value in each[part]] for part in (0, 1))
        assert values["kl_prompt", language] == pytest.approx(sum(prompt) / len(prompt), rel=1e-4)
        assert values["kl_answer", language] == pytest.approx(sum(answer) / len(answer), rel=1e-4)
        whole = prompt + answer
        assert values["kl_all", language] == pytest.approx(sum(whole) / len(whole), rel=1e-4)


def test_batches_do_not_matter_and_a_model_is_at_no_distance_from_itself(pair):
    found = measured(pair).summary
    again = measured(pair, settings=SETTINGS.model_copy(update={"batch_tokens": 1})).summary
    assert again == pytest.approx(found, rel=1e-5)
    alone = measured((pair[0], pair[0])).summary
    assert alone["kl_all"] == 0


def test_long_rows_are_left_out_and_counted(pair):
    found = measured(pair, settings=DivergenceSettings(max_length=30))
    lengths = {row["id"]: 1 + row["prompt_tokens"] + row["answer_tokens"] for row in measured(pair).rows.to_pylist()}
    assert found.rows["id"].to_pylist() == [name for name, length in lengths.items() if length <= 30]
    assert found.too_long == sum(length > 30 for length in lengths.values()) > 0
    with pytest.raises(UserError, match="none of 5 rows"):
        measured(pair, settings=DivergenceSettings(max_length=4))


def test_a_sample_is_a_seeded_part(pair):
    parts = [measured(pair, settings=DivergenceSettings(sample=2, seed=seed)).rows["id"].to_pylist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2] and len(parts[0]) == 2
    assert measured(pair, settings=DivergenceSettings(sample=99)).summary["rows"] == 5
    accounts = [measured(pair, settings=DivergenceSettings(sample=sample)).account for sample in (2, 99)]
    assert [(account.came, account.used, account.set_aside) for account in accounts] == [(5, 2, {"not_in_sample": 3}), (5, 5, {})]


# The stage


def context(root: Path, pair: tuple[str, str], data: Path) -> Alone:
    spec = DivergenceSpec(checkpoints={"left": Checkpoint(digest="d")}, template=TOY, settings=SETTINGS)
    stage = Stage(spec, {"right": "b" * 64, "data": "c" * 64}, resources=Resources(cpus=1))
    return Alone(root, stage, {"data": data}, dict(zip(("left", "right"), pair, strict=True)))


def test_the_stage_writes_its_tables_in_process_and_under_ray(tmp_path, pair, request):
    write_rows(tmp_path / FILE, [ROWS])
    made = context(tmp_path / "a", pair, tmp_path)
    outputs = divergence_stage.run(made)
    expected, account = measured(pair), outputs.pop("account")
    assert account == expected.account.checked("divergence").model_dump()
    assert (account["came"], account["used"]) == (ROWS.num_rows, expected.rows.num_rows)
    assert outputs == {"data": "c" * 64, **expected.summary}
    assert pl.read_parquet(made.output / "rows.parquet").equals(pl.DataFrame(pl.from_arrow(expected.rows)))
    similarity = pl.read_parquet(made.output / "tables" / "similarity.parquet")
    assert similarity.columns == body_schema("similarity").names
    assert (set(similarity["left"]), set(similarity["right"])) == ({"d"}, {"b" * 64})
    assert similarity.filter(pl.col("language").is_null(), measure="kl_all")["value"].to_list() == [outputs["kl_all"]]

    request.getfixturevalue("ray_session")
    again = divergence_stage.run(context(tmp_path / "b", pair, tmp_path))
    assert again.pop("account") == account
    assert again == pytest.approx(outputs)
    with pytest.raises(UserError, match="no such folder"):
        divergence_stage.run(context(tmp_path / "c", (pair[0], "nowhere"), tmp_path))


# What is refused


def test_other_vocabularies(tmp_path, pair):
    model = AutoModelForCausalLM.from_pretrained(pair[0])
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    model.resize_token_embeddings(len(tokenizer) + 3)
    model.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    with pytest.raises(UserError, match="have 259 and 262 tokens"):
        measured((pair[0], str(tmp_path / "larger")))

    other = Path(copied(pair[0], tmp_path / "swapped")) / "tokenizer.json"
    text = other.read_text()
    other.write_text(text.replace('"a":', '"QQ":').replace('"b":', '"a":').replace('"QQ":', '"b":'))
    with pytest.raises(UserError, match="tokenizers"):
        measured((pair[0], str(tmp_path / "swapped")))


def test_weights_that_are_not_numbers(tmp_path, pair):
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        broken = spoiled(pair[0], tmp_path / name, name)
        for both in ((pair[0], broken), (broken, pair[0])):
            with pytest.raises(UserError, match=f"tensor {name} holds NaN") as caught:
                measured(both)
            assert caught.value.where == f"{broken}/model.safetensors"


@pytest.mark.parametrize("kind", ["cohere", "gemma2", "granite"])
def test_scales_and_caps_are_part_of_the_prediction(tmp_path, kind):
    """Against the model's own forward pass: eager attention, its own head, row by row."""
    folders = [of_architecture(kind, tmp_path / str(seed), seed) for seed in (0, 1)]
    found = measured((folders[0], folders[1])).rows.to_pylist()
    for row, values in zip(found, ROWS.to_pylist(), strict=True):
        prompt, answer = reference((folders[0], folders[1]), values)
        assert row["prompt_nats"] == pytest.approx(sum(prompt), rel=1e-3)
        assert row["answer_nats"] == pytest.approx(sum(answer), rel=1e-3)


def test_a_head_whose_output_is_changed_otherwise(pair, monkeypatch):
    folder = pair[0]
    own = type(AutoModelForCausalLM.from_pretrained(folder))
    forward = own.forward

    def scaled(*arguments, **named):
        output = forward(*arguments, **named)
        output.logits = output.logits * 0.25
        return output

    monkeypatch.setattr(own, "forward", scaled)
    with pytest.raises(UserError, match="changes its head's output"):
        measured((folder, folder))
