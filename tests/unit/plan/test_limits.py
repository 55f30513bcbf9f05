"""A plan knows what a model's files say, refuses what does not fit them, and keeps its own defaults within them."""

import json
import re
from collections import Counter
from typing import Any

import pytest

from cft_ray.artifacts.fetched import Fetched, Part
from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text
from cft_ray.grid.sections import CheckpointSource
from cft_ray.plan.build import build
from cft_ray.plan.config import local_config
from cft_ray.plan.limits import positions
from cft_ray.plan.view import view
from cft_ray.storage import root
from cft_ray.storage.root import Storage

GRID = """\
name: g
storage: {{uri: {root}/runs}}
models:
  tiny: {{{checkpoints}}}
datasets:
  en: {{toy: alpaca, languages: [en]}}
  de: {{toy: multialpaca, languages: [de], english: en}}
pairs: [{{phase1: {phase1}, phase2: de}}]
strategies: [none, LoRA]
template: toy
training: {{steps: 1}}
evaluation: {{benchmarks: [toy_letters]}}
"""
SCRATCH = "base: {scratch: {max_positions: 512}, train: {data: en}}"
COMMIT = "0123456789" * 4
TOKENIZER = {"model": {"vocab": {"a": 0, "</s>": 1, "<pad>": 2}}, "added_tokens": [{"id": 3, "content": "<new>"}]}
ROLES = {"eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))

    def plan(*sets, checkpoints=SCRATCH, phase1="en"):
        text = GRID.format(root=tmp_path, checkpoints=checkpoints, phase1=phase1)
        return build(grid_from_text(text, "g.yaml", sets))

    return plan


@pytest.fixture
def folder(tmp_path):
    """Writes a folder that holds what a plan reads of a model."""

    def write(name="model", config=None, tokenizer=None, roles=None):
        path = tmp_path / name
        path.mkdir()
        shape = {"vocab_size": 4, "max_position_embeddings": 4096, "eos_token_id": 1}
        (path / "config.json").write_text(json.dumps(shape | (config or {})))
        (path / "tokenizer.json").write_text(json.dumps(TOKENIZER | (tokenizer or {})))
        (path / "tokenizer_config.json").write_text(json.dumps(ROLES | (roles or {})))
        (path / "model.safetensors").write_bytes(b"")
        return str(path)

    return write


def lengths(plan) -> dict[str, int | None]:
    """Label of a training -> the tokens of its longest row that its spec gives."""
    specs: list[Any] = [(stage.label, stage.spec) for stage in plan.stages.values() if stage.kind == "finetune"]
    return {label: spec.training.max_length for label, spec in specs}


def shortened(plan) -> list[int]:
    """Tokens that trainings are shortened to, each once."""
    return sorted({int(found[1]) for note in plan.notes if (found := re.search(r"not set: (\d+) tokens", note))})


def test_the_default_length_keeps_to_the_models_positions_and_says_so(planned, tmp_path):
    plan = planned()
    assert set(lengths(plan).values()) == {None} and len(lengths(plan)) == 4  # base, Phase 1, both strategies
    (note,) = plan.notes
    assert "512" in note and "2048" in note and "tiny" in note
    grid = grid_from_text(GRID.format(root=tmp_path, checkpoints=SCRATCH, phase1="en"), "g.yaml")
    assert note in view(plan, grid, []).warnings
    assert not planned("training.max_length=512").notes
    assert set(planned("models.tiny.base.scratch.max_positions=2048").stages).isdisjoint(
        fingerprint for fingerprint, stage in plan.stages.items() if stage.kind == "finetune"
    )


def test_the_default_length_stays_where_the_model_has_room_or_is_not_known(planned, folder):
    longer = f"base: {{path: {folder()}}}"
    for checkpoints in (longer, "base: {hub: org/model, revision: abc}"):
        plan = planned(checkpoints=checkpoints)
        assert set(lengths(plan).values()) == {None} and not plan.notes


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("training.max_length=513", "training.max_length"),
        ("training.max_length=[128, 513]", "training.max_length"),
        ("training.phase2.max_length=600", "training.phase2.max_length"),
        ("training.phase1.max_length=600", "training.phase1.max_length"),
        ("strategies.LoRA.training.max_length=600", "strategies[1].training.max_length"),
        ("models.tiny.base.train.training.max_length=600", "models.tiny.base.train.training.max_length"),
    ],
)
def test_a_length_that_the_grid_gives_is_refused_where_it_stands(planned, change, place):
    with pytest.raises(UserError, match="512 positions") as caught:
        planned(change)
    assert f"g.yaml: {place} " in str(caught.value)


def test_a_length_within_the_positions_is_taken(planned):
    plan = planned("training.max_length=100", "training.phase2.max_length=512")
    assert Counter(lengths(plan).values()) == {100: 2, 512: 2} and not plan.notes


def test_each_training_keeps_to_the_model_that_it_starts_from(planned, folder):
    """Phase 1 is a checkpoint of fewer positions than the base; what is trained from a checkpoint keeps to that one."""
    given = f"base: {{path: {folder('long')}}}, short: {{path: {folder('short', {'max_position_embeddings': 64})}}}"
    assert shortened(planned(checkpoints=given, phase1="short")) == [64]
    assert shortened(planned(checkpoints=given)) == []
    more = f"{given}, more: {{start: short, train: {{data: en}}}}"
    assert shortened(planned(checkpoints=more, phase1="more")) == [64]


def test_the_factor_of_rotary_scaling_counts(planned, folder):
    scaled = {"max_position_embeddings": 128, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert shortened(planned(checkpoints=f"base: {{path: {folder('scaled', scaled)}}}")) == [512]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config": {"vocab_size": 3}}, ("1 tokens beyond", "embedding of 3 rows", "'<new>'")),
        ({"config": {"vocab_size": 2}}, ("pad_token has id 2", "2 rows")),
        ({"config": {"eos_token_id": 0}}, ("token 1", "with 0")),
        ({"config": {"text_config": {"vocab_size": 3}}}, ("1 tokens beyond", "embedding of 3 rows")),
    ],
)
def test_a_tokenizer_that_does_not_fit_its_model_is_refused(planned, folder, files, words):
    path = folder(**files)
    for phase1, checkpoints in (("en", f"base: {{path: {path}}}"), ("it", f"{SCRATCH}, it: {{path: {path}}}")):
        with pytest.raises(UserError) as caught:
            planned(checkpoints=checkpoints, phase1=phase1)
        where = f"models.tiny.{'base' if phase1 == 'en' else 'it'}.path"
        assert all(word in str(caught.value) for word in (*words, where)), caught.value


def test_quantised_weights_are_refused_where_they_would_be_trained(planned, folder):
    path = folder(config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    for phase1, checkpoints in (("en", f"base: {{path: {path}}}"), ("it", f"{SCRATCH}, it: {{path: {path}}}")):
        with pytest.raises(UserError, match=r"models\.tiny.*weights are quantised \(gptq, says its config\.json\)"):
            planned(checkpoints=checkpoints, phase1=phase1)
    planned(checkpoints=f"{SCRATCH}, it: {{path: {path}}}")


def test_checkpoints_that_no_cell_needs_are_not_asked(planned, folder):
    planned(checkpoints=f"{SCRATCH}, it: {{path: {folder(config={'vocab_size': 1})}}}")


@pytest.fixture
def fetched(tmp_path):
    """Files as `cft-ray fetch` leaves them of org/model at main."""

    def write(**files):
        copy = Fetched(str(tmp_path / "copy"))
        part = Part("org/model", "model")
        manifest = {"repository": "org/model", "revision": COMMIT, "files": [], "fetched": "2026-11-21T00:00:00+00:00"}
        copy.storage.write(*copy.manifest_path(part), data=json.dumps(manifest).encode())
        for name, content in files.items():
            copy.storage.write(*copy.folder(part, COMMIT), name.replace("__", "."), data=json.dumps(content).encode())
        return f"fetched={tmp_path / 'copy'}"

    return write


def test_what_was_fetched_is_asked_as_a_folder_is(planned, fetched):
    hub = "base: {hub: org/model}"
    config = {"n_positions": 256, "vocab_size": 4, "eos_token_id": 1}
    copy = fetched(config__json=config, tokenizer__json=TOKENIZER, tokenizer_config__json=ROLES)
    plan = planned(copy, checkpoints=hub)
    assert shortened(plan) == [256] and set(lengths(plan).values()) == {None}, "its fingerprint is that of an unread model"
    with pytest.raises(UserError, match="256 positions"):
        planned(copy, "training.max_length=257", checkpoints=hub)
    with pytest.raises(UserError, match=r"toy_letters.*256"):
        planned(copy, "evaluation.generation.max_new_tokens=256", checkpoints=hub)
    fetched(config__json=config | {"vocab_size": 3})
    with pytest.raises(UserError, match=r"models\.tiny\.base\.hub.*1 tokens beyond"):
        planned(copy, checkpoints=hub)


def test_a_model_in_a_bucket_is_asked_as_a_folder_is(folder, monkeypatch):
    path = folder(config={"max_position_embeddings": 64})
    monkeypatch.setattr(root, "Storage", lambda uri: Storage(uri.replace("s3://bucket", path)))
    assert positions(CheckpointSource(path="s3://bucket"), None) == 64 == positions(CheckpointSource(path=path), None)


def test_what_is_not_within_reach_has_no_limits(tmp_path):
    assert positions(CheckpointSource(hub="org/model"), None) is None
    assert positions(CheckpointSource(hub="org/model"), Fetched(str(tmp_path))) is None


def test_a_configuration_may_have_sixteen_megabytes_and_no_more(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b'{"a": 1}'.ljust(16 * 2**20))
    assert local_config(tmp_path) == {"a": 1}
    file.write_bytes(b'{"a": 1}'.ljust(16 * 2**20 + 1))
    with pytest.raises(UserError, match="16,777,217 bytes are too many") as raised:
        local_config(tmp_path, where="here")
    assert raised.value.where == "here"
    with pytest.raises(UserError, match="too many") as raised:
        local_config(tmp_path)
    assert raised.value.where == str(file)
    file.unlink()
    assert local_config(tmp_path) is None
