"""What is found about an architecture when everything that is demanded of a model is asked of a tiny one."""

import pytest

from cft_ray.training.verdicts import Verdict, verdict

FREE, PADDED = "samples end to end, chunked head", "samples padded, chunked head"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", Verdict("llama", "LlamaForCausalLM", FREE, "cft_ray_varlen")),
        ("gemma2", Verdict("gemma2", "Gemma2ForCausalLM", FREE, "cft_ray_varlen")),
        ("mixtral", Verdict("mixtral", "MixtralForCausalLM", FREE, "cft_ray_varlen")),
        ("phimoe", Verdict("phimoe", "PhimoeForCausalLM", FREE, "cft_ray_varlen")),  # in training it draws experts by lot
        ("youtu", Verdict("youtu", "YoutuForCausalLM", FREE, "cft_ray_varlen")),
        ("bloom", Verdict("bloom", "BloomForCausalLM", PADDED, "eager")),
        ("lfm2_moe", Verdict("lfm2_moe", "Lfm2MoeForCausalLM", PADDED, "cft_ray_sdpa")),
    ],
)
def test_trained(kind, expected):
    """Loaded, compared, gradients against its own forward pass, exported, loaded again."""
    assert verdict(kind) == expected


def test_refused():
    found = verdict("bert")
    assert (found.architecture, found.way, found.built) == ("BertLMHeadModel", None, True)
    assert "predicts a token from what comes after it" in (found.refused or "")


def test_not_built():
    """An image encoder of usual size: said as such, and neither trained nor refused."""
    found = verdict("git")
    assert not found.built and found.way is None and "parameters" in (found.refused or "")
