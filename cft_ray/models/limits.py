"""The same limits: what a model's own files say that no training may exceed, read as JSON.

Pure: no torch, no transformers, so that a plan says it in a moment. Positions, tokens of the vocabulary, and the token
that ends a text.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cft_ray.errors import UserError

_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_target_positions")
_EXTENDED = ("linear", "dynamic", "yarn")
"""rotary scalings whose factor is not yet in the number of positions"""
_OTHER_MEDIA = re.compile(r"image|img|audio|video|vision|speech|pad_token_2", re.IGNORECASE)
"""marks of other media: text models share the tokenizers of their larger siblings and have no rows for them"""

Read = Callable[[str], bytes | None]
"""the content of a file of a model's folder by its name; None where there is no such file"""


@dataclass(frozen=True)
class Limits:
    """Of a model.

    Args:
        positions: tokens of the longest text; None: no limit is known.
        vocabulary: rows of the embedding; None: not said.
        ends: ids that the configuration says end a text; empty: not said.
        tokens: token -> id beyond the embedding.
        roles: ``bos_token``, ``eos_token``, ``pad_token`` … -> id, as the tokenizer has them.
        packed: how the weights are quantised (``gptq``, ``fp8`` …); None: they are plain numbers.
    """

    positions: int | None = None
    vocabulary: int | None = None
    ends: frozenset[int] = frozenset()
    tokens: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, int] = field(default_factory=dict)
    packed: str | None = None


def limits_of(read: Read) -> Limits:
    """What a model's ``config.json``, ``generation_config.json`` and tokenizer files say; silent about what they do not."""
    merged = _config(read)
    vocabulary = _whole(merged.get("vocab_size"))
    try:
        ids, roles = _tokens(_json(read("tokenizer.json")), _json(read("tokenizer_config.json")))
    except (TypeError, KeyError, ValueError, AttributeError):  # files of another form: whoever loads the tokenizer says so
        ids, roles = {}, {}
    beyond = {}
    if vocabulary is not None:
        beyond = {token: index for token, index in ids.items() if index >= vocabulary and not _OTHER_MEDIA.search(token)}
    ends = {each for source in (merged, _json(read("generation_config.json"))) for each in _ids(source.get("eos_token_id"))}
    packed = merged.get("quantization_config") or merged.get("compression_config")
    method = str(packed.get("quant_method") or "unnamed") if isinstance(packed, Mapping) else None
    return Limits(positions_of(merged), vocabulary, frozenset(ends), beyond, roles, method)


def in_folder(folder: str | Path) -> Read:
    """Reads a local folder's files."""
    return lambda name: (Path(folder) / name).read_bytes() if (Path(folder) / name).is_file() else None


def positions_in(read: Read) -> int | None:
    """`Limits.positions` alone: the tokenizer's files, which are large, are not read."""
    return positions_of(_config(read))


def within(positions: int | None, tokens: int) -> int:
    """``tokens``, or the model's positions if these are fewer; None: no limit is known."""
    return tokens if positions is None else min(tokens, positions)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest text, with the factor of rotary scaling where the configuration does not count it already.

    The rule is vLLM's (``_get_and_verify_max_len``), except that a configuration that already says more is believed.

    Args:
        config: ``config.json`` of a text model.
    """
    if config.get("alibi") or config.get("position_embedding_type") in ("alibi", "nope"):
        return None
    if config.get("model_type") in ("bloom", "mpt", "mamba", "mamba2", "rwkv", "xlstm"):
        return None
    found = [value for name in _POSITIONS if (value := _whole(config.get(name)))]
    if not found:
        return None
    positions = min(found)
    if "gemma3" in str(config.get("model_type")):
        return positions  # its factor is in the number already
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaling = scaling if isinstance(scaling, Mapping) else {}
    by_layer = [value for value in scaling.values() if isinstance(value, Mapping)]
    extended = positions
    for each in by_layer or [scaling]:
        kind, factor = each.get("rope_type") or each.get("type"), each.get("factor")
        if kind in _EXTENDED and isinstance(factor, int | float) and 1 <= factor < 1e6:
            original = each.get("original_max_position_embeddings")
            extended = max(extended, int((original if isinstance(original, int) else positions) * factor))
    return extended


def check_length(
    limits: Limits, max_length: int, *, where: str, model: str = "the model", setting: str = "training.max_length"
) -> None:
    """Refuse rows that may be longer than the model.

    Args:
        limits: of the model.
        max_length: tokens of the longest row.
        where: the model, or the place of the setting in the grid.
        model: what the message calls it.
        setting: what ``max_length`` is called in the grid.

    Raises:
        UserError: they may.
    """
    if limits.positions is not None and max_length > limits.positions:
        raise UserError(
            f"{setting} is {max_length}, but {model} has {limits.positions} positions",
            where=where,
            fix=f"set {setting} to at most {limits.positions}",
        )


def check_vocabulary(limits: Limits, *, where: str) -> None:
    """Refuse a tokenizer with tokens beyond its model's embedding.

    Args:
        limits: of the model.
        where: the model, for messages.

    Raises:
        UserError: it has such.
    """
    if limits.vocabulary is not None:
        for role, index in limits.roles.items():
            if index >= limits.vocabulary:
                raise UserError(
                    f"the tokenizer's {role} has id {index}, but the model's embedding has {limits.vocabulary} rows",
                    where=where,
                    fix="resize the model's embedding to the tokenizer (resize_token_embeddings), or use another token",
                )
        if limits.tokens:
            token, index = min(limits.tokens.items(), key=lambda item: item[1])
            raise UserError(
                f"the tokenizer has {len(limits.tokens)} tokens beyond the model's embedding of {limits.vocabulary} rows "
                f"(the first is {token!r} with id {index})",
                where=where,
                fix="resize the model's embedding to the tokenizer (resize_token_embeddings), or remove the tokens",
            )


def check_packed(limits: Limits, *, where: str) -> None:
    """Refuse to train weights that are quantised: a step of the optimizer needs them as numbers.

    Args:
        limits: of the model.
        where: the model, for messages.

    Raises:
        UserError: they are.
    """
    if limits.packed is not None:
        raise UserError(
            f"the model's weights are quantised ({limits.packed}, says its config.json), and cannot be trained",
            where=where,
            fix="use the checkpoint that it was made of, or one that is written back in bfloat16",
        )


def check_end(limits: Limits, *, where: str) -> None:
    """Refuse to train a model whose tokenizer ends a text otherwise than its configuration.

    Args:
        limits: of the model.
        where: the model, for messages.

    Raises:
        UserError: it does.
    """
    end = limits.roles.get("eos_token")
    if limits.ends and end is not None and end not in limits.ends:
        raise UserError(
            f"the tokenizer ends a text with token {end}, the model's configuration with {_listed(limits.ends)}: "
            "what is taught to end would not be where engines stop",
            where=where,
            fix="make eos_token_id in config.json or generation_config.json and the tokenizer's eos_token agree",
        )


def _listed(ids: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(ids)))


def _tokens(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Every token's id, and the id of each role."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # unigram: [token, score]
        ids = {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    else:
        ids = {str(token): int(index) for token, index in vocabulary.items()}
    for added in tokenizer.get("added_tokens") or ():
        ids[str(added["content"])] = int(added["id"])
    for index, added in (config.get("added_tokens_decoder") or {}).items():
        ids[str(added["content"])] = int(index)
    roles = {}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(role)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str) and token in ids:
            roles[role] = ids[token]
    return ids, roles


def _ids(value: Any) -> list[int]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]


def _whole(value: Any) -> int | None:
    """A whole number that is not negative."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _config(read: Read) -> dict[str, Any]:
    """``config.json`` with what it says of the text model brought to the top."""
    config = _json(read("config.json"))
    text = next((config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict)), {})
    return {**config, **{key: value for key, value in text.items() if value is not None}}


def _json(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}  # whoever loads the model says so
    return value if isinstance(value, dict) else {}
