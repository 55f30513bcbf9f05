"""How what the grid decides reaches the harness' tasks: generation arguments, files, commits; no task is loaded for it."""

from types import SimpleNamespace
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.evaluation import harness, items, overlay, punkt
from cft_ray.evaluation.harness import Benchmark
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.settings import GenerationSettings
from cft_ray.plan.specs import EvaluateSpec
from cft_ray.storage.files import Found


class Task:
    """What the harness' tasks let be read and set."""

    def __init__(self, **config: Any) -> None:
        self.config = config

    def get_config(self, name: str) -> Any:
        return self.config.get(name)

    def set_config(self, name: str, value: Any) -> None:
        self.config[name] = value


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [
        ({"until": ["\n"]}, {"stop": ("END",)}, {"until": ["\n", "END"]}),
        ({"until": "\n", "max_gen_toks": 5}, {}, {"until": ["\n"], "max_gen_toks": 5}),
        ({"max_gen_toks": 5}, {"max_new_tokens": 7}, {"until": [], "max_gen_toks": 7}),
        (None, {"temperature": 0.5}, {"until": [], "do_sample": True, "temperature": 0.5}),
        ({"do_sample": False}, {"temperature": 0.0}, {"until": [], "do_sample": False}),
    ],
)
def test_a_generating_task_gets_what_the_grid_says_beside_its_own(own, asked, given):
    task: Any = Task(output_type="generate_until", generation_kwargs=own)
    harness._apply_generation(task, GenerationSettings(**{"max_new_tokens": None, **asked}))
    assert task.config["generation_kwargs"] == given
    scored: Any = Task(output_type="multiple_choice", generation_kwargs=own)
    harness._apply_generation(scored, GenerationSettings(**asked))
    assert scored.config == {"output_type": "multiple_choice", "generation_kwargs": own}


@pytest.mark.parametrize("splits", [{"test_split": "test"}, {"validation_split": "test"}])
def test_the_scored_items_are_made_once_and_others_anew(splits):
    made, items, examples = object(), object(), object()
    task: Any = Task(process_docs=lambda given: ("made of", given), **splits)
    task.task_docs, task.dataset = made, {"test": items, "train": examples}
    harness._process_once(task)
    process = task.config["process_docs"]
    assert process(items) is made and process(examples) == ("made of", examples)
    plain: Any = Task(**splits)
    plain.task_docs = made
    harness._process_once(plain)
    assert "process_docs" not in plain.config
    later: Any = Task(process_docs=process, **splits)
    harness._process_once(later)
    assert later.config["process_docs"] is process


def test_members_groups_and_the_commits_that_items_came_from():
    spec: Any = SimpleNamespace(tasks={"en": "all", "de": "alone"})
    commit, other = "a" * 40, "b" * 40
    sources = [f"hf://datasets/org/set@{commit}/x.parquet", "https://elsewhere/x", f"hf://datasets/o/two@{other}/y"]
    split = SimpleNamespace(info=SimpleNamespace(download_checksums=dict.fromkeys(sources, 1)))
    bare = SimpleNamespace(info=SimpleNamespace(download_checksums=None))
    group = SimpleNamespace(
        get_all_tasks=lambda: [SimpleNamespace(task_name=name) for name in "xy"],
        get_all_groups=lambda: [SimpleNamespace(name="below")],
    )
    tasks = {"x": SimpleNamespace(dataset={"test": split, "train": bare}), "alone": SimpleNamespace(dataset={"test": bare})}
    found = Benchmark(spec, {"tasks": tasks, "groups": {"all": group}}, canonical=False)
    assert found.members == {"all": ["x", "y"], "alone": ["alone"]} and found.groups == {"all": ["below"], "alone": []}
    assert found.revisions == {"org/set": commit, "o/two": other}
    without = Benchmark(spec, {"tasks": {}}, canonical=False)
    assert without.members == {"all": ["all"], "alone": ["alone"]} and without.revisions == {}


def test_items_that_cannot_be_loaded_are_the_users_affair(monkeypatch):
    def load(names: list[str]) -> Any:
        raise OSError("no such file, at https://host/x?signature=secret")

    monkeypatch.setattr(harness, "task_manager", lambda *_: SimpleNamespace(load=load))
    spec: Any = SimpleNamespace(benchmark="b", tasks={"en": "one", "de": "two"})
    with pytest.raises(UserError, match="the items of one, two cannot be loaded") as raised:
        harness._load(spec, None, None)
    assert "evaluation.data.b" in (raised.value.fix or "") and "secret" not in str(raised.value)


def test_a_copy_of_items_has_as_many_bytes_as_were_listed(tmp_path):
    (tmp_path / "there.jsonl").write_text("12345")
    for size in (5, 6):
        file = Found(path="there.jsonl", location=str(tmp_path / "there.jsonl"), size=size, changed=0)
        if size == 5:
            items._copy(file, tmp_path / "deep" / "here.jsonl")
            assert (tmp_path / "deep" / "here.jsonl").read_text() == "12345"
        else:
            with pytest.raises(UserError, match="5 of 6 bytes came"):
                items._copy(file, tmp_path / "deep" / "here.jsonl")


def test_sentences_are_looked_for_in_the_grids_folder_first(tmp_path, monkeypatch):
    import nltk

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "elsewhere")])
    (tmp_path / "grid" / "tokenizers" / "punkt_tab" / "english").mkdir(parents=True)
    with pytest.raises(UserError, match="no tokenizers/punkt_tab"):
        punkt.require_punkt()
    with pytest.raises(UserError, match="no tokenizers/punkt_tab"):
        punkt.require_punkt(str(tmp_path / "absent"))
    for _ in range(2):
        punkt.require_punkt(str(tmp_path / "grid"))
        assert nltk.data.path[0] == str(tmp_path / "grid") and nltk.data.path.count(str(tmp_path / "grid")) == 1


def entry(kind: str, **more: Any) -> Any:
    return SimpleNamespace(kind=SimpleNamespace(name=kind), **more)


def test_the_tasks_below_groups_and_tags():
    index = {
        "g": entry("GROUP", cfg={"task": ["a", {"task": "b"}, {"group": "h"}]}),
        "h": entry("GROUP", cfg={"task": ["t"]}),
        "t": entry("TAG", tags={"d", "c"}),
        **{name: entry("TASK") for name in "abcd"},
    }
    manager: Any = SimpleNamespace(task_index=index)
    assert list(overlay.leaves(manager, "g")) == ["a", "b", "c", "d"] and list(overlay.leaves(manager, "a")) == ["a"]
    index["h"].cfg["task"] = [{"group": "t"}]
    assert list(overlay.leaves(manager, "h")) == ["c", "d"]


def test_a_task_that_is_not_there_names_the_nearest():
    manager: Any = SimpleNamespace(task_index={"hellaswag": 1}, all_tasks=["hellaswag"])
    for name, fix in (("helaswag", "did you mean 'hellaswag'?"), ("zzz", "name a task that the harness lists")):
        spec: Any = SimpleNamespace(benchmark="b", tasks={"en": "hellaswag", "de": name})
        with pytest.raises(UserError, match="has no task") as raised:
            overlay._require(manager, spec)
        assert raised.value.fix == fix and raised.value.where == "benchmark b, language de"


@pytest.mark.parametrize(
    ("config", "given", "splits"),
    [
        ({"test_split": "test", "validation_split": "dev"}, {"test": ["f"]}, ["dev", "test"]),
        ({"validation_split": "dev", "fewshot_split": "train"}, {"dev": ["f"]}, ["dev", "train"]),
        ({"test_split": "test", "fewshot_config": {"split": "few"}}, {"test": ["f"]}, ["few", "test"]),
    ],
)
def test_files_stand_for_the_split_that_is_scored(config, given, splits):
    found = overlay._from_files("own", config, {"scored": ("f",)}, "own")
    assert found == {"dataset_kwargs": {"files": given, "splits": splits}}
    with pytest.raises(UserError, match="no file is given for it"):
        overlay._from_files("own", config, {"another": ["f"]}, "own")


def test_of_files_of_many_tasks_each_takes_its_own():
    mmlu = BENCHMARKS["mmlu"]
    assert mmlu.items is not None and mmlu.items.by is not None
    config = {"test_split": "test", "dataset_name": "law"}
    (asked,) = mmlu.tasks.values()
    found = overlay._from_files("mmlu_law", config, {"scored": ["f"]}, asked)["dataset_kwargs"]
    assert found["only"] == {mmlu.items.by: "law"}
    assert "only" not in overlay._from_files(asked, config, {"scored": ["f"]}, asked)["dataset_kwargs"]
    shaped = overlay._from_files("hellaswag", config, {"scored": ["f"]}, "hellaswag")["dataset_kwargs"]
    assert shaped["shape"] == "hellaswag" and "shape" not in found


def test_a_commit_stands_beside_what_a_task_says_of_its_data():
    assert overlay._at_commit({"dataset_kwargs": {"name": "x"}}, "c") == {"dataset_kwargs": {"name": "x", "revision": "c"}}
    assert overlay._at_commit({}, "c") == {"dataset_kwargs": {"revision": "c"}}


def folders(**tasks: str) -> list[str] | None:
    spec: EvaluateSpec = SimpleNamespace(tasks=tasks)  # type: ignore[assignment]
    found = overlay._folders(spec)
    return None if found is None else [folder.name for folder in found]


def test_only_the_folders_of_known_tasks_are_read():
    hellaswag = BENCHMARKS["hellaswag"]
    assert folders(en=next(iter(hellaswag.tasks.values()))) == [hellaswag.folder]
    assert folders(en="toy_letters") == [] and folders(en="toy_letters", de="of_somebody") is None
