"""Blocks, files and the embedder without weights, against what is written out by hand."""

from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.data.rows import COLUMNS, FILE, table
from cft_ray.embedding import store
from cft_ray.embedding.blocks import Blocks, blocks_of, read_block
from cft_ray.embedding.lexical import DIMENSION, MOST_CHARACTERS, _vector, lexical
from cft_ray.embedding.work import PROBLEM, Block, embedded
from cft_ray.errors import UserError
from cft_ray.grid.settings import EmbeddingSettings
from cft_ray.plan.stage import Resources


def rows(count: int) -> pa.Table:
    return table(
        [{"id": str(n), "language": "de" if n % 3 else "en", "instruction": f"say {n}", "output": "x"} for n in range(count)]
    )


def written(folder: Path, count: int, group: int = 4) -> Path:
    pq.write_table(rows(count), folder / FILE, row_group_size=group)
    return folder


def ngrams(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for word in text.split():
        whole = f" {word} "
        found.update(whole[n : n + 2] for n in range(len(whole) - 1))
        found.update(whole[n : n + 3] for n in range(len(whole) - 2))
    return found


@pytest.mark.parametrize(("rows", "size", "lengths"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1])])
def test_blocks_cover_all_rows_once(rows, size, lengths):
    for chosen in (None, np.arange(rows) * 3):
        blocks = Blocks(rows * 3, chosen, size) if chosen is not None else Blocks(rows, None, size)
        assert (len(blocks), blocks.rows) == (len(lengths), rows)
        places = [blocks.places(number) for number in range(len(blocks))]
        assert [len(each) for each in places] == lengths
        assert np.concatenate(places).tolist() == (np.arange(rows) if chosen is None else chosen).tolist()


def test_a_sample_is_ascending_and_a_small_data_set_whole(tmp_path):
    written(tmp_path, 10)
    for sample, chosen in ((None, None), (10, None), (11, None), (9, 9), (1, 1)):
        blocks = blocks_of(tmp_path, EmbeddingSettings(sample=sample, block_rows=3))
        assert (blocks.available, blocks.size) == (10, 3)
        if chosen is None:
            assert blocks.chosen is None
        else:
            assert blocks.chosen is not None and len(set(blocks.chosen.tolist())) == chosen == blocks.rows
            assert (np.diff(blocks.chosen) > 0).all() and blocks.chosen.max() < 10
    drawn = {
        tuple(found.tolist())
        for seed in (0, 0, 1, 2)
        if (found := blocks_of(tmp_path, EmbeddingSettings(sample=4, seed=seed)).chosen) is not None
    }
    assert len(drawn) == 3


def test_what_is_no_data_set_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        blocks_of(tmp_path, EmbeddingSettings())
    (tmp_path / FILE).write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="not a readable Parquet"):
        blocks_of(tmp_path, EmbeddingSettings())
    written(tmp_path, 0)
    with pytest.raises(UserError, match="empty"):
        blocks_of(tmp_path, EmbeddingSettings())
    pq.write_table(rows(3).drop_columns(["output"]), tmp_path / FILE)
    with pytest.raises(UserError, match="no column 'output'"):
        read_block(tmp_path, np.array([0]))


@pytest.mark.parametrize("places", [[0], [3, 4], [0, 3, 4, 7, 9], list(range(10)), [9]])
def test_rows_are_read_from_their_row_groups(tmp_path, places):
    found = read_block(written(tmp_path, 10), np.array(places))
    assert found["id"].to_pylist() == [str(place) for place in places]
    assert found.column_names == [name for name in COLUMNS if name != "turns"]  # the last question is embedded, and its answer


def vectors(languages: list[str], start: float) -> pa.Table:
    numbers = np.arange(2 * len(languages), dtype=np.float32) + np.float32(start)
    column = pa.FixedSizeListArray.from_arrays(numbers, 2)
    ids = [f"{start}{n}" for n in range(len(languages))]
    return pa.table({"block": [0] * len(ids), "id": ids, "language": languages, "vector": column})


def test_an_artifact_has_its_vectors_in_order_and_the_means_of_all_and_each_language(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_ROWS", 3)
    blocks = [vectors(["de", "en"], 0), vectors(["de"], 10), vectors(["sw"], 20), vectors(["de", "de", "en", "en"], 30)]
    assert store.write(tmp_path, blocks) == {"de": 4, "en": 3, "sw": 1}
    assert [path.name for path in sorted((tmp_path / store.PARTS).iterdir())] == ["part-00000.parquet", "part-00001.parquet"]
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / store.PARTS).iterdir())] == [3, 5]
    read = list(store.read(tmp_path))
    together, names = np.concatenate([part for _, part in read]), np.concatenate([languages for languages, _ in read])
    assert together.tolist() == [[0, 1], [2, 3], [10, 11], [20, 21], [30, 31], [32, 33], [34, 35], [36, 37]]
    assert names.tolist() == ["de", "en", "de", "sw", "de", "de", "en", "en"] and together.dtype == np.float32
    means = {row["language"]: row for row in pq.read_table(tmp_path / store.MEANS).to_pylist()}
    for language in (None, "de", "en", "sw"):
        mine = together if language is None else together[names == language]
        mean = mine.astype(np.float64).mean(axis=0)
        assert means[language]["n"] == len(mine)
        assert means[language]["mean"] == pytest.approx(mean.tolist()) and means[language]["norm"] == pytest.approx(
            np.hypot(*mean)
        )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no row has any text"):
        store.write(empty, [])


def test_ngrams_are_summed_as_the_signs_of_their_digests():
    text = "ab abc"
    expected = np.zeros(DIMENSION)
    for ngram, count in ngrams(text).items():
        digest = int.from_bytes(sha256(ngram.encode()).digest(), "big")
        expected += count * np.array([1 if digest >> (DIMENSION - 1 - bit) & 1 else -1 for bit in range(DIMENSION)])
    assert ngrams(text)["ab"] == 2 and ngrams(text)[" ab"] == 2 and ngrams(text)["ab "] == 1
    assert _vector("aB  ABC").tolist() == expected.tolist()
    assert not _vector("  ").any()


def test_vectors_of_the_embedder_without_weights_have_length_one_and_long_texts_are_cut():
    model = lexical()
    found = np.asarray(model.encode(["reverse the word", "reverse the word", " ", "count"], convert_to_numpy=True))
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 0, 1], abs=1e-6)
    assert (found[0] == found[1]).all() and found[0] @ found[3] < 0.5
    assert found[0] == pytest.approx(_vector("reverse the word") / np.linalg.norm(_vector("reverse the word")), abs=1e-6)
    assert model.get_sentence_embedding_dimension() == DIMENSION
    start = "a" * MOST_CHARACTERS
    long = np.asarray(model.encode([start, start + " bcd", start[:-1]], convert_to_numpy=True))
    assert (long[0] == long[1]).all() and (long[0] != long[2]).any()


def test_blocks_are_embedded_in_this_process_where_there_is_no_ray(tmp_path):
    source = table(
        [
            {"id": str(n), "language": "en", "instruction": text, "output": "x"}
            for n, text in enumerate(["one", " ", "two", "", " "])
        ]
    )
    pq.write_table(source, tmp_path / FILE)
    settings = EmbeddingSettings(block_rows=3)
    first, second = embedded(settings, Resources(cpus=1), lambda: (tmp_path, None), [0, 1])
    assert (first["id"].to_pylist(), first["block"].to_pylist(), first["empty"].to_pylist()) == (["0", "2"], [0, 0], [1, 1])
    assert np.asarray(first["vector"].to_pylist())[0] == pytest.approx(_vector("one") / np.linalg.norm(_vector("one")), abs=1e-6)
    assert second.select(["block", "id", "empty", "truncated"]).to_pylist() == [
        {"block": 1, "id": None, "empty": 2, "truncated": 0}
    ]
    assert list(embedded(settings, Resources(), lambda: (tmp_path, None), [])) == []
    both = Block(settings, 1, lambda: (tmp_path, None))(pa.table({"block": [1, 0]}))
    assert both["block"].to_pylist() == [1, 0, 0]
    said = Block(settings, 1, lambda: (tmp_path / "absent", None))(pa.table({"block": [0]}))
    assert said.column_names == [PROBLEM] and "no such file" in said[PROBLEM][0].as_py()
