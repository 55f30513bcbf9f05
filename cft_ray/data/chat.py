"""Rows that are conversations: OpenAI's `messages` (role, content) and ShareGPT's `conversations` (from, value).

A conversation is taken as it stands or left out for a reason that is counted; none is mended by guessing. It begins with
the user, after system text at most; user and assistant take turns; it ends with an answer. What uses tools, or holds
anything but text, is no row of these experiments. Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_call": "tool",
    "function_response": "tool",
    "tool_call": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_TOOLS = ("tool_calls", "function_call")


class Unfit(Exception):
    """A conversation that is left out; the reason is its only argument."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with an answer.

    Args:
        system: system text; "" for none.
        turns: what comes before the last question: ``{"role": "user" or "assistant", "content": …}`` in alternation.
        question: the user's last turn.
        answer: to it.
    """

    system: str
    turns: tuple[dict[str, str], ...]
    question: str
    answer: str


def conversation(text: str) -> Conversation:
    """A conversation from the JSON text of its list of turns.

    Raises:
        Unfit: with the reason: ``no_turns``, ``not_a_conversation``, ``other_role``, ``tool_turn``, ``not_only_text``,
            ``empty_turn``, ``system_text_inside``, ``turns_out_of_order``, ``ends_with_a_question``.
    """
    if not text.strip():
        raise Unfit("no_turns")
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        raise Unfit("not_a_conversation") from None
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Unfit("not_a_conversation")
    said = [(_role(turn), turn) for turn in turns]
    if any(role == "tool" or any(turn.get(name) for name in _TOOLS) for role, turn in said):
        raise Unfit("tool_turn")
    system = _text(said.pop(0)[1]) if said and said[0][0] == "system" else ""
    if not said:
        raise Unfit("no_turns")
    if any(role == "system" for role, _ in said):
        raise Unfit("system_text_inside")
    if any(role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(said)):
        raise Unfit("turns_out_of_order")
    if len(said) % 2:
        raise Unfit("ends_with_a_question")
    plain = [{"role": role, "content": _text(turn)} for role, turn in said]
    if not all(turn["content"].strip() for turn in plain):
        raise Unfit("empty_turn")
    return Conversation(system, tuple(plain[:-2]), plain[-2]["content"], plain[-1]["content"])


def _role(turn: Mapping[str, Any]) -> str:
    name = turn.get("role", turn.get("from"))
    role = _ROLES.get(name.strip().casefold()) if isinstance(name, str) else None
    if role is None:
        raise Unfit("other_role")
    return role


def _text(turn: Mapping[str, Any]) -> str:
    content = turn.get("content", turn.get("value"))
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unfit("not_only_text")
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise Unfit("not_only_text")
    return "".join(parts)
