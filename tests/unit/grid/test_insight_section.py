"""The sections that choose among forms: insight, judge, loggers, and where a model or data set comes from."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cft_ray.data.languages import FLORES
from cft_ray.data.toy import TOY
from cft_ray.grid import loggers
from cft_ray.grid.insight import (
    LABSE,
    ActivationPart,
    Embedder,
    EmbeddingPart,
    Insight,
    default_embedder,
    default_parallel,
    default_prompts,
)
from cft_ray.grid.judge import Judge
from cft_ray.grid.loggers import Logger
from cft_ray.grid.sections import CheckpointSource, DatasetSource, Filter
from cft_ray.grid.settings import ActivationSettings, EmbeddingSettings, JudgeSettings


def said(model: type[BaseModel], values: Any) -> str:
    """What is wrong with it."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate(values)
    error = raised.value.errors()[0]
    assert error["type"] == "cft_ray", error
    return error["ctx"]["what"]  # pyright: ignore[reportTypedDictNotRequiredAccess]


# --- insight -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["embedding", "activations", "divergence", "replay_quality"])
def test_a_part_of_insight_is_on_off_or_changed(part):
    on = getattr(Insight(), part)
    assert on is not None and getattr(Insight.model_validate({part: True}), part) == on
    assert getattr(Insight.model_validate({part: False}), part) is None
    assert getattr(Insight.model_validate({part: {"max_length": 7}}), part).max_length == 7
    others = {"embedding", "activations", "divergence", "replay_quality"} - {part}
    assert all(getattr(Insight.model_validate({part: False}), other) == getattr(Insight(), other) for other in others)


def test_weight_differences_are_chosen():
    assert Insight.model_validate({"drift": False}).drift == () and Insight().drift == ("phases", "datasets")
    assert Insight.model_validate({"drift": ["datasets"]}).drift == ("datasets",)


def test_an_embedder_by_a_word_an_id_or_a_mapping():
    def model(value: Any) -> Embedder | None:
        return EmbeddingPart.model_validate({"model": value}).model

    assert model("lexical") == Embedder(lexical=True) and model("owner/model") == Embedder(hub="owner/model")
    assert model({"path": "x"}) == Embedder(path="x") and EmbeddingPart().model is None
    assert said(Embedder, {}) == "no model given"
    assert said(Embedder, {"hub": "a/b", "lexical": True}) == "hub and lexical given"
    assert said(Embedder, {"path": "x", "revision": "main"}) == "a revision of no repository"
    assert Embedder(hub="a/b", revision="main").revision == "main"


def test_a_part_tells_its_stage_what_the_stage_obeys_and_nothing_else():
    part = EmbeddingPart(sample=3, seed=4, max_length=5, text="answer", resamples=9)
    assert part.settings == EmbeddingSettings(sample=3, seed=4, max_length=5, text="answer")
    activations = ActivationPart(sample=3, prompts="x", dtype="float32")
    assert activations.settings == ActivationSettings(sample=3, dtype="float32")


def test_a_prompts_template_by_a_word():
    def template(value: Any) -> Any:
        return ActivationPart.model_validate({"template": value, "parallel_template": value})

    for word in ("grid", "none"):
        assert template(word).template == template(word).parallel_template == word
    assert template("plain").template.name == template({"name": "plain"}).parallel_template.name == "plain"


def test_what_insight_takes_where_a_grid_names_nothing():
    assert default_embedder(True) == Embedder(lexical=True)
    assert default_embedder(False) == Embedder(hub="sentence-transformers/LaBSE") and LABSE.endswith("LaBSE")
    assert default_prompts(True) == DatasetSource(toy="prompts", languages=("en",))
    bench = default_prompts(False)
    assert bench.hub == "HuggingFaceH4/mt_bench_prompts" and bench.columns == {"instruction": "prompt[0]", "id": "prompt_id"}


def test_parallel_sentences_are_in_english_and_the_grids_languages():
    toy = default_parallel(True, ["de", "en", "fr", "es", "de"])
    assert (
        toy is not None and (toy.toy, toy.languages) == ("parallel", ("en", "de", "es")) and "fr" not in TOY["parallel"].languages
    )
    assert (
        default_parallel(True, ["fr"]) is None and default_parallel(True, []) is None and default_parallel(False, ["en"]) is None
    )
    published = default_parallel(False, ["fr", "de", "fr", "xx"])
    assert published is not None and published.languages == ("en", "fr", "de") and "fr" in FLORES
    assert (published.hub, published.config, published.split) == ("openlanguagedata/flores_plus", "{flores}", "devtest")
    assert published.columns == {"instruction": "text", "id": "id"}
    two = default_parallel(False, ["de"])
    assert two is not None and two.languages == ("en", "de")


# --- the judge -----------------------------------------------------------------------------------------------------------

ENDPOINT = {"model": "judge", "base_url": "https://judge.example/v1"}


@pytest.mark.parametrize(
    "values",
    [
        ENDPOINT,
        ENDPOINT | {"key_env": "KEY"},
        {"hub": "a/b"},
        {"hub": "a/b", "revision": "main"},
        {"path": "x"},
        {"of": "a/base"},
        {"model": "judge", "base_url": "http://localhost:8000/v1", "key_env": "KEY"},
        {"model": "judge", "base_url": "http://127.8.0.1/v1", "key_env": "KEY"},
        {"model": "judge", "base_url": "http://[::1]:80/v1", "key_env": "KEY"},
        {"model": "judge", "base_url": "http://far.example/v1"},
        {"model": "judge", "base_url": "http://far.example/v1", "key_env": "KEY", "insecure": True},
    ],
    ids=str,
)
def test_a_judge(values):
    assert Judge.model_validate(values).model_dump().items() >= values.items()


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "no judge given"),
        (ENDPOINT | {"hub": "a/b"}, "model and hub given"),
        ({"path": "x", "of": "a/base"}, "path and of given"),
        ({"model": "judge"}, "half of an endpoint"),
        ({"hub": "a/b", "base_url": "https://judge.example"}, "half of an endpoint"),
        ({"hub": "a/b", "key_env": "KEY"}, "this is no variable of an endpoint"),
        (ENDPOINT | {"key_env": "sk-123"}, "this is no variable of an endpoint"),
        (ENDPOINT | {"base_url": "judge.example"}, "this is no endpoint's address"),
        (ENDPOINT | {"base_url": "https"}, "this is no endpoint's address"),
        (ENDPOINT | {"base_url": "ftp://judge.example"}, "this is no endpoint's address"),
        (ENDPOINT | {"base_url": "https://me@judge.example"}, "this is no endpoint's address"),
        (ENDPOINT | {"base_url": "https://judge.example?key=1"}, "this is no endpoint's address"),
        ({"model": "judge", "base_url": "http://far.example/v1", "key_env": "KEY"}, "the judge's key would travel in the clear"),
        ({"model": "judge", "base_url": "http://10.0.0.1/v1", "key_env": "KEY"}, "the judge's key would travel in the clear"),
        ({"model": "judge", "base_url": "http:///v1", "key_env": "KEY"}, "the judge's key would travel in the clear"),
        ({"path": "x", "revision": "main"}, "a revision of no repository"),
    ],
    ids=str,
)
def test_no_judge(values, what):
    assert said(Judge, values) == what


def test_a_judges_stage_is_told_how_it_is_asked_and_not_where_it_lies():
    assert Judge(hub="a/b", attempts=7, dtype="float32").settings == JudgeSettings(attempts=7, dtype="float32")
    assert Judge.model_validate({"hub": "a/b", "template": "plain"}).settings.template.name == "plain"
    assert Judge(hub="a/b").template.name == "chat"


# --- loggers -------------------------------------------------------------------------------------------------------------


def test_a_loggers_options_are_its_own():
    assert Logger(name="wandb", project="p", mode="offline").options == {"project": "p", "mode": "offline"}
    assert Logger(name="mlflow", tracking_uri="x", experiment="y").options == {"tracking_uri": "x", "experiment": "y"}
    for name, own in loggers.OPTIONS.items():
        values = {
            "folder": "x",
            "tracking_uri": "x",
            "experiment": "x",
            "project": "x",
            "entity": "x",
            "mode": "online",
            "dir": "x",
        }
        for option, value in values.items():
            if option in own:
                assert Logger.model_validate({"name": name, option: value}).options == {option: value}
            else:
                assert said(Logger, {"name": name, option: value}) == f"{name} has no option {option!r}"
            if option != "mode":
                with pytest.raises(ValidationError):
                    Logger.model_validate({"name": name, option: ""})


def test_relative_folders_of_a_logger_are_below_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Logger(name="tensorboard").anchored(Path("runs")).folder == str(tmp_path / "runs" / "tensorboard")
    assert Logger(name="tensorboard", folder="x").anchored(Path("runs")).folder == str(tmp_path / "runs" / "x")
    assert Logger(name="tensorboard", folder="/x/y").anchored(Path("runs")).folder == "/x/y"
    assert Logger(name="tensorboard", folder="~/y").anchored(Path("runs")).folder == str(Path.home() / "y")
    assert Logger(name="tensorboard", folder="s3://b/x").anchored(Path("runs")).folder == "s3://b/x"
    assert Logger(name="wandb").anchored(Path("runs")) == Logger(name="wandb")
    assert Logger(name="wandb", dir="databricks").anchored(Path("runs")).dir == str(tmp_path / "runs" / "databricks")
    for uri, anchored in (("mlruns", str(tmp_path / "runs/mlruns")), ("http://h:5000", "http://h:5000"), ("databricks://p", "databricks://p"),
                          ("databricks", "databricks")):  # fmt: skip
        logger = Logger(name="mlflow", tracking_uri=uri, experiment="e").anchored(Path("runs"))
        assert (logger.tracking_uri, logger.experiment, logger.folder) == (anchored, "e", None)


def test_the_first_logger_whose_package_is_absent(monkeypatch):
    chosen = [Logger(name="tensorboard"), Logger(name="mlflow"), Logger(name="wandb")]
    for absent, told in (
        ({"mlflow", "wandb"}, "loggers[1]: mlflow"),
        ({"wandb"}, "loggers[2]: wandb"),
        ({"tensorboard"}, "loggers[0]: tensorboard"),
    ):
        monkeypatch.setattr(loggers, "find_spec", lambda name, absent=absent: None if name in absent else object())
        error = loggers.lacking(chosen)
        assert error is not None and error.where == told
        assert error.fix == "pip install " + {"mlflow": "mlflow-skinny"}.get(told.split()[-1], told.split()[-1])
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    assert loggers.lacking(chosen) is None and loggers.lacking([]) is None


# --- where a checkpoint and a data set come from -------------------------------------------------------------------------

TRAIN = {"data": "x"}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "no origin given"),
        ({"hub": "a/b", "path": "x"}, "hub and path given"),
        ({"scratch": {}, "start": "base", "train": TRAIN}, "scratch and start given"),
        ({"scratch": {}}, "scratch without `train`"),
        ({"start": "base"}, "start without `train`"),
        ({"hub": "a/b", "train": TRAIN}, "hub with `train`"),
        ({"path": "x", "train": TRAIN}, "path with `train`"),
        ({"path": "x", "revision": "main"}, "a revision of no repository"),
    ],
    ids=str,
)
def test_no_checkpoint(values, what):
    assert said(CheckpointSource, values) == what


@pytest.mark.parametrize(
    "values",
    [{"hub": "a/b", "revision": "main"}, {"path": "x"}, {"scratch": {}, "train": TRAIN}, {"start": "base", "train": TRAIN}],
    ids=str,
)
def test_a_checkpoint(values):
    assert CheckpointSource.model_validate(values)


LANGUAGES = {"languages": ["de"]}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({}, "no origin given"),
        ({"hub": "a/b", "files": "x"}, "hub and files given"),
        ({"hub": "a/b", "toy": "x", "missing": "why"}, "hub and toy given"),
        ({"files": "x", "revision": "main"}, "no repository is named"),
        ({"files": "x", "config": "main"}, "no repository is named"),
        ({"toy": "x", "hub_files": "main"}, "no repository is named"),
        (
            {"files": "x", "format": "alpaca", "columns": {"instruction": "q"}},
            "`format` and `columns` both say what the columns are",
        ),
        ({"toy": "x", "format": "alpaca"}, "a toy data set has its own columns"),
        ({"toy": "x", "columns": {"instruction": "q"}}, "a toy data set has its own columns"),
        ({"files": "x", "columns": {"instruction": "q", "b": "q", "a": "q"}}, "unknown canonical column 'a'"),
        ({"files": "x", "columns": {"output": "q"}}, "no column of instructions"),
        ({"files": "x", "languages": ["de", "es", "de"]}, "a language is named twice"),
    ],
    ids=str,
)
def test_no_data_set(values, what):
    assert said(DatasetSource, LANGUAGES | values) == what


@pytest.mark.parametrize(
    "values",
    [
        {"hub": "a/b", "revision": "main", "config": "c", "hub_files": "*.parquet"},
        {"files": "x", "format": "alpaca"},
        {"files": "x", "columns": {"instruction": "q"}, "languages": ["de", "es"]},
        {"missing": "not published"},
        {"files": "x", "missing": "not published"},
        {"toy": "x"},
    ],
    ids=str,
)
def test_a_data_set(values):
    assert DatasetSource.model_validate(LANGUAGES | values).split == "train"


def test_a_value_of_a_filter_stands_for_a_list_of_it():
    assert Filter.model_validate({"model": "a", "seed": 3}) == Filter(model=["a"], seed=[3])
    assert Filter.model_validate({"model": ["a", "b"]}).model == ["a", "b"]
