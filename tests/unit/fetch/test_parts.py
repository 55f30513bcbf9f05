"""What is asked of a hub repository, where it is kept, and which of a model's files are worth copying."""

import json
from dataclasses import replace

import pytest

from cft_ray.artifacts.fetched import Fetched, Part
from cft_ray.errors import UserError
from cft_ray.fetch.hub import model_files
from cft_ray.fetch.needs import needs
from cft_ray.grid.schema import load_grid

COMMIT = "0123456789" * 4
XQUAD = Part("google/xquad", "dataset", config="xquad.{language}", split="validation", languages=("ar", "de"))


def test_parts_have_distinct_places(tmp_path):
    fetched = Fetched(str(tmp_path))
    parts = [
        XQUAD,
        replace(XQUAD, split="test"),
        replace(XQUAD, config=None),
        replace(XQUAD, revision="refs/pr/1"),
        replace(XQUAD, revision="refs-pr-1"),
        replace(XQUAD, config=None, split=None, pattern="*.json"),
        replace(XQUAD, config=None, split=None, pattern="*_json"),
        replace(XQUAD, repository="google/xquad2"),
        Part("google/xquad", "model"),
    ]
    assert len({fetched.manifest_path(part) for part in parts}) == len(parts)
    assert fetched.manifest_path(XQUAD) == fetched.manifest_path(replace(XQUAD, languages=("th",))), "languages are added to it"
    assert fetched.location(XQUAD, COMMIT).endswith(f"/{COMMIT}/{XQUAD.name}/{{language}}/*")
    assert fetched.location(parts[2], COMMIT).endswith(f"/{parts[2].name}/*")
    assert fetched.location(parts[-1], COMMIT) == f"{tmp_path}/models/google--xquad/{COMMIT}/model"


def test_each_language_of_a_part_has_its_name_and_its_folder():
    renamed = replace(XQUAD, config="{language}_simple", names={"ar": "arabic"})
    flores = replace(XQUAD, config="{flores}")
    assert [renamed.filled("{language}_simple", language) for language in renamed.languages] == ["arabic_simple", "de_simple"]
    assert [flores.filled("{flores}", language) for language in flores.languages] == ["arb_Arab", "deu_Latn"]
    assert renamed.folders == flores.folders == ("ar", "de")
    assert replace(XQUAD, config="all").folders == ()


def test_manifests_are_checked(tmp_path):
    good = {
        "repository": "google/xquad",
        "revision": COMMIT,
        "languages": ["ar"],
        "files": [],
        "fetched": "2026-11-21T00:00:00+00:00",
    }
    fetched = Fetched(str(tmp_path))
    fetched.storage.write(*fetched.manifest_path(XQUAD), data=json.dumps(good).encode())
    assert fetched.find(replace(XQUAD, languages=("ar",)), where="here").revision == COMMIT
    with pytest.raises(UserError, match=r"here.*language de(.|\n)*cft-ray fetch"):
        fetched.find(XQUAD, where="here")
    bad = [{"path": "../out", "source": "a", "size": 1, "sha256": "0" * 64}]
    for change in ({"revision": "main"}, {"files": bad}, {"unknown": 1}):
        fetched.storage.write(*fetched.manifest_path(XQUAD), data=json.dumps(good | change).encode())
        with pytest.raises(UserError, match="damaged"):
            fetched.read(XQUAD)


def test_model_files():
    both = ["config.json", "tokenizer.model", "model-00001-of-00001.safetensors", "model.safetensors.index.json", "README.md"]
    other = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "consolidated.safetensors", "tf_model.h5"]
    other += ["original/consolidated.00.pth", "onnx/model.onnx", "x.gguf", ".gitattributes", "training_args.bin"]
    assert model_files(both + other) == both
    old = ["config.json", "pytorch_model.bin", "vocab.txt"]
    assert model_files([*old, "flax_model.msgpack"]) == old, "weights that are there in one form alone are taken"
    sentences = ["modules.json", "model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin", "pytorch_model.bin"]
    assert model_files(sentences) == sentences[:4], "each folder by itself"


def test_the_paper_needs(repository):
    grid = load_grid(repository / "grids" / "paper.yaml", ["exclude=[{phase2: mopenorca}]"])
    wanted = needs(grid)
    found = [(part.kind, part.repository) for part in wanted.parts]
    assert found[:4] == [
        ("model", "meta-llama/Meta-Llama-3-8B"),
        ("model", "meta-llama/Meta-Llama-3-8B-Instruct"),
        ("model", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("model", "mistralai/Mistral-7B-v0.1"),
    ]
    benchmarks = {"google/IFEval", "cais/mmlu", "Rowan/hellaswag", "google/xquad", "facebook/mlqa", "csebuetnlp/xlsum"}
    assert {("dataset", name) for name in benchmarks} < set(found)
    assert ("dataset", "DAMO-NLP-MT/multialpaca") in found and wanted.punkt
    [xlsum] = [part for part in wanted.parts if part.repository == "csebuetnlp/xlsum"]
    assert xlsum.filled(xlsum.config or "", "zh") == "chinese_simplified"
    local = load_grid(repository / "grids" / "smoke.yaml")
    assert needs(local).parts == () and not needs(local).punkt


def test_items_that_are_made_here_or_declared_by_nobody_are_no_parts_and_those_behind_them_are_had(repository):
    mine = "{name: mine, ability: TA, tasks: {en: my_task}, metric: acc}"
    found = needs(load_grid(repository / "grids" / "smoke.yaml", [f"evaluation.benchmarks=[toy_letters, {mine}, ifeval]"]))
    assert [(part.kind, part.repository) for part in found.parts] == [("dataset", "google/IFEval")]
    assert found.unknown == ("mine",) and found.punkt
