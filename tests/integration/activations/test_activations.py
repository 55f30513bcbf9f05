"""Mean activations against plain forward passes, one prompt at a time; their stage; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from alone import Alone
from tinymodels import copied, spoiled
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, MistralConfig

from cft_ray.activations.measure import Part, read_model
from cft_ray.activations.prompts import Prompts
from cft_ray.activations.store import Activations
from cft_ray.data.rows import FILE, table, write_rows
from cft_ray.errors import UserError
from cft_ray.grid.settings import ActivationSettings, ScratchModel, Template
from cft_ray.metrics.schemas import body_schema
from cft_ray.plan.specs import ActivationsSpec, Checkpoint, CovarianceSpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import activations as activations_stage
from cft_ray.stages import covariance as covariance_stage
from cft_ray.training.model import create

TEXTS = {
    "en": ["one", "two and two", "a much longer sentence than all the others, for padding", "no"],
    "de": ["eins", "zwei und zwei", "ein viel längerer Satz als alle anderen", "nein"],
}
ROWS = table(
    [
        {"id": f"{code}{n}", "language": code, "instruction": text, "input": "x" if n == 1 else ""}
        for code, texts in TEXTS.items()
        for n, text in enumerate(texts)
    ]
)
SETTINGS = ActivationSettings(batch_tokens=64)
TOY = Template(name="toy")


def measured(folder: str, rows=ROWS, template: Template | None = TOY, settings=SETTINGS) -> tuple[Prompts, np.ndarray]:
    prompts, *parts = read_model(folder, rows, template, settings, where="prompts")
    assert isinstance(prompts, Prompts)
    assert isinstance(parts[0], Part)
    blocks, _, hidden = parts[0].means.shape
    means = np.full((blocks, len(prompts), hidden), np.nan, dtype=np.float32)
    for part in parts:
        assert isinstance(part, Part)
        means[:, part.prompts] = part.means
    return prompts, means


@torch.inference_mode()
def reference(folder: str, texts: list[str]) -> np.ndarray:
    """[blocks, texts, hidden]: hidden states before the final norm, the mean over each text's tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    setattr(model.get_decoder(), "norm" if hasattr(model.get_decoder(), "norm") else "ln_f", torch.nn.Identity())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    each = []
    for text in texts:
        states = model(
            **tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True
        ).hidden_states
        each.append(torch.stack([state[0].double().mean(0) for state in states[1:]]))
    return torch.stack(each, dim=1).numpy()


def test_means_equal_those_of_plain_forward_passes(random_model):
    prompts, means = measured(random_model)
    texts = [f"{text}: x =" if n == 1 else f"{text} =" for texts in TEXTS.values() for n, text in enumerate(texts)]
    np.testing.assert_allclose(means, reference(random_model, texts), rtol=1e-4, atol=1e-5)
    assert prompts.ids == ROWS["id"].to_pylist()
    plain = measured(random_model, template=None)[1]
    joined = [f"{text}\n\nx" if n == 1 else text for texts in TEXTS.values() for n, text in enumerate(texts)]
    np.testing.assert_allclose(plain, reference(random_model, joined), rtol=1e-4, atol=1e-5)


def test_batches_and_order_do_not_matter(random_model):
    means = measured(random_model)[1]
    for tokens in (1, 10_000):
        again = measured(random_model, settings=SETTINGS.model_copy(update={"batch_tokens": tokens}))[1]
        np.testing.assert_allclose(again, means, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(0).permutation(ROWS.num_rows)
    np.testing.assert_allclose(measured(random_model, ROWS.take(order))[1], means[:, order], rtol=1e-4, atol=1e-5)


def test_another_architecture_and_a_sliding_window(tmp_path, random_model):
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    models = {
        "gpt2": GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=128, **shape),
        "window": MistralConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            sliding_window=8,
            **shape,
        ),
    }
    texts = [text for texts in TEXTS.values() for text in texts]
    rows = table([{"id": str(n), "language": "en", "instruction": text} for n, text in enumerate(texts)])
    for name, config in models.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found = measured(str(tmp_path / name), rows, None)[1]
        np.testing.assert_allclose(found, reference(str(tmp_path / name), texts), rtol=1e-4, atol=1e-5)


def test_long_prompts_are_cut_and_counted(random_model):
    prompts, _ = measured(random_model, settings=ActivationSettings(max_length=10), template=None)
    assert prompts.truncated == [
        len(ids) == 10 and len(text) + 1 > 10 for ids, text in zip(prompts.tokens, joined_texts(), strict=True)
    ]
    assert any(prompts.truncated) and max(map(len, prompts.tokens)) == 10
    whole = measured(random_model, settings=ActivationSettings(max_length=10_000), template=None)[0]
    assert max(map(len, whole.tokens)) <= 256  # what the model takes


def joined_texts() -> list[bytes]:
    """One byte is one token."""
    return [(f"{text}\n\nx" if n == 1 else text).encode() for texts in TEXTS.values() for n, text in enumerate(texts)]


# The stages


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    write_rows(folder / FILE, [ROWS])
    return folder


def taken(root: Path, model: str, prompts: Path, spec=None, inputs=None) -> dict[str, Any]:
    spec = spec or ActivationsSpec(template=TOY, settings=SETTINGS)
    stage = Stage(spec, inputs or {"model": "a" * 64, "prompts": "b" * 64}, resources=Resources(cpus=1))
    return activations_stage.run(Alone(root, stage, {"prompts": prompts}, {"model": model}))


def compared(root: Path, left: Path, right: Path, summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the stage says of what `taken` left in two folders."""
    stage = Stage(CovarianceSpec(), {"left": "1" * 64, "right": "2" * 64}, resources=Resources(cpus=1))
    sides = {"left": left / "output", "right": right / "output"}
    return covariance_stage.run(Alone(root, stage, sides, summaries=summaries))


def test_the_stage_writes_activations_and_layers(tmp_path, random_model, prompts):
    outputs = taken(tmp_path, random_model, prompts)
    means = measured(random_model)[1]
    found = Activations.read(tmp_path / "output")
    np.testing.assert_array_equal(found.means, means)
    assert found.prompts["id"].to_pylist() == ROWS["id"].to_pylist()
    assert {key: outputs[key] for key in ("model", "prompts", "n", "truncated", "layers", "hidden_size")} == {
        "model": "a" * 64,
        "prompts": "b" * 64,
        "n": 8,
        "truncated": 0,
        "layers": 2,
        "hidden_size": 128,
    }
    assert pq.read_schema(tmp_path / "output" / "tables" / "layers.parquet").equals(body_schema("layers"))
    layers = pl.read_parquet(tmp_path / "output" / "tables" / "layers.parquet")
    assert len(layers) == 2 * 3 and layers.select("layer", "language").n_unique() == 6
    for row in layers.iter_rows(named=True):
        of = [n for n, code in enumerate(ROWS["language"].to_pylist()) if row["language"] in (None, code)]
        part = means[row["layer"], of].astype(np.float64)
        covariance = np.cov(part, rowvar=False)
        assert row["n"] == len(of)
        np.testing.assert_allclose(row["mean"], part.mean(0), rtol=1e-6)
        assert row["variance"] == pytest.approx(np.trace(covariance), rel=1e-8)
        assert row["frobenius"] == pytest.approx(np.linalg.norm(covariance), rel=1e-8)
        assert row["spectral"] == pytest.approx(np.linalg.norm(covariance, 2), rel=1e-8)


def test_under_ray_it_is_the_same_and_errors_come_through(tmp_path, random_model, prompts, ray_session):
    outputs = taken(tmp_path / "a", random_model, prompts)
    assert outputs["n"] == 8
    np.testing.assert_array_equal(Activations.read(tmp_path / "a" / "output").means, measured(random_model)[1])
    with pytest.raises(UserError, match="no such folder"):
        taken(tmp_path / "b", "nowhere", prompts)


def test_a_single_prompt_has_no_variance(tmp_path, random_model):
    write_rows(tmp_path / FILE, [ROWS.slice(0, 1)])
    taken(tmp_path / "out", random_model, tmp_path)
    layers = pl.read_parquet(tmp_path / "out" / "output" / "tables" / "layers.parquet")
    assert layers["variance"].null_count() == len(layers) == 4
    summaries = {"left": {"model": "l"}, "right": {"model": "r"}}
    with pytest.raises(UserError, match="single prompt"):
        compared(tmp_path / "c", tmp_path / "out", tmp_path / "out", summaries)


def test_covariance_between_two_models(tmp_path, random_model, other_model, prompts):
    spec = ActivationsSpec(checkpoints={"model": Checkpoint(hub="org/base", revision="r")}, template=TOY, settings=SETTINGS)
    summaries = {
        "left": taken(tmp_path / "left", random_model, prompts),
        "right": taken(tmp_path / "right", other_model, prompts, spec=spec, inputs={"prompts": "b" * 64}),
    }
    outputs = compared(tmp_path / "c", tmp_path / "left", tmp_path / "right", summaries)
    assert (outputs["left"], outputs["right"], outputs["n"]) == ("a" * 64, "org/base@r", 8)
    rows = pl.read_parquet(tmp_path / "c" / "output" / "tables" / "similarity.parquet")
    sides = [measured(model)[1].astype(np.float64) for model in (random_model, other_model)]
    for layer, (one, other) in enumerate(zip(*sides, strict=True)):
        value = dict(rows.filter(layer=layer).select("measure", "value").iter_rows())
        change = np.cov(one, rowvar=False) - np.cov(other, rowvar=False)
        assert value["covariance_frobenius"] == pytest.approx(np.linalg.norm(change), rel=1e-8)
        assert value["covariance_spectral"] == pytest.approx(np.linalg.norm(change, 2), rel=1e-8)
        means = one.mean(0), other.mean(0)
        assert value["activation_cosine"] == pytest.approx(means[0] @ means[1] / np.prod([np.linalg.norm(m) for m in means]))

    write_rows(tmp_path / FILE, [ROWS.slice(1)])
    taken(tmp_path / "fewer", random_model, tmp_path)
    with pytest.raises(UserError, match="other prompts"):
        compared(tmp_path / "d", tmp_path / "left", tmp_path / "fewer", summaries)


def test_models_of_other_shapes(tmp_path, random_model, prompts):
    shallow = create(ScratchModel(layers=1, intermediate_size=128, max_positions=256), 0, tmp_path / "model")
    taken(tmp_path / "left", random_model, prompts)
    taken(tmp_path / "right", str(shallow), prompts)
    summaries = {"left": {"model": "l"}, "right": {"model": "r"}}
    with pytest.raises(UserError, match="2 layers of 128 and 1 layers of 128"):
        compared(tmp_path / "c", tmp_path / "left", tmp_path / "right", summaries)


# What is refused


def test_weights_that_are_not_numbers_or_not_there(tmp_path, random_model):
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        measured(spoiled(random_model, tmp_path / "nan", "model.layers.1.mlp.up_proj.weight"))

    def overflow(weights):
        for name in ("up", "down"):
            weights[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e30

    with pytest.raises(UserError, match="not finite"):
        measured(copied(random_model, tmp_path / "large", overflow))
    with pytest.raises(UserError, match=r"lack weights.*layers\.0\.self_attn\.k_proj"):
        measured(copied(random_model, tmp_path / "less", lambda weights: weights.pop("model.layers.0.self_attn.k_proj.weight")))


def test_prompts_without_text(random_model):
    rows = table([{"id": "a", "language": "en", "output": "only an answer"}])
    with pytest.raises(UserError, match="no prompt"):
        measured(random_model, rows)


def test_no_prompts(tmp_path, random_model):
    write_rows(tmp_path / FILE, [ROWS.slice(0, 0)])
    with pytest.raises(UserError, match="empty"):
        taken(tmp_path / "out", random_model, tmp_path)
