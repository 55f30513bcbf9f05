"""`cft-ray fetch` against a hub on loopback: what is copied, what a grid then reads, and what the hub may refuse."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from hashlib import md5, sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hubserver import Hub, serve

from cft_ray.artifacts.fetched import Fetched
from cft_ray.data.accounts import Tally
from cft_ray.data.sources import read
from cft_ray.errors import UserError
from cft_ray.evaluation.harness import run_benchmark
from cft_ray.evaluation.models import load_model
from cft_ray.fetch.punkt import copy_punkt
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build
from cft_ray.plan.specs import DatasetSpec, EvaluateSpec
from cft_ray.storage.root import Storage

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
            command, env=os.environ | given | environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
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
            found_rows = [row for table in read(stage.spec, Tally()) for row in table.to_pylist()]
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


def downloaded(hub: Hub, repository: str = "") -> list[str]:
    """Names of the files that were asked for."""
    asked = [path for method, path, _ in hub.asked if method == "GET" and f"{repository}/resolve/" in path]
    return [path.rpartition("/")[2] for path in asked]


def test_more_languages_come_from_the_commit_that_is_there(hub, fetch, tmp_path):
    assert fetch(grid_of(tmp_path)).returncode == 0
    first = manifests(tmp_path / "copy")["tiny/many"]
    hub.repositories["dataset", "tiny/many"].branches |= {"old": dict(hub.repositories["dataset", "tiny/many"].branches["main"])}
    hub.repositories["dataset", "tiny/many"].branches["main"] = {"data/fr.jsonl": b"{}"}
    hub.asked.clear()
    more = fetch(grid_of(tmp_path), "--set", "datasets.many.languages=[de, es, fr]")
    assert more.returncode == 0, more.stderr
    then = manifests(tmp_path / "copy")["tiny/many"]
    assert then["revision"] == first["revision"] and {file["path"] for file in first["files"]} < {
        file["path"] for file in then["files"]
    }
    assert downloaded(hub) == ["fr.jsonl"]
    with pytest.raises(UserError, match="language it"):
        build(load_grid(grid_of(tmp_path), [f"fetched={tmp_path / 'copy'}", "datasets.many.languages=[de, it]"]))


def test_an_interrupted_download_is_continued(hub, fetch, tmp_path):
    model = hub.repositories["model", "tiny/planted"]
    size = len(model.branches["main"]["model.safetensors"])
    model.broken["model.safetensors"] = size // 2
    broken = fetch(grid_of(tmp_path), CFT_RAY_STORAGE_PATIENCE="0")
    refused_once(broken, tmp_path, "tiny/planted")
    assert not [path for path in (tmp_path / "copy" / "models").rglob("*") if path.is_file()]
    model.broken.clear()
    hub.asked.clear()
    assert fetch(grid_of(tmp_path)).returncode == 0
    assert downloaded(hub, "tiny/planted") == ["model.safetensors"], "files that had arrived are not downloaded twice"
    [folder] = (tmp_path / "copy" / "models" / "tiny--planted").glob("*/model")
    assert (folder / "model.safetensors").read_bytes() == model.branches["main"]["model.safetensors"]
    # A file that was lost from the copy is fetched again, and that alone.
    (folder / "config.json").unlink()
    hub.asked.clear()
    assert fetch(grid_of(tmp_path)).returncode == 0 and (folder / "config.json").exists()
    assert downloaded(hub) == ["config.json"]


def test_a_hub_that_is_away_for_a_while_and_cuts_is_waited_for(hub, fetch, tmp_path):
    model, begun = hub.repositories["model", "tiny/planted"], []
    model.broken["model.safetensors"] = len(model.branches["main"]["model.safetensors"]) // 3
    model.mends = True

    def away(path: str) -> tuple[int, dict[str, str]] | None:
        """Too much is asked of it at first; then it is down."""
        begun.append(time.monotonic())
        passed = time.monotonic() - begun[0]
        return (429, {"Retry-After": "2"}) if passed < 1 else (503, {}) if passed < 5 else None

    hub.refusing = away
    done = fetch(grid_of(tmp_path))
    assert done.returncode == 0, done.stderr
    assert begun[1] - begun[0] >= 2, "it asked for that"
    assert f"the hub {hub.url} does not answer (HTTP 503)" in done.stderr, done.stderr
    assert not model.broken and downloaded(hub, "tiny/planted").count("model.safetensors") > 1
    found = manifests(tmp_path / "copy")["tiny/planted"]
    for file in found["files"]:
        data = next((tmp_path / "copy" / "models" / "tiny--planted").glob(f"*/model/{file['path']}")).read_bytes()
        assert data == model.branches["main"][file["source"]] and sha256(data).hexdigest() == file["sha256"]


def test_a_hub_that_stays_away_is_said_once(hub, fetch, tmp_path):
    hub.refusing = lambda path: (503, {"X-Error-Message": f"https://signed.example/x?Signature={TOKEN}"})
    refused_once(fetch(grid_of(tmp_path), CFT_RAY_STORAGE_PATIENCE="1"), tmp_path, "HTTP 503", "network")


def refused_once(done: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    """One message that names what it is about, exit code 2, no secret, and no manifest of what is not whole."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
    [message] = [line for line in done.stderr.splitlines() if line.startswith("cft-ray: ")]
    assert all(word in done.stderr[done.stderr.index(message) :] for word in words), done.stderr
    assert "fix:" in done.stderr
    assert not [path for path in (folder / "copy").rglob("*@*.json") if "tiny--planted" in str(path)]


def test_what_the_hub_refuses(hub, fetch, tmp_path):
    model = hub.repositories["model", "tiny/planted"]
    model.gated = True
    refused_once(fetch(grid_of(tmp_path)), tmp_path, "tiny/planted", "HF_TOKEN")
    model.gated = False
    model.damaged.add("model.safetensors")
    refused_once(fetch(grid_of(tmp_path)), tmp_path, "model.safetensors")
    model.damaged.clear()
    model.branches["main"]["../outside.json"] = b"{}"
    refused_once(fetch(grid_of(tmp_path)), tmp_path, "../outside.json")
    del model.branches["main"]["../outside.json"]
    revision = ["--set", "models.tiny.base={hub: tiny/planted, revision: nowhere}"]
    refused_once(fetch(grid_of(tmp_path), *revision), tmp_path, "tiny/planted@nowhere")
    refused_once(fetch(grid_of(tmp_path), "--set", "models.tiny.base.hub=tiny/absent"), tmp_path, "tiny/absent")
    refused_once(fetch(grid_of(tmp_path), HF_HUB_OFFLINE="1"), tmp_path, "HF_HUB_OFFLINE")
    refused_once(fetch(grid_of(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", CFT_RAY_STORAGE_PATIENCE="0"), tmp_path, "network")
    (tmp_path / "file").write_text("")
    refused_once(fetch(grid_of(tmp_path), "--to", str(tmp_path / "file" / "below")), tmp_path, "storage")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("datasets.one={hub: tiny/alpaca, split: dev, format: alpaca, languages: [en]}", ("dev", "train")),
        ("datasets.one={hub: google/xquad, config: xquad.it, format: alpaca, languages: [en]}", ("xquad.it", "xquad.en")),
        ("datasets.many.languages=[de, it]", ("it",)),
        ("evaluation.revisions={xlsum: main}", ("script", "csebuetnlp/xlsum")),
    ],
)
def test_data_sets_without_such_files(hub, fetch, tmp_path, change, words):
    done = fetch(grid_of(tmp_path), "--set", change)
    assert done.returncode == 2 and "Traceback" not in done.stderr and all(word in done.stderr for word in words), done.stderr


def test_the_tasks_of_our_own_load_from_the_hub_itself(hub, tmp_path, repository):
    code = (
        "from lm_eval.tasks import TaskManager\n"
        f"tasks = TaskManager(include_path={str(repository / 'cft_ray/evaluation/tasks')!r}, include_defaults=False)\n"
        "loaded = tasks.load(['xlsum_ar', 'xlsum_en'])['tasks']\n"
        "print(sorted(task.test_docs()[0]['id'] for task in loaded.values()))"
    )
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip().endswith("['ar0', 'en0']"), done.stderr
    assert sorted(downloaded(hub, "csebuetnlp/xlsum")).count("0000.parquet") == 2


def test_punkt_comes_from_this_machine_or_from_nltk(tmp_path, monkeypatch):
    import nltk
    from nltk import data, pathsec

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("punkt_tab/english/collocations.tab", "a\tb\n")
    package = packed.getvalue()
    (tmp_path / "punkt_tab.zip").write_bytes(package)
    about = f'id="punkt_tab" subdir="tokenizers" unzip="1" size="{len(package)}" unzipped_size="4" name="Punkt" '
    digests = f'checksum="{md5(package).hexdigest()}" sha256_checksum="{sha256(package).hexdigest()}" '
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        index = f'<nltk_data><packages><package {about}{digests}url="{url}/punkt_tab.zip" /></packages><collections/></nltk_data>'
        (tmp_path / "index.xml").write_text(index)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data, "path", [])
        monkeypatch.setattr(pathsec, "ENFORCE", False)  # nltk asks no server on loopback otherwise
        copied = Fetched(str(tmp_path / "copy"))
        with pytest.raises(UserError, match="punkt_tab"):
            copy_punkt(copied, f"{url}/absent.xml")
        assert not (tmp_path / "copy").exists()
        assert copy_punkt(copied, f"{url}/index.xml") == 1 and copy_punkt(copied, f"{url}/index.xml") == 0
        server.shutdown()
    monkeypatch.setattr(data, "path", [copied.nltk_data])
    assert nltk.data.find("tokenizers/punkt_tab/english")
    assert copy_punkt(Fetched(str(tmp_path / "other")), "http://127.0.0.1:9/") == 1


def test_a_plan_says_what_has_not_been_fetched(hub, tmp_path):
    with pytest.raises(UserError, match=r"tiny/planted@main(.|\n)*cft-ray fetch"):
        build(load_grid(grid_of(tmp_path), [f"fetched={tmp_path / 'copy'}"]))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """URI of an empty bucket on loopback, which this process and its children can reach."""
    import boto3

    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "machine"))
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="copies")
    yield "s3://copies/hub"
    server.stop()


def test_a_bucket(hub, fetch, tmp_path, bucket, planted):
    done = fetch(grid_of(tmp_path), "--to", bucket)
    assert done.returncode == 0, done.stderr
    assert f"fetched={bucket}" in done.stdout and not [path for path in (tmp_path / "machine").rglob("*") if path.is_file()]
    hub.asked.clear()
    assert fetch(grid_of(tmp_path), "--to", bucket).returncode == 0 and hub.asked == []
    specs = [stage.spec for stage in build(load_grid(grid_of(tmp_path), [f"fetched={bucket}"])).stages.values()]
    [many] = [spec for spec in specs if isinstance(spec, DatasetSpec) and spec.hub == "tiny/many"]
    assert sum(table.num_rows for table in read(many, Tally())) == 2 * len(ROWS)
    scored = next(spec for spec in specs if isinstance(spec, EvaluateSpec) and spec.checkpoints and spec.benchmark == "xlsum")
    copied = Storage(scored.checkpoints["model"].path or "")
    assert copied.read("model.safetensors") == (Path(planted) / "model.safetensors").read_bytes()
    scored = scored.model_copy(update={"template": None})
    assert run_benchmark(load_model(planted, scored), scored).shown == {"ar": 1.0, "en": 1.0}
