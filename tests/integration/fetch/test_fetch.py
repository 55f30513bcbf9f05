"""`cft-ray fetch` against a hub on loopback: what is copied, what a grid then reads, and what the hub may refuse."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hubserver import Hub, serve

from cft_ray.data.sources import read
from cft_ray.evaluation.harness import run_benchmark
from cft_ray.evaluation.models import load_model
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec

CFT_RAY = Path(sys.executable).parent / "cft-ray"
TOKEN = "hf_planted0123456789planted0123456789"
LANGUAGES = {"ar": "arabic", "en": "english"}
ROWS = [{"instruction": f"ask {number}", "input": "", "output": f"answer {number}"} for number in range(3)]


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def summaries(language: str) -> list[dict]:
    return [{"id": f"{language}0", "url": "", "title": "", "summary": "MARK", "text": "an article"}]


def grid_of(folder: Path, **changes) -> Path:
    grid = {
        "name": "small",
        "storage": str(folder / "runs"),
        "models": {"tiny": {"base": {"hub": "tiny/planted"}}},
        "datasets": {
            "one": {"hub": "tiny/alpaca", "format": "alpaca", "languages": ["en"]},
            "many": {"hub": "tiny/many", "hub_files": "*{language}.json*", "format": "alpaca", "languages": ["de", "es"]},
        },
        "pairs": [{"phase1": "one", "phase2": "many"}],
        "strategies": ["none"],
        "evaluation": {
            "backend": "hf",
            "generation": {"max_length": 256, "max_new_tokens": 8},
            "benchmarks": [{"name": "xlsum", "languages": list(LANGUAGES)}, {"name": "xquad", "languages": ["en"]}],
        },
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid | changes))
    return path


@pytest.fixture
def hub(planted):
    """The repositories of the grid: a model in two formats, Parquet with and without README, JSON lines, a loading script."""
    files = {path.name: path.read_bytes() for path in Path(planted).iterdir() if path.is_file()}
    other = {"pytorch_model.bin": b"pickle", "original/consolidated.00.pth": b"pickle", "README.md": b"# planted"}
    question = {"id": "q0", "context": "MARK it is", "question": "what?", "answers": {"text": ["MARK"], "answer_start": [0]}}
    card = {"configs": [{"config_name": "xquad.en", "data_files": [{"split": "validation", "path": "xquad.en/validation-*"}]}]}
    hub = Hub()
    hub.add("model", "tiny/planted", files | other)
    hub.add("dataset", "tiny/alpaca", {"data/train-00000-of-00001.parquet": parquet(ROWS)})
    lines = {
        f"data/{language}.jsonl": "".join(json.dumps(row | {"input": language}) + "\n" for row in ROWS).encode()
        for language in ("de", "es", "fr")
    }
    hub.add("dataset", "tiny/many", lines)
    converted = {f"{LANGUAGES[language]}/test/0000.parquet": parquet(summaries(language)) for language in LANGUAGES}
    hub.add("dataset", "csebuetnlp/xlsum", {"xlsum.py": b"raise SystemExit"}, branches={"refs/convert/parquet": converted})
    readme = f"---\n{yaml.safe_dump(card)}---\n".encode()
    data = {f"xquad.en/{split}-00000-of-00001.parquet": parquet([question]) for split in ("validation", "test")}
    hub.add("dataset", "google/xquad", {"README.md": readme} | data)
    with serve(hub):
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Runs the command as a user does."""

    def run(grid: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": TOKEN,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "CFT_RAY_CACHE": str(tmp_path / "machine"),
        }
        command = [str(CFT_RAY), "fetch", str(grid), "--to", str(tmp_path / "copy"), *more]
        return subprocess.run(
            command, env=os.environ | given | environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def manifests(root: Path) -> dict[str, dict]:
    """Repository -> manifest."""
    found = [json.loads(path.read_text()) for path in root.rglob("*@*.json")]
    return {manifest["repository"]: manifest for manifest in found}


def test_a_grid_is_fetched_once_and_planned_and_read_from_the_copy(hub, fetch, tmp_path, planted, monkeypatch):
    done = fetch(grid_of(tmp_path))
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr and any(token for _, _, token in hub.asked)
    found = manifests(tmp_path / "copy")
    assert set(found) == {name for _, name in hub.repositories}
    for (kind, name), repository in hub.repositories.items():
        manifest = found[name]
        branch = "refs/convert/parquet" if name == "csebuetnlp/xlsum" else "main"
        assert manifest["revision"] == repository.commit(branch) and manifest["converted"] == (branch != "main")
        folder = next((tmp_path / "copy" / f"{kind}s" / name.replace("/", "--") / manifest["revision"]).iterdir())
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            file["path"] for file in manifest["files"]
        }
        for file in manifest["files"]:
            data = (folder / file["path"]).read_bytes()
            assert data == repository.branches[branch][file["source"]] and sha256(data).hexdigest() == file["sha256"]
    model = {file["source"] for file in found["tiny/planted"]["files"]}
    assert "model.safetensors" in model and not {"pytorch_model.bin", "original/consolidated.00.pth"} & model
    assert {file["source"] for file in found["tiny/many"]["files"]} == {"data/de.jsonl", "data/es.jsonl"}
    assert [file["source"] for file in found["google/xquad"]["files"]] == ["xquad.en/validation-00000-of-00001.parquet"]
    assert not list((tmp_path / "copy").glob(".incoming*"))

    hub.asked.clear()
    again = fetch(grid_of(tmp_path))
    assert again.returncode == 0 and hub.asked == [], "what is whole is not asked for again"

    # As a machine without internet plans and reads it.
    offline = load_grid(grid_of(tmp_path), [f"fetched={tmp_path / 'copy'}"])
    plan = build(offline)
    pins = {
        "models": {"tiny": {"base": {"hub": "tiny/planted", "revision": found["tiny/planted"]["revision"]}}},
        "datasets": {
            "one": {"hub": "tiny/alpaca", "format": "alpaca", "languages": ["en"], "revision": found["tiny/alpaca"]["revision"]},
            "many": {
                "hub": "tiny/many",
                "hub_files": "*{language}.json*",
                "format": "alpaca",
                "languages": ["de", "es"],
                "revision": found["tiny/many"]["revision"],
            },
        },
    }
    revisions = {"xlsum": found["csebuetnlp/xlsum"]["revision"], "xquad": found["google/xquad"]["revision"]}
    evaluation = yaml.safe_load((tmp_path / "grid.yaml").read_text())["evaluation"] | {"revisions": revisions}
    pinned = build(load_grid(grid_of(tmp_path, **pins, evaluation=evaluation)))
    assert set(plan.stages) == set(pinned.stages), "the same fingerprints as a grid that pins these commits"

    rows = {}
    for stage in plan.stages.values():
        if isinstance(stage.spec, DatasetSpec):
            found_rows = [row for table in read(stage.spec, Counter()) for row in table.to_pylist()]
            rows[stage.label] = [(row["language"], row["instruction"], row["input"]) for row in found_rows]
    assert rows["one"] == [("en", row["instruction"], "") for row in ROWS]
    assert rows["many"] == [(language, row["instruction"], language) for language in ("de", "es") for row in ROWS]

    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "machine"))
    for stage in plan.stages.values():
        if isinstance(stage.spec, EvaluateSpec) and "model" in stage.spec.checkpoints:
            path = stage.spec.checkpoints["model"].path
            assert path is not None and path.startswith(str(tmp_path / "copy"))
            spec = stage.spec.model_copy(update={"template": None})
            shown = run_benchmark(load_model(path, spec), spec).shown
            assert shown == ({"ar": 1.0, "en": 1.0} if spec.benchmark == "xlsum" else {"en": 1.0})
