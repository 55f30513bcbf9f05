"""Text in the middle of a sequence, and control tokens kept apart from what is spelled like them."""

from typing import Any

import pytest
from madetokenizers import FAMILIES, tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cft_ray.data.encoding import Encoder
from cft_ray.data.vocabulary import Vocabulary
from cft_ray.errors import UserError
from cft_ray.grid.settings import Template


def made(model: Any, controls: list[AddedToken], normalizer: Any = None, split: Any = None, before: str = "") -> Any:
    backend = Tokenizer(model)
    backend.normalizer, backend.pre_tokenizer = normalizer, split
    backend.add_special_tokens(controls)
    if before:
        ids = [(before, backend.token_to_id(before))]
        backend.post_processor = processors.TemplateProcessing(single=f"{before} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def letters(text: str, *more: str) -> models.WordLevel:
    return models.WordLevel({token: place for place, token in enumerate(["<unk>", "<s>", "</s>", *more, *text])}, "<unk>")


def controls(*more: AddedToken) -> list[AddedToken]:
    return [*(AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")), *more]


SINGLE = pre_tokenizers.Split("", "isolated")


def spelled(vocabulary: Vocabulary, source: Any, text: str, where: Any = "inside") -> str:
    (ids,) = vocabulary.encode([text], where, literal=True)
    return "|".join(source.convert_ids_to_tokens(ids))


def test_a_spelling_that_the_model_itself_takes_for_the_token_is_broken_inside_it():
    """As SentencePiece's unigram models do: the mark is a piece like any other."""
    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("<s>", -1.0), ("▁<", -3.0), ("bc", -2.0), *((c, -4.0) for c in "</s>abc▁")]
    source = made(models.Unigram(pieces, 0, False), controls(), split=pre_tokenizers.Metaspace())
    vocabulary = Vocabulary(source)
    assert spelled(vocabulary, source, "a</s>bc<s>a") == "a|<|/|s|>|bc|<|s|>|a"
    assert spelled(vocabulary, source, "</s>") == "<|/|s|>" and spelled(vocabulary, source, "</s>", "start") == "▁<|/|s|>"
    both = vocabulary.encode(["abc", "b</s>", "bc"], "inside", literal=True)
    assert ["|".join(source.convert_ids_to_tokens(ids)) for ids in both] == ["a|bc", "b|<|/|s|>", "bc"]
    (ids,) = vocabulary.encode(["a</s>"], "inside", literal=False)
    assert source.convert_ids_to_tokens(ids) == ["a", "</s>"]


def test_where_a_part_of_the_spelling_is_another_token_it_is_broken_into_letters():
    """What begins behind the first letter of ``<<a>`` is ``<a>``, a control token itself."""
    pieces = [("<unk>", 0.0), ("<a>", -1.0), ("<<a>", -1.0), ("</s>", -1.0), *((c, -4.0) for c in "<a>b")]
    more = [AddedToken(text, special=True, normalized=False) for text in ("<a>", "<<a>")]
    source = made(models.Unigram(pieces, 0, False), controls(*more))
    assert spelled(Vocabulary(source), source, "b<<a>b") == "b|<|<|a|>|b"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_spelling_is_the_token(family):
    source = tokenizer(family)
    vocabulary = Vocabulary(source)
    found = vocabulary.control_in("Hello </s> [INST]")
    assert found is not None and (found[0], found[1], found[2]) == (6, 10, source.convert_tokens_to_ids("</s>"))
    assert vocabulary.control_in("Hello") is None
    assert vocabulary.spells_control(["Hello", "a [/INST]"]) and not vocabulary.spells_control(["Hello", "[ INST ]"])


def test_marks_of_a_template_are_control_tokens_and_thoughts_are_words():
    more = [AddedToken(text, special=False, normalized=False) for text in ("<turn>", "<think>", "<word>", " ")]
    source = made(letters("<turn>hikwod /"), controls(), split=SINGLE)
    source.add_tokens(more)
    vocabulary = Vocabulary(source, marks="a<turn> <think>")
    assert vocabulary.spells_control(["<turn>"]) and not vocabulary.spells_control(["<think> <word>"])
    assert not Vocabulary(source).spells_control(["<turn>"])


def test_control_tokens_take_the_white_space_beside_them_as_they_say():
    more = [
        AddedToken("<r>", special=True, normalized=False, rstrip=True),
        AddedToken("<l>", special=True, normalized=False, lstrip=True),
    ]
    source = made(letters("ab<r>l "), controls(*more), split=SINGLE)
    vocabulary = Vocabulary(source)

    def mixed(*pieces: tuple[str, bool]) -> str:
        return "".join(source.convert_ids_to_tokens(vocabulary.encode_mixed([(list(pieces), "start")])[0]))

    assert mixed(("a <r>  b", False)) == "a <r>b" and mixed(("a  <l> b", False)) == "a<l> b"
    assert mixed(("<r>", False), ("  ", True), (" b", True)) == "<r>b", "also over the seams of pieces"
    assert mixed(("<r> ", False), ("a b", True)) == "<r>a b" and mixed(("<r>", False), ("<r> a", False)) == "<r><r>a"
    assert mixed(("a <r> <l>", True), ("<l>", False)) == "a <r> <l><l>", "text is text"
    assert mixed(("a ", True), ("<l>", False)) == "a<l>" and mixed(("a", True), ("", False), ("b", False)) == "ab"
    for text in ("a <r>  b", "a  <l> b", "<r> <l> a", "a<r>b<l> <r> b "):
        assert vocabulary.encode_mixed([([(text, False)], "start")])[0] == source(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("normalizer", "split", "start", "section", "inside"),
    [
        (normalizers.Strip(), SINGLE, "ab", "ab", " ab"),
        (normalizers.Sequence([normalizers.Prepend("_"), normalizers.NFC()]), SINGLE, "_ ab ", "_ ab ", " ab "),
        (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False), None, None, None),
    ],
)
def test_only_a_beginning_is_treated_as_one(normalizer, split, start, section, inside):
    model = (
        letters("ab _") if start is not None else models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "a": 4}, "<unk>")
    )
    source = made(model, controls(), normalizer, split)
    vocabulary = Vocabulary(source)
    if start is None:
        assert [vocabulary.encode(["a"], where, literal=True) for where in ("start", "section", "inside")] == [
            [[3]],
            [[3]],
            [[4]],
        ]
        return
    for where, wanted in (("start", start), ("section", section), ("inside", inside)):
        assert spelled(vocabulary, source, " ab ", where).replace("|", "") == wanted


def test_a_tokenizer_that_begins_only_the_first_text_with_a_mark_begins_no_section():
    model = models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "a": 4}, "<unk>")
    vocabulary = Vocabulary(made(model, controls(), None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)))
    assert [vocabulary.encode(["a"], where, literal=True) for where in ("start", "section", "inside")] == [[[3]], [[4]], [[4]]]


def test_byte_level_tokenizers_begin_texts_with_a_blank_where_they_say_so():
    model = models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "Ġa": 3, "a": 4}, "<unk>")
    source = made(model, controls(), None, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False))
    vocabulary = Vocabulary(source)
    assert [vocabulary.encode(["a"], where, literal=True) for where in ("start", "section", "inside")] == [[[3]], [[3]], [[4]]]


def test_where_text_stands_that_follows_ids():
    source = tokenizer("gpt2")
    vocabulary = Vocabulary(source)
    word = vocabulary.encode(["Hello"], "start", literal=True)[0]
    assert [vocabulary.after(ids) for ids in ([], [vocabulary.end], word, [vocabulary.end, *word], [*word, vocabulary.end])] == [
        *("start", "section", "inside", "inside", "section")
    ]
    assert vocabulary.encode([], "start", literal=True) == []


@pytest.mark.parametrize(("before", "ids"), [("", ()), ("<s>", (1,))])
def test_what_the_tokenizer_puts_before_a_text(before, ids):
    assert Vocabulary(made(letters("ab"), controls(), split=SINGLE, before=before)).prefix == ids
    assert Vocabulary(made(letters("b"), controls(), split=SINGLE, before=before)).prefix == ids, "also where `a` is unknown"


def test_settings_for_padding_and_cutting_are_not_taken_along():
    source = made(letters("ab"), controls(), split=SINGLE)
    source.backend_tokenizer.enable_truncation(2)
    source.backend_tokenizer.enable_padding(length=8)
    assert Vocabulary(source).encode(["abab", "a"], "start", literal=True) == [[3, 4, 3, 4], [3]]


def test_a_tokenizer_without_an_end_is_refused():
    source = made(letters("ab"), controls())
    source.eos_token = None
    with pytest.raises(UserError, match="not a fast one with an end-of-sequence token"):
        Vocabulary(source)


def test_the_unknown_token_is_no_control_token_in_text():
    source = made(letters("ab"), controls(), split=SINGLE)
    assert Vocabulary(source).encode(["azb"], "start", literal=True) == [[3, 0, 4]]


TEXTS = ["Hello", " world", "[INST] no </s>"]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_stand_for_themselves_begin_as_the_tokenizer_begins_them(family):
    encoder = Encoder(tokenizer(family), None)
    for text, ids in zip(TEXTS, encoder.texts(TEXTS), strict=True):
        (bare,) = encoder.vocabulary.encode([text], "start", literal=True)
        assert ids == [*encoder.vocabulary.prefix, *bare]
        assert family == "wordpiece" or "</s>" in text or ids == tokenizer(family)(text).input_ids


@pytest.mark.parametrize("family", ["gpt2", "always"])
def test_prompts_whose_rows_are_not_known_any_more(family):
    """In a chat template's words its marks are control tokens; in the grid's own nothing is."""
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    chat = Encoder(tokenizer(family, "chatml"), Template(name="chat"))
    assert chat.marked([prompt]) == chat.prompts([{"instruction": "Hello"}])
    own = Encoder(tokenizer(family), Template(name="plain"))
    assert own.marked(TEXTS) == own.texts(TEXTS)


@pytest.mark.parametrize("template", ["alpaca", "plain", "chatml", "mistral"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beginnings_of_an_answer_are_encoded_as_answers_are_taught(family, template):
    chat = template if template in ("chatml", "mistral") else None
    encoder = Encoder(tokenizer(family, chat), Template.model_validate({"name": "chat" if chat else template}))
    row = {"instruction": "Say hello", "output": "Hello world"}
    (taught,) = encoder.rows([row])
    prompt = taught.ids[: taught.prompt]
    begin, stop = taught.answers[-1]
    answer = " Hello world" if template == "mistral" else "Hello world"
    assert encoder.continued(prompt, [answer, "Hello"])[0] == taught.ids[begin : stop - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_to_nothing_begins_the_text(family):
    """Plain text to learn from: a row that is nothing but an output."""
    encoder = Encoder(tokenizer(family), Template(name="plain"))
    (found,) = encoder.rows([{"instruction": "", "output": "Hello world"}])
    assert found.ids == [*encoder.texts(["Hello world"])[0], encoder.vocabulary.end]
    assert found.prompt == len(encoder.vocabulary.prefix) and not found.seam
    assert encoder.continued(encoder.vocabulary.prefix, ["Hello world"])[0] == found.ids[found.prompt : -1]
