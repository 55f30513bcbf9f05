"""A sentence-transformers model as the stage uses it: its limits, what is counted as cut, and what is no model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cft_ray.embedding.lexical import MOST_CHARACTERS, _vector
from cft_ray.embedding.model import Embedder
from cft_ray.errors import UserError

WORDS = ("[PAD]", "[UNK]", "[CLS]", *(f"w{number}" for number in range(40)))
LIMIT = 6


def words() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    return made


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One BERT layer with random weights that reads six tokens, the first of them its own."""
    folder = tmp_path_factory.mktemp("encoder")
    fast = PreTrainedTokenizerFast(tokenizer_object=words(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **size)).save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=LIMIT)
    SentenceTransformer(modules=[transformer, Pooling(8), Normalize()], device="cpu").save(str(folder / "model"))
    return folder / "model"


def text(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


@pytest.mark.parametrize(("asked", "limit"), [(None, LIMIT), (LIMIT, LIMIT), (400, LIMIT), (3, 3)])
def test_no_more_is_read_than_the_model_takes_or_is_asked_for(encoder: Path, asked: int | None, limit: int) -> None:
    embedder = Embedder(str(encoder), max_length=asked)
    texts = [text(count) for count in (limit - 2, limit - 1, limit, limit + 1, 30)]
    found = embedder.encode(texts, batch_size=2)
    assert embedder.limit == limit and found.truncated == 3 and found.vectors.dtype == np.float32
    # What is cut is what the model itself gives of the beginning.
    plain = SentenceTransformer(str(encoder), device="cpu")
    expected = plain.encode([texts[0], *[texts[1]] * 4])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


def test_texts_are_counted_by_tokens_and_not_by_letters(encoder: Path) -> None:
    embedder = Embedder(str(encoder))
    long_words = ["w1" + "x" * 100, " ".join(["w3"] * (LIMIT - 1)), "é" * 50]
    assert embedder.encode(long_words).truncated == 0
    assert embedder.encode(["w1 " * LIMIT, "w2"]).truncated == 1 and embedder.encode(["w2"]).truncated == 0


def test_a_model_without_a_limit_cuts_nothing(tmp_path: Path) -> None:
    static = StaticEmbedding(words(), embedding_dim=4)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    embedder = Embedder(str(tmp_path / "static"))
    found = embedder.encode([text(39), text(2)])
    assert found.truncated == 0 and found.vectors.shape == (2, 4)


@pytest.mark.parametrize(("asked", "limit"), [(None, MOST_CHARACTERS), (9999, MOST_CHARACTERS), (5, 5)])
def test_the_embedder_without_weights_counts_letters_and_cuts_what_it_counts(asked: int | None, limit: int) -> None:
    embedder = Embedder(None, max_length=asked, threads=1)
    texts = ["ab " * 2000, "a" * limit, "a" * (limit + 1), "ab"]
    found = embedder.encode(texts)
    assert embedder.limit == limit and found.truncated == 2 and torch.get_num_threads() == 1
    for vector, given in zip(found.vectors, texts, strict=True):
        seen = _vector(given[:limit])
        np.testing.assert_allclose(vector, seen / np.linalg.norm(seen), atol=1e-6)


def test_numbers_that_are_none_are_told_with_their_text(encoder: Path, tmp_path: Path) -> None:
    broken = SentenceTransformer(str(encoder), device="cpu")
    with torch.no_grad():
        next(broken.parameters())[WORDS.index("w7")] = float("nan")
    broken.save(str(tmp_path / "broken"))
    embedder = Embedder(str(tmp_path / "broken"))
    assert np.isfinite(embedder.encode(["w1", "w2"]).vectors).all()
    with pytest.raises(UserError, match=r"2 of 4 texts is not finite, e\.g\. of 'w1 w7 w9'") as raised:
        embedder.encode(["w1", "w1 w7 w9", "w2", "w7"])
    assert raised.value.where == str(tmp_path / "broken")
    with pytest.raises(UserError, match="of 'w7 " + "w1 " * 19 + "'"):
        embedder.encode(["w7 " + "w1 " * 40])


def test_what_is_no_model(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Embedder(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"no modules\.json"):
        Embedder(str(encoder.parent / "bert"))
    for name, change in {
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "no configuration": lambda folder: (folder / "config.json").write_text("{"),
        "another module": lambda folder: (folder / "modules.json").write_text(
            json.dumps([{"idx": 0, "name": "0", "path": "", "type": "nowhere.Module"}])
        ),
        "no list of modules": lambda folder: (folder / "modules.json").write_text('[{"idx": 0}]'),
    }.items():
        folder = tmp_path / name
        shutil.copytree(encoder, folder)
        change(folder)
        with pytest.raises(UserError, match="not a readable sentence-transformers model") as raised:
            Embedder(str(folder))
        assert raised.value.where == str(folder)


def test_where_each_letter_is_a_token_its_own_tokens_count(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    shutil.copytree(encoder, folder)
    (file,) = folder.rglob("tokenizer.json")
    state = json.loads(file.read_text())
    state["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps(state))
    embedder = Embedder(str(folder))
    assert [embedder.encode(["x" * count]).truncated for count in (LIMIT - 1, LIMIT, LIMIT + 1)] == [0, 1, 1]
