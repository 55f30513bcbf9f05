"""Tokenizers and chat templates made here, of the families that people use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cft_ray.data.encoding import Encoder
from cft_ray.grid.settings import Template

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "[gMASK]", "<sop>", "<|user|>", "<|bot|>")
CORPUS = [
    "### Instruction:\nSay hello to the world.\n\n### Response:\nHello there, world.\n\n\n",
    "def f(x):\n        return x\n    return y\n  <b>old</b> [INST] no [/INST]  system user assistant think",
] * 20
FAMILIES = ("gpt2", "llama3", "first", "always", "never", "legacy", "glm", "wordpiece")
LOSSLESS = tuple(family for family in FAMILIES if family != "wordpiece")

CHATS = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' }}"
    "{{ m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}",
    "drops_system": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
    "glm": "[gMASK]<sop>{% for m in messages %}{{ '<|bot|>' if m['role'] == 'assistant' else '<|user|>' }}"
    "{{ '\n' + m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>\n' }}{% endif %}",
    "parts": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "think": "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
}


@cache
def tokenizer(family: str, chat: str | None = None) -> PreTrainedTokenizerFast:
    """A small tokenizer of a family, with a chat template of `CHATS`."""
    made = Tokenizer.from_str(_trained(family))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    before = {"glm": ("[gMASK]", "<sop>"), "llama3": ()}.get(family, ("<s>",))
    after = " </s>" if family == "wordpiece" else ""
    if before:
        ids = [(token, made.token_to_id(token)) for token in (*before, "</s>")]
        made.post_processor = processors.TemplateProcessing(single=" ".join(before) + " $A" + after, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHATS[chat] if chat else None,
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def worded(family: str, template: str) -> Iterator[Encoder]:
    """An encoder of a family's tokenizer with another chat template."""
    changed: Any = tokenizer(family, "chatml")
    kept = changed.chat_template
    try:
        changed.chat_template = template
        yield Encoder(changed, Template(name="chat"))
    finally:
        changed.chat_template = kept


@cache
def _trained(family: str) -> str:
    return _train(family).to_str()


def _train(family: str) -> Tokenizer:
    if family == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(SPECIALS)))
        return made
    if family in ("gpt2", "llama3", "glm"):
        made = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(GPT2 if family == "gpt2" else LLAMA3), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=list(SPECIALS), initial_alphabet=alphabet)
        )
        return made
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if family == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=[*SPECIALS, *bytes_], max_token_length=8)
    made.train_from_iterator([line for text in CORPUS for line in text.split()], trainer)
    state = json.loads(made.to_str()) | {"added_tokens": []}  # bytes are no added tokens
    if family != "legacy":
        state["pre_tokenizer"]["prepend_scheme"] = family
    return Tokenizer.from_str(json.dumps(state))
