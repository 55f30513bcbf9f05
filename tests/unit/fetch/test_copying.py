"""What a copy of the hub holds, against a hub on loopback that the client in this process asks."""

import io
import json
from dataclasses import replace
from hashlib import sha1, sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets.config
import huggingface_hub.constants as constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hubserver import LARGE, Hub, serve

from cft_ray.artifacts.fetched import Fetched, Part
from cft_ray.errors import UserError
from cft_ray.fetch import copy as copying
from cft_ray.fetch import grid as whole
from cft_ray.fetch import hub as asked_of
from cft_ray.fetch import punkt
from cft_ray.fetch.copy import copy
from cft_ray.fetch.hub import listing
from cft_ray.grid.schema import load_grid

MODEL = Part("tiny/model", "model")
FILES = {"config.json": b"{}", "model.safetensors": b"weights, " * LARGE, "pytorch_model.bin": b"pickle", "README.md": b"# x"}
MANY = Part("tiny/many", "dataset", pattern="data/*-{language}*.jsonl", languages=("de", "es"))


def parquet(count: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": list(range(count))}), sink)
    return sink.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    made = Hub()
    made.add("model", "tiny/model", dict(FILES))
    lines = {f"data/{n}-{language}.jsonl": f"{n}{language}".encode() for n in "ba" for language in ("de", "es", "fr")}
    made.add("dataset", "tiny/many", lines | {"data/notes.txt": b""})
    converted = {f"{config}/{split}/{n:04d}.parquet": parquet(n + 1) for config in ("arabic", "x") for split in ("test", "train")
                 for n in (0, 1)}  # fmt: skip
    made.add("dataset", "tiny/script", {"script.py": b"raise SystemExit"}, branches={"refs/convert/parquet": converted})
    made.add("dataset", "tiny/unconverted", {"unconverted.py": b""})
    with serve(made):
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", made.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield made


@pytest.fixture
def fetched(tmp_path) -> Fetched:
    return Fetched(str(tmp_path / "copy"))


def files_of(fetched: Fetched, part: Part, commit: str) -> dict[str, bytes]:
    folder = Path(fetched.storage.location(*fetched.folder(part, commit)))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def downloads(hub: Hub) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]


def test_a_model_is_copied_once_with_what_describes_it(hub, fetched):
    told: list[str] = []
    first = copy(MODEL, fetched, told.append)
    commit = hub.repositories["model", "tiny/model"].commit("main")
    kept = {name: data for name, data in FILES.items() if name != "pytorch_model.bin"}
    assert files_of(fetched, MODEL, commit) == kept and (first.new, first.size) == (3, sum(map(len, kept.values())))
    assert told == [f"model tiny/model@main at {commit[:12]}: 3 files, 0.1 MiB"]
    assert first.copied.revision == commit and not first.copied.converted and first.copied.languages == []
    described = {file.path: (file.source, file.size, file.sha256) for file in first.copied.files}
    assert described == {name: (name, len(data), sha256(data).hexdigest()) for name, data in kept.items()}
    assert [file.path for file in first.copied.files] == sorted(kept) and fetched.read(MODEL) == first.copied
    assert not list(Path(fetched.storage.uri).glob(".incoming*"))
    hub.asked.clear()
    again = copy(MODEL, fetched, told.append)
    assert (again.new, again.size, again.copied) == (0, 0, first.copied) and hub.asked == [] and len(told) == 1


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_what_was_lost_of_a_copy_is_fetched_alone_and_from_the_same_commit(hub, fetched, harm):
    first = copy(MODEL, fetched)
    file = Path(fetched.storage.location(*fetched.folder(MODEL, first.copied.revision), "config.json"))
    file.unlink() if harm == "gone" else file.write_bytes(b"{")
    repository = hub.repositories["model", "tiny/model"]
    repository.branches |= {"old": dict(FILES), "main": FILES | {"config.json": b"{ }"}}
    hub.asked.clear()
    again = copy(MODEL, fetched)
    assert (again.new, again.size) == (1, 2) and again.copied.revision == first.copied.revision
    assert file.read_bytes() == b"{}" and downloads(hub) == ["config.json"]


def test_languages_have_numbered_files_in_folders_of_their_own_and_more_can_come(hub, fetched):
    first = copy(MANY, fetched)
    commit = first.copied.revision
    wanted = {f"{x}/{number:04d}-{n}-{x}.jsonl": f"{n}{x}".encode() for x in ("de", "es") for number, n in enumerate("ab")}
    assert files_of(fetched, MANY, commit) == wanted and first.copied.languages == ["de", "es"]
    hub.asked.clear()
    assert copy(replace(MANY, languages=("es",)), fetched).new == 0 and hub.asked == []
    more = copy(replace(MANY, languages=("fr", "de")), fetched)
    assert (more.new, more.copied.languages) == (2, ["de", "es", "fr"]) and sorted(downloads(hub)) == ["a-fr.jsonl", "b-fr.jsonl"]
    assert len(files_of(fetched, MANY, commit)) == 6 and len(more.copied.files) == 6
    with pytest.raises(UserError, match=r"there is no file for data/\*-it\*\.jsonl"):
        copy(replace(MANY, languages=("it",)), fetched)
    plain = copy(replace(MANY, pattern="data/*-de.jsonl", languages=("de",)), fetched)
    assert sorted(file.path for file in plain.copied.files) == ["0000-a-de.jsonl", "0001-b-de.jsonl"]


def test_a_loading_script_is_taken_from_the_hubs_conversion(hub, fetched):
    part = Part("tiny/script", "dataset", config="{language}", split="test", languages=("ar",), names={"ar": "arabic"})
    found = copy(part, fetched).copied
    assert found.converted and found.revision == hub.repositories["dataset", "tiny/script"].commit("refs/convert/parquet")
    assert {file.path: file.source for file in found.files} == {
        f"ar/{n:04d}-{n:04d}.parquet": f"arabic/test/{n:04d}.parquet" for n in (0, 1)
    }
    any_config = listing(Part("tiny/script", "dataset", split="train"))
    assert sorted(file.path for file in any_config.files.values()) == sorted(
        f"{config}/train/{n:04d}.parquet" for config in ("arabic", "x") for n in (0, 1)
    )
    with pytest.raises(UserError, match="there is no file for x, other"):
        listing(Part("tiny/script", "dataset", config="x", split="other"))
    with pytest.raises(UserError, match="leave the revision out"):
        main = hub.repositories["dataset", "tiny/script"].commit("main")
        listing(Part("tiny/script", "dataset", revision=main, config="x", split="test"))
    with pytest.raises(UserError, match="has not converted it"):
        listing(Part("tiny/unconverted", "dataset", config="x", split="test"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_arrives_otherwise_than_the_hub_says_takes_no_place(hub, fetched, name):
    repository = hub.repositories["model", "tiny/model"]
    repository.damaged.add(name)
    with pytest.raises(UserError, match=f"{name} did not arrive"):
        copy(MODEL, fetched)
    assert fetched.read(MODEL) is None
    repository.damaged.clear()
    assert copy(MODEL, fetched).new > 0


def test_a_repository_with_a_name_that_leads_out_is_refused(hub):
    hub.repositories["model", "tiny/model"].branches["main"]["../out.json"] = b"{}"
    with pytest.raises(UserError, match=r"a file named '\.\./out\.json'"):
        listing(MODEL)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (Part("tiny/absent", "model"), "no such repository"),
        (Part("tiny/model", "model", "nowhere"), "no such revision"),
        (Part("a/b/c", "model"), "no repository's name"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(hub, part, what):
    with pytest.raises(UserError, match=what) as raised:
        listing(part)
    assert raised.value.where == str(part)


def test_a_gated_repository_asks_for_a_token(hub):
    hub.repositories["model", "tiny/model"].gated = True
    with pytest.raises(UserError) as raised:
        copy(MODEL, Fetched("/tmp/never-written"))
    assert "HF_TOKEN" in str(raised.value.fix)


def test_a_split_is_the_files_that_datasets_would_read(hub, monkeypatch):
    def builder(repository: str, config: str | None, *, revision: str, cache_dir: str) -> Any:
        if config == "absent":
            raise ValueError("BuilderConfig 'absent' not found. Available: ['x']\nmore")
        place = f"hf://datasets/{repository}@{revision}"
        return SimpleNamespace(config=SimpleNamespace(data_files={"test": [f"{place}/d/b.json", f"{place}/d/a.json"]}))

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    hub.add("dataset", "tiny/split", {"d/a.json": b"1", "d/b.json": b"22", "d/c.json": b""})
    part = Part("tiny/split", "dataset", config="x", split="test")
    assert {name: file.path for name, file in listing(part).files.items()} == {
        "0000-b.json": "d/b.json",
        "0001-a.json": "d/a.json",
    }
    with pytest.raises(UserError, match="there is no split 'dev'") as raised:
        listing(replace(part, split="dev"))
    assert raised.value.fix == "name one of test"
    with pytest.raises(UserError, match=r"'absent' not found\. Available: \['x'\]") as raised:
        listing(replace(part, config="absent"))
    assert "more" not in raised.value.what


def test_files_are_known_by_what_the_hub_knows_of_them(tmp_path):
    data = b"content"
    (tmp_path / "a").write_bytes(data)
    blob = sha1(b"blob 7\0" + data).hexdigest()

    def described(size: int = 7, blob_id: str = blob, lfs: str | None = None) -> Any:
        return SimpleNamespace(size=size, blob_id=blob_id, lfs=None if lfs is None else SimpleNamespace(sha256=lfs))

    right = sha256(data).hexdigest()
    for file, fits in (
        (described(), True),
        (described(blob_id="0" * 40), False),
        (described(size=8), False),
        (described(lfs=right, blob_id="0"), True),
        (described(lfs="0" * 64), False),
        (described(lfs=right, size=6), False),
    ):
        assert copying._is(tmp_path / "a", file) == fits


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0.0 MiB"), (2**20 * 3 // 2, "1.5 MiB"), (2**30 - 1, "1024.0 MiB"), (2**30, "1.0 GiB"), (5 * 2**29, "2.5 GiB")],
)
def test_amounts(size, said):
    assert copying._amount(size) == said


def test_to_a_bucket_files_are_put_from_this_machine(hub, tmp_path, fetched, monkeypatch):
    """As of a bucket: the storage says that it is not local."""
    monkeypatch.setattr(fetched.storage, "local", False)
    monkeypatch.setattr(fetched.storage, "path", lambda *parts: "/".join((fetched.storage.root, *parts)))
    found = copy(MODEL, fetched)
    assert found.new == 3 and set(files_of(fetched, MODEL, found.copied.revision)) == set(FILES) - {"pytorch_model.bin"}
    assert not any(path.name.startswith(".incoming") for path in Path(fetched.storage.uri).iterdir())
    assert not any((tmp_path / "cache" / "fetch").iterdir())


def test_all_that_a_grid_needs_comes_to_one_place(hub, repository, tmp_path, monkeypatch):
    grid = load_grid(repository / "grids" / "smoke.yaml")
    monkeypatch.setattr(whole, "needs", lambda given: SimpleNamespace(parts=(MODEL, MANY), punkt=True, unknown=("mine",)))
    monkeypatch.setattr(whole, "copy_punkt", lambda fetched: 7)
    told: list[str] = []
    found = whole.fetch(grid, str(tmp_path / "copy"), told.append)
    assert [(part, result.new) for part, result in found.parts] == [(MODEL, 3), (MANY, 4)] and len(told) == 2
    assert (found.uri, found.punkt, found.unknown) == (str(tmp_path / "copy"), 7, ("mine",))
    monkeypatch.setattr(whole, "needs", lambda given: SimpleNamespace(parts=(), punkt=False, unknown=()))
    assert whole.fetch(grid, str(tmp_path / "copy")).punkt is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        whole.fetch(grid, str(tmp_path / "file" / "below"))


# nltk's sentence tokenizer


def punkt_data(folder: Path) -> Path:
    for name in ("english/a.txt", "german/b.txt"):
        path = folder / "tokenizers" / "punkt_tab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_punkt_is_copied_once_and_its_end_is_marked(fetched, tmp_path, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(punkt_data(tmp_path / "nltk"))])
    assert punkt.copy_punkt(fetched) == 2 and punkt.copy_punkt(fetched) == 0
    there = Path(fetched.nltk_data) / "tokenizers" / "punkt_tab"
    assert {path.relative_to(there).as_posix() for path in there.rglob("*.txt")} == {"english/a.txt", "german/b.txt"}
    (Path(fetched.nltk_data) / "punkt_tab.complete").unlink()
    assert punkt.copy_punkt(fetched) == 2, "without its mark it may not be whole"


@pytest.mark.parametrize("outcome", ["whole", "refused", "half", "broken"])
def test_punkt_is_downloaded_where_this_machine_has_none(fetched, monkeypatch, outcome):
    import nltk
    import nltk.downloader

    class Downloader:
        def __init__(self, index: str | None, folder: str) -> None:
            self.index, self.folder = index, Path(folder)

        def download(self, name: str, *, quiet: bool, raise_on_error: bool) -> bool:
            assert (self.index, name, quiet, raise_on_error) == ("http://index", "punkt_tab", True, True)
            if outcome == "broken":
                raise ValueError("secret url")
            if outcome == "whole":
                punkt_data(self.folder)
            return outcome != "refused"

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk.downloader, "Downloader", Downloader)
    if outcome == "whole":
        assert punkt.copy_punkt(fetched, "http://index") == 2
        return
    with pytest.raises(UserError, match="punkt_tab, which ifeval needs, cannot be downloaded") as raised:
        punkt.copy_punkt(fetched, "http://index")
    assert ("(ValueError)" in raised.value.what) == (outcome == "broken") and "secret" not in str(raised.value)
    assert not list(fetched.storage.list("nltk_data"))


def test_manifests_are_json_that_people_can_read(hub, fetched):
    copy(MODEL, fetched)
    text = fetched.storage.read(*fetched.manifest_path(MODEL))
    assert text is not None and json.loads(text)["repository"] == "tiny/model" and text.count(b"\n") > 10
    assert asked_of.CONVERTED == "refs/convert/parquet"
