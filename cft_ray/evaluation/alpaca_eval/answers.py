"""The model's answers to the instructions, by whichever backend the harness' models have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from cft_ray.evaluation.alpaca_eval.items import Item
from cft_ray.evaluation.templated import Templated
from cft_ray.plan.specs import EvaluateSpec

if TYPE_CHECKING:
    from cft_ray.evaluation.answers import Kept


def answers(kept: "Kept", items: Sequence[Item], spec: EvaluateSpec) -> list[str]:
    """A loaded model's answers, in the items' order, as they come: nothing is stripped.

    Args:
        kept: harness model whose answers are kept.
        items: what is asked.
        spec: template, stop strings, temperature and most new tokens; none: what the prompt leaves.
    """
    model = kept.model
    assert isinstance(model, Templated)
    model.template, model.canonical = spec.template, False
    wanted = spec.generation
    requests = []
    for item in items:
        text = item.instruction
        if spec.template is not None:
            text = model.apply_chat_template([{"role": "user", "content": text}])
        most = wanted.max_new_tokens or max(int(model.max_length) - len(model.tok_encode(text)), 1)
        asked: dict[str, Any] = {
            "until": list(wanted.stop),
            "max_gen_toks": most,
            "do_sample": wanted.temperature > 0,
            "temperature": wanted.temperature,
        }
        requests.append(Instance("generate_until", {}, (text, asked), item.number))
    return kept.generate_until(requests)
