"""What a training computes is what the model computes by itself, or it is run in another way, or refused."""

from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from cft_ray.errors import UserError
from cft_ray.grid.settings import TrainingSettings
from cft_ray.models.architectures import tiny_config
from cft_ray.models.architectures import tiny_model as make
from cft_ray.models.attention import EAGER, PLAIN
from cft_ray.models.function import Way, choose, difference, own_losses, set_attention, settle
from cft_ray.training.loss import SummedLoss
from cft_ray.training.probe import Probe, attention_of
from cft_ray.training.verdicts import LENGTHS, random_probe


def tiny_model(kind: str) -> Any:
    """Of any class: what is inside is known to the test alone."""
    return make(kind)


def probe():
    """Rows of random tokens, every position but the first a target; longer than a tiny model's windows."""
    return random_probe()


def chosen(model):
    rows = probe()
    return choose(model, rows.rows, rows.of_model, padding="free", attention=attention_of, where="m")


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "cohere",
        "cohere2",
        "granite",
        "gpt_oss",
        "gpt2",
        "olmo2",
    ],
)
def test_samples_laid_end_to_end_are_the_models_own_function(kind):
    """Scales, caps, sinks, windows of 6 tokens, fused experts and learned positions: all by the cheapest way."""
    model = tiny_model(kind)
    choice = chosen(model)
    assert (choice.way, choice.notes) == (Way("free", "chunked"), ())


@pytest.mark.parametrize("kind", ["stablelm", "bloom", "mamba", "jamba", "llama4_text"])
def test_what_cannot_be_laid_end_to_end_is_padded_with_a_note(kind):
    choice = chosen(tiny_model(kind))
    assert choice.way.padding == "padded"
    assert choice.notes and "end to end" in choice.notes[0]


@pytest.mark.parametrize(("kind", "attention"), [("llama", PLAIN), ("mistral", PLAIN), ("gemma2", EAGER), ("gpt_oss", EAGER)])
def test_padded_rows_are_the_models_own_function(kind, attention):
    """transformers' sdpa takes no notice of a cap on the scores or a sink; bfloat16's noise hides how much that changes."""
    for dtype in (torch.float32, torch.bfloat16):
        model, rows = tiny_model(kind).to(dtype), probe()
        choice = choose(model, rows.rows, rows.of_model, padding="padded", attention=attention_of, where="m")
        assert (choice.way, choice.attention) == (Way("padded"), attention)
        assert model.config._attn_implementation == attention
        assert len(choice.notes) == (attention == EAGER)


@pytest.mark.parametrize(("kind", "attention"), [("llama", PLAIN), ("gemma2", EAGER), ("gpt_oss", EAGER), ("mamba", EAGER)])
def test_who_only_looks_gets_the_models_own_function(kind, attention):
    """Rows without a mask, as insight reads them; the losses are those of the eager forward pass."""
    model, rows = tiny_model(kind), probe()
    settle(model, "m")
    if kind != "mamba":  # has none
        assert model.config._attn_implementation == attention
    expected = own_losses(model, rows.rows)
    logits = model(input_ids=rows.batches["padded"].input_ids).logits
    predicted = torch.cat([logits[place, : length - 1] for place, length in enumerate(LENGTHS)])
    found = torch.nn.functional.cross_entropy(predicted, rows.batches["padded"].labels, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_who_only_looks_is_told_of_numbers_that_are_none():
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        settle(model, "m")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lfm2", "lfm2_moe"])
def test_a_leak_of_two_tokens_between_samples_is_seen(kind, dtype):
    """A convolution over three tokens: too little for the mean of the losses."""
    choice = chosen(tiny_model(kind).to(dtype))
    assert choice.way == Way("padded") and "after another sample" in choice.notes[0]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "gpt_oss", "deepseek_v3", "olmoe"])
def test_the_noise_of_bf16_is_no_leak(kind):
    assert chosen(tiny_model(kind).to(torch.bfloat16)).way == Way()


@pytest.mark.parametrize("kind", ["cohere", "gemma2", "granite", "gpt_oss"])
def test_gradients_are_the_models_own(kind):
    """Through the chunked head's own backward pass, and through attention with caps and sinks."""
    model, rows = tiny_model(kind), probe()
    set_attention(model, "eager")
    loss = torch.stack(
        [
            torch.nn.functional.cross_entropy(model(input_ids=row.ids[None]).logits[0, :-1].float(), row.labels, reduction="sum")
            for row in rows.rows
        ]
    ).sum()
    loss.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    set_attention(model, attention_of(Way())[0])
    total = SummedLoss(model, model, Way())(rows.batches["free"])
    total.backward()
    torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-3 * float(wanted[name].abs().max()))


def test_a_scale_that_is_not_known_is_left_to_the_models_own_head():
    model = tiny_model("llama")
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.25
        return output

    model.forward = scaled
    choice = chosen(model)
    assert choice.way == Way("padded", "own")
    assert len(choice.notes) == 2


@pytest.mark.parametrize("decoder", [False, True])
def test_a_model_that_sees_what_it_is_to_predict_is_refused(decoder):
    """Its loss would fall to nothing, by any way alike; as a decoder the same model is one like others."""
    config = tiny_config("bert")
    config.is_decoder = decoder
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    if decoder:
        assert chosen(model).way.padding == "padded"
    else:
        with pytest.raises(UserError, match="BertLMHeadModel predicts a token from what comes after it"):
            chosen(model)


def test_what_no_way_computes_is_refused_by_name():
    model, rows = tiny_model("llama"), probe()
    with pytest.raises(UserError, match=r"LlamaForCausalLM cannot be trained rightly.*loss"):
        choose(
            model,
            rows.rows,
            lambda causal, way: rows.of_model(causal, way) + 0.5,
            padding="free",
            attention=attention_of,
            where="m",
        )


def test_why_the_cheapest_attention_of_a_way_was_not_taken_is_noted():
    """Of two attentions each with a reason of its own, the first one's is said, be the way taken or not."""
    model, rows = tiny_model("llama"), probe()

    def losses(causal: Any, way: Way) -> torch.Tensor:
        if causal.config._attn_implementation == EAGER and way.head == "own":
            return rows.of_model(causal, way)
        raise RuntimeError(f"not with {causal.config._attn_implementation}\nand more")

    choice = choose(model, rows.rows, losses, padding="padded", attention=lambda way: (PLAIN, "sdpa", EAGER), where="m")
    assert (choice.way, choice.attention) == (Way("padded", "own"), EAGER)
    assert choice.notes == (
        f"LlamaForCausalLM cannot be trained with samples padded, chunked head: not with {PLAIN}",
        f"LlamaForCausalLM is trained with {EAGER} attention: not with {PLAIN}",
    )


def test_rows_to_look_at_are_of_the_vocabulary_however_small_it_is():
    model: Any = make("llama", 0, 12)
    assert model.get_input_embeddings().weight.shape[1] > 2 * 12
    settle(model, "m")


def test_a_model_whose_predictions_are_no_numbers_is_refused():
    model = tiny_model("llama")
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        chosen(model)


def test_attention_dropout_is_met_before_the_first_step():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    choice = chosen(model)
    assert choice.way.padding == "padded" and "dropout" in choice.notes[0]


def test_the_noise_of_a_type_is_told_from_another_function():
    losses = torch.linspace(0.5, 6, 50)
    assert difference(losses * (1 + 1e-6), losses, torch.float32) is None
    assert difference(losses * 1.01, losses, torch.float32) is not None
    assert difference(losses * 1.01, losses, torch.bfloat16) is None
    assert difference(losses * 1.2, losses, torch.bfloat16) is not None
    assert difference(losses[:-1], losses, torch.float32) is not None
    assert difference(losses * torch.nan, losses, torch.bfloat16) is not None


def test_own_losses_leave_the_model_as_it_was():
    model = tiny_model("llama").train()
    set_attention(model, attention_of(Way())[0])
    own_losses(model, probe().rows)
    assert model.training and model.config._attn_implementation == attention_of(Way())[0]


def test_a_probe_takes_real_rows_of_different_lengths():
    from cft_ray.grid.settings import Template
    from cft_ray.training.examples import encode
    from cft_ray.training.model import byte_tokenizer

    columns = {"system": "", "input": "", "language": "en"}
    rows = [{"id": str(i), "instruction": f"say {i}", "output": "abc" * i, **columns} for i in range(1, 9)]
    examples = encode(
        pa.Table.from_pylist(rows), Template(name="plain"), byte_tokenizer(64), TrainingSettings(max_length=64), where="w"
    )
    taken = Probe.of(examples, 2)
    lengths = [len(row.ids) for row in taken.rows]
    assert len(lengths) == 4 and lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 1
    for row in taken.rows:
        assert torch.equal(row.ids[row.predictors + 1], row.labels)
