"""The engine of a process: when it is given again, what it answers with another model's weights, and whose fault an error is."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tinymodels import weights_of

from cft_ray.errors import UserError
from cft_ray.generation import engine
from cft_ray.generation.likeness import likeness
from cft_ray.generation.requests import Prompt
from cft_ray.generation.settings import engine_arguments, prepare_environment
from cft_ray.generation.single import answers
from cft_ray.grid.settings import EngineSettings, ReplaySampling, ScratchModel

SHAPE = ScratchModel(layers=2, hidden_size=64, heads=2, kv_heads=1, intermediate_size=64, max_positions=128)
ENDS = (1,)
PROMPTS = [Prompt(index, [1, *range(60 + index, 70 + 3 * index)], 7 * index, 8 + index % 5) for index in range(20)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with a tokenizer, and a model that is not used."""
    from cft_ray.training.model import create

    prepare_environment()
    return create(SHAPE, 0, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True, scope="module")
def nothing_held() -> Iterator[None]:
    yield
    engine.unload()


def model(folder: Path, tokenizer: Path, architecture: str, seed: int, **changes: Any) -> str:
    """A random model of any architecture, sharp enough that answers differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"vocab_size": len(loaded), "bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id}
    sizes |= {"pad_token_id": loaded.pad_token_id, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128}
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return str(folder)


def arguments(folder: str, **changes: Any) -> dict[str, Any]:
    return engine_arguments(folder, dtype="auto", max_length=128, seed=0, on="cpu") | changes


def told(folder: str) -> dict[str, Any]:
    """What the engine for a model says: greedy and sampled answers, and log-likelihoods of prompts."""
    found: dict[str, Any] = {}
    for temperature in (0.0, 1.0):
        sampling = ReplaySampling(temperature=temperature, max_length=128)
        given = [answer for some in answers(folder, PROMPTS, sampling, EngineSettings(), ENDS) for answer in some]
        found[f"at {temperature}"] = sorted(given, key=lambda answer: answer.index)
    from vllm import SamplingParams

    asked: Any = [{"prompt_token_ids": prompt.tokens} for prompt in PROMPTS]
    one = SamplingParams(max_tokens=1, prompt_logprobs=1)
    scored: list[Any] = engine.load(arguments(folder)).generate(asked, one, use_tqdm=False)
    found["scores"] = [
        [place[token].logprob for place, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)]
        for output in scored
    ]
    return found


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])  # with biases; with norms of queries and keys
def test_an_engine_that_took_other_weights_answers_as_a_fresh_one(tmp_path, tokenizer, architecture):
    first, second = (model(tmp_path / str(seed), tokenizer, architecture, seed) for seed in (1, 2))
    held, before = engine.load(arguments(first)), told(first)
    after = told(second)
    assert engine.load(arguments(second)) is held
    assert told(first) == before  # and back
    engine.unload()
    fresh = told(second)
    assert engine.load(arguments(second)) is not held
    assert after == fresh
    assert all(before[name] != fresh[name] for name in fresh)


def test_tied_heads_get_an_engine_of_their_own(tmp_path, tokenizer):
    """vLLM 0.29 reloads the embedding and leaves the head that is tied to it as it was."""
    first, second = (model(tmp_path / str(seed), tokenizer, "llama", seed, tie_word_embeddings=True) for seed in (1, 2))
    before, after = told(first), told(second)
    engine.unload()
    assert after == told(second) != before


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


def other_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.eos_token = loaded.convert_ids_to_tokens(65)
    loaded.save_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        other_tokenizer,
        changed("generation_config.json", eos_token_id=[66, 67]),
        changed("tokenizer_config.json", chat_template="{{ messages[0].content }}"),
        changed("config.json", rope_theta=7.0, rope_parameters={"rope_theta": 7.0, "rope_type": "default"}),
        changed("config.json", rms_norm_eps=0.1),
    ],
)
def test_a_model_that_differs_in_more_than_its_weights_gets_an_engine_of_its_own(tmp_path, tokenizer, change):
    first = model(tmp_path / "first", tokenizer, "mistral", 1)
    second = model(tmp_path / "second", tokenizer, "mistral", 2)
    change(tmp_path / "second")
    held = weakref.ref(engine.load(arguments(first)))
    after = told(second)
    gc.collect()
    assert held() is None, "the first engine is still in memory"
    engine.unload()
    assert after == told(second)


def test_a_folder_that_lacks_a_tensor_is_not_alike(tmp_path, tokenizer):
    """vLLM only warns that a reload leaves a tensor as it was."""
    first, second = (model(tmp_path / str(seed), tokenizer, "mistral", seed) for seed in (1, 2))
    assert likeness(first) == likeness(second) is not None
    with weights_of(Path(second)) as weights:
        del weights["model.layers.0.mlp.up_proj.weight"]
    assert likeness(second) not in (None, likeness(first))


def test_another_setting_is_another_engine_and_the_same_model_the_same_one(tmp_path, tokenizer):
    folder = model(tmp_path / "model", tokenizer, "mistral", 1)
    held = id(engine.load(arguments(folder)))
    assert id(engine.load(arguments(folder))) == held
    other = engine.load(arguments(folder, max_num_seqs=4))
    assert other.llm_engine.vllm_config.scheduler_config.max_num_seqs == 4
    with weights_of(Path(folder)) as weights:  # written anew at the same path
        weights["model.norm.weight"] *= -1.0
    before = told(folder)
    engine.unload()
    assert told(folder) == before


def test_an_abandoned_replay_leaves_an_idle_engine(tmp_path, tokenizer):
    folder = model(tmp_path / "model", tokenizer, "mistral", 1)
    some: Any = answers(folder, PROMPTS, ReplaySampling(max_length=128), EngineSettings(), ENDS)
    next(some)
    some.close()
    assert engine.load(arguments(folder)).llm_engine.get_num_unfinished_requests() == 0
    whole = told(folder)
    engine.unload()
    assert whole == told(folder)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def narrow(folder: Path) -> None:
    with weights_of(folder) as weights:
        weights["model.norm.weight"] = weights["model.norm.weight"][:32].clone()


BAD: dict[str, Callable[[Path], object]] = {
    "cut weights": cut,
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a tensor of another shape": narrow,
    "an unknown architecture": changed("config.json", architectures=["NoneForCausalLM"]),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("token*")],
    "a broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "an unknown activation": changed("config.json", hidden_act="none"),
}


def test_a_bad_folder_is_named_and_what_is_not_its_fault_is_left_as_it_is(tmp_path, tokenizer):
    good = model(tmp_path / "good", tokenizer, "mistral", 1)
    engine.load(arguments(good))
    for name, spoil in BAD.items():
        folder = tmp_path / name
        shutil.copytree(good, folder)
        spoil(folder)
        with pytest.raises(UserError) as raised:
            engine.load(arguments(str(folder)))
        assert str(folder) in str(raised.value), name
        assert raised.value.__cause__ is not None
    with pytest.raises(ValueError, match="max_num_seqs"):
        engine.load(arguments(good, max_num_seqs=-1))
    assert told(good)["scores"]  # the process can go on
