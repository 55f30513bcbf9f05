"""Rows to token ids: what is a target, what is counted, where the special tokens stand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.errors import UserError
from cft_ray.grid.settings import Template, TrainingSettings
from cft_ray.training.collate import collate
from cft_ray.training.examples import Examples, encode, encoding_key
from cft_ray.training.model import byte_tokenizer

TOKENIZER = byte_tokenizer(512)
PLAIN = Template(name="plain")


def table(*pairs):
    columns = {"system": "", "input": "", "language": "en"}
    return pa.Table.from_pylist(
        [{"id": str(i), "instruction": ask, "output": answer, **columns} for i, (ask, answer) in enumerate(pairs)]
    )


def encoded(*pairs, template=PLAIN, positions: int | None = None, **training):
    return encode(table(*pairs), template, TOKENIZER, TrainingSettings(**training), where="test", positions=positions)


def test_prompt_is_no_target_and_the_end_is():
    examples = encoded(("héé", "ja"))
    ids = examples.ids(0)
    assert ids[0] == TOKENIZER.bos_token_id and ids[-1] == TOKENIZER.eos_token_id
    assert list(ids).count(TOKENIZER.bos_token_id) == 1
    assert TOKENIZER.decode(ids[examples.prompts[0] : -1]) == "ja"
    assert examples.targets[0] == 3  # j, a, end of sequence
    assert examples.prompts[0] == 1 + len("héé\n\n".encode())


def test_a_chat_template_that_writes_the_beginning_does_not_double_it():
    """The ids are those that transformers gives the whole conversation; this tokenizer puts a beginning before any text."""
    examples = encoded(("hi", "yo"), template=Template(name="chat"))
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    whole = list(TOKENIZER.apply_chat_template(said, tokenize=True, return_dict=True)["input_ids"])  # type: ignore[index]
    assert TOKENIZER("").input_ids == [TOKENIZER.bos_token_id] and whole[0] == TOKENIZER.bos_token_id
    assert list(examples.ids(0)) == whole


def test_plain_text_without_a_prompt_is_all_target():
    examples = encoded(("", "abc"))
    assert examples.prompts[0] == 1 and examples.targets[0] == 4


def test_train_on_prompt():
    assert encoded(("abc", "d"), train_on_prompt=True).prompts[0] == 1


def test_long_rows_are_dropped_truncated_or_refused_and_counted():
    rows = [("a", "b"), ("a", "b" * 50), ("a" * 50, "b")]
    dropped = encoded(*rows, max_length=20)
    assert len(dropped) == 1 and (dropped.counts.rows, dropped.counts.used, dropped.counts.too_long) == (3, 1, 2)
    assert encoded(*reversed(rows), max_length=20).places.tolist() == [2]
    assert encoded(*rows, positions=20).places.tolist() == dropped.places.tolist(), "the default keeps to the model"
    cut = encoded(*rows, max_length=20, long_rows="truncate")
    assert cut.lengths.tolist() == [6, 20]  # the third has no answer left
    assert (cut.counts.used, cut.counts.too_long, cut.counts.without_target) == (2, 2, 1)
    with pytest.raises(UserError):
        encoded(*rows, max_length=20, long_rows="refuse")


def test_what_became_of_each_row_is_counted():
    rows = table(("a", "b"), ("a", " "), ("a", "ends </s> here"), ("a", "b" * 99), ("a", "cut"))
    rows = rows.append_column("finish_reason", pa.array(["", "stop", "stop", "stop", "length"]))
    training = TrainingSettings(max_length=60)
    account = encode(rows, PLAIN, TOKENIZER, training, where="test").counts.account(training).checked("test")
    assert (account.came, account.used) == (5, 3)
    assert account.left_out == {"no_output": 1, "too_long": 1}
    assert account.noted == {"answer_cut": 1, "special_in_text": 1}
    assert "1 (33.3 %) whose answer was cut" in str(account)


def test_nothing_left_is_an_error():
    with pytest.raises(UserError):
        encoded(("a", "b" * 50), max_length=10)


def test_saved_and_mapped_is_the_same(tmp_path):
    examples = encoded(("a", "b"), ("cc", "ddd"))
    examples.save(tmp_path)
    mapped = Examples.load(tmp_path)
    assert np.array_equal(mapped.tokens, examples.tokens) and mapped.counts == examples.counts


def test_what_was_encoded_is_known_by_all_that_it_depends_on(tmp_path):
    rows = tmp_path / "rows.parquet"
    pq.write_table(table(("a", "b")), rows)
    given = {"template": PLAIN, "tokenizer": byte_tokenizer(64), "settings": TrainingSettings(max_length=64), "positions": 64}

    def key(**changed) -> str:
        return encoding_key(rows, **(given | changed))

    first = key()
    assert key(tokenizer=byte_tokenizer(64)) == first  # as another process makes it
    others = [
        key(template=Template(name="toy")),
        key(settings=TrainingSettings(max_length=65)),
        key(settings=TrainingSettings(max_length=64, train_on_prompt=True)),
        key(positions=None),
    ]
    pq.write_table(table(("a", "c")), rows)
    others.append(key())
    tokenizer = byte_tokenizer(64)
    tokenizer.chat_template = "{{ messages }}"
    others.append(key(tokenizer=tokenizer))
    tokenizer = byte_tokenizer(64)
    tokenizer.add_tokens(["bc"])
    others.append(key(tokenizer=tokenizer))
    assert len({first, *others}) == 1 + len(others)


def test_what_was_saved_is_kept_under_its_key_once_it_is_whole(tmp_path):
    found = encoded(("a", "b"), ("c", "d"))
    assert Examples.kept(tmp_path / "there", "k") is None
    found.save(tmp_path / "there", "k")
    kept = Examples.kept(tmp_path / "there", "k")
    assert kept is not None and kept.counts == found.counts and kept.tokens.tolist() == found.tokens.tolist()
    assert Examples.kept(tmp_path / "there", "other") is None
    (tmp_path / "there" / "key").unlink()  # as where its process was killed before
    assert Examples.kept(tmp_path / "there", "k") is None
    encoded(("x", "y")).save(tmp_path / "there", "l")
    assert Examples.kept(tmp_path / "there", "k") is None and Examples.kept(tmp_path / "there", "l") is not None


@pytest.mark.parametrize("padding", ["free", "padded"])
def test_predictors_point_at_the_token_before_each_label(padding):
    examples = encoded(("a", "bb"), ("cccc", "dddddd"), ("e", "f"))
    batch = collate(examples, [1, 0, 2], padding=padding, pad_id=2)
    flat = batch.input_ids.flatten()
    assert batch.tokens == examples.lengths.sum()
    assert len(batch.labels) == examples.targets.sum()
    assert bool((flat[batch.predictors + 1] == batch.labels).all())
