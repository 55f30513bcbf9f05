"""KL between two models against direct computation on whole rows; the stage; and what is refused."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import torch
from alone import Alone
from tinymodels import copied, spoiled
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.data.templates import render
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
    prompt, answer = render(TOY, row)
    count = 1 + len(prompt.encode())
    ids = torch.tensor([[*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id]])
    p, q = (AutoModelForCausalLM.from_pretrained(folder).double()(ids).logits[0, :-1].log_softmax(-1) for folder in pair)
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
            with pytest.raises(UserError, match="not finite") as caught:
                measured(both)
            assert caught.value.where == broken


def test_a_head_whose_output_is_capped(tmp_path, pair):
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        final_logit_softcapping=0.1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="changes its head's output"):
        measured((str(tmp_path), str(tmp_path)))
