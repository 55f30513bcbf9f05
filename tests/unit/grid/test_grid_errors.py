"""Every mistake in a grid is a UserError that names file, path and line, what is wrong and what would be right."""

# ruff: noqa: E501 - the table reads best with one case a line

import re

import pytest
import yaml

from cft_ray.errors import UserError
from cft_ray.grid.schema import grid_from_text, load_grid
from cft_ray.plan.build import build

GRID = """\
name: small
storage: {uri: runs/small}
models:
  toy:
    base:
      scratch: {layers: 4}
      train: {data: mixture}
    instruct: {start: base, train: {data: letters}}
datasets:
  mixture: {toy: mixture, languages: [en]}
  letters: {toy: alpaca, languages: [en]}
  many: {toy: multialpaca, languages: [de, es], english: letters}
pairs:
  - {phase1: letters, phase2: many}
  - {phase1: instruct, phase2: many}
strategies: [none, GR_10]
training:
  batch_size: 8
  steps: 10
evaluation: {benchmarks: [toy_letters]}
"""


def line_of(text, fragment):
    return next(number for number, line in enumerate(text.split("\n"), 1) if fragment in line)


def mistake(text, sets=()):
    with pytest.raises(UserError) as raised:
        build(grid_from_text(text, "small.yaml", sets))
    return raised.value


def test_the_grid_itself_is_sound():
    assert len(build(grid_from_text(GRID)).cells) == 4


# old text, new text, path, what, fix (parts of them)
CASES = {
    "unknown key": ("  batch_size: 8", "  batch_sise: 8", "training.batch_sise", "batch_sise", "batch_size"),
    "unknown key at the top": ("pairs:", "piars:", "piars", "piars", "pairs"),
    "unknown key in a list": ("{phase1: letters, phase2: many}", "{phase1: letters, phase3: many}", "pairs[0]", "phase", "phase2"),
    "unknown key of a checkpoint": ("{layers: 4}", "{layer: 4}", "models.toy.base.scratch.layer", "layer", "layers"),
    "wrong type": ("  batch_size: 8", "  batch_size: eight", "training.batch_size", "'eight'", "integer"),
    "wrong type of a section": ("strategies: [none, GR_10]", "strategies: {none: 1}", "strategies", "dict", "list"),
    "wrong value": ("  steps: 10", "  steps: 0", "training.steps", "0", "greater than 0"),
    "missing section": ("evaluation: {benchmarks: [toy_letters]}\n", "", "evaluation", "missing", "evaluation"),
    "unknown dataset": ("phase2: many}", "phase2: menny}", "pairs[0].phase2", "menny", "many"),
    "unknown dataset of a checkpoint": ("{data: mixture}", "{data: mixtrue}", "models.toy.base.train.data", "mixtrue", "mixture"),
    "unknown toy data set": ("{toy: mixture", "{toy: mixtur", "datasets.mixture.toy", "mixtur", "mixture"),
    "language that a toy data set lacks": ("[de, es]", "[de, fr]", "datasets.many.languages[1]", "fr", "de"),
    "unknown counterpart": ("english: letters", "english: leters", "datasets.many.english", "leters", "letters"),
    "unknown strategy": ("GR_10]", "GRR_10]", "strategies[1]", "GRR_10", "GR_10"),
    "unknown setting of a strategy": ("GR_10]", "{name: GR_10, ration: 0.1}]", "strategies[1].ration", "ration", "ratio"),
    "unknown checkpoint": ("start: base", "start: bose", "models.toy.instruct.start", "bose", "base"),
    "phase 1 names nothing": ("phase1: instruct", "phase1: instrukt", "pairs[1].phase1", "instrukt", "instruct"),
    "unknown benchmark": ("[toy_letters]", "[toy_lettres]", "evaluation.benchmarks[0]", "toy_lettres", "toy_letters"),
    "duplicate key": ("  steps: 10", "  steps: 10\n  steps: 20", "training.steps", "twice", "keep one"),
    "duplicate strategy": ("[none, GR_10]", "[none, GR_10, none]", "strategies[2]", "'none'", "own"),
    "duplicate pair": ("phase1: instruct,", "phase1: letters,", "pairs[1]", "letters→many", "keep one"),
    "duplicate seed": ("training:", "seeds: [1, 2, 1]\ntraining:", "seeds[2]", "twice", "keep one"),
    "ratio of zero": ("GR_10]", "{name: GR_10, ratio: 0}]", "strategies[1].ratio", "0", "greater than 0"),
    "ratio above one": ("GR_10]", "{name: GR_10, ratio: 1.5}]", "strategies[1].ratio", "1.5", "less than or equal to 1"),
    "top-k above the layers": ("GR_10]", "{name: LF_H2, layers: 5}]", "strategies[1]", "5 layers", "at most 4"),
    "batch not divisible": ("training:", "resources: {finetune: {workers: 3}}\ntraining:", "training.batch_size", "3 workers", "multiple of 3"),
    "empty after filters": ("training:", "exclude: [{model: '*'}]\ntraining:", "exclude", "no cell", "exclude"),
    "filter names nothing": ("training:", "include: [{strategy: GR_20}]\ntraining:", "include[0].strategy", "GR_20", "GR_10"),
    "circle of checkpoints": ("    instruct: {start: base", "    instruct: {start: instruct", "models.toy.instruct.start", "circle", "hub"),
    "two origins": ("{start: base, train", "{start: base, hub: a/b, train", "models.toy.instruct", "hub and start", None),
    "an option of another logger": ("training:", "loggers: [{name: mlflow, folder: x}]\ntraining:", "loggers[0]", "mlflow has no option 'folder'", "it has tracking_uri, experiment"),
    "an unknown option of a logger": ("training:", "loggers: [{name: mlflow, tracking_url: x}]\ntraining:", "loggers[0].tracking_url", "tracking_url", "tracking_uri"),
    "a secret": ("training:", "loggers: [{name: wandb, api_key: abc}]\ntraining:", "loggers[0].api_key", "secret", "environment"),
    "a password in a URI": ("runs/small", "'s3://me:pw@bucket/x'", "storage.uri", "password", "environment"),
    "steps and epochs": ("  steps: 10", "  steps: 10\n  epochs: 2", "training", "twice", "either epochs or steps"),
    "no layers to freeze": ("GR_10]", "{name: LF_H1, layers: 0}]", "strategies[1].layers", "0", "greater than 0"),
    "empty sweep": ("  steps: 10", "  steps: []", "training.steps", "empty", "at least one"),
    "bad name": ("  many:", "  'ma/ny':", "datasets", "ma/ny", "slashes"),
    "too few devices": ("training:", "cluster: {max_devices: 1}\nresources: {finetune: {workers: 2, gpus: 1}}\ntraining:", "resources.finetune", "2 devices", "at most 1"),
    "unknown device": ("training:", "cluster: {device: A100-80}\ntraining:", "cluster.device", "A100-80", "A100-80GB"),
    "missing base": ("    base:", "    bose:", "models.toy", "base", "base"),
    "ambiguous name": ("  mixture: {toy", "  instruct: {toy: instruct, languages: [en]}\n  mixture: {toy", "datasets.instruct", "both", "rename"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_named_with_its_place(name):
    old, new, path, what, fix = CASES[name]
    assert old in GRID
    text = GRID.replace(old, new, 1)
    error = mistake(text)
    assert error.where is not None and error.where.startswith(f"small.yaml: {path}"), error
    assert what in error.what, error
    if fix is not None:
        assert error.fix is not None and fix in error.fix, error


def test_line_is_that_of_the_value():
    text = GRID.replace("  batch_size: 8", "  batch_size: eight")
    assert mistake(text).where == f"small.yaml: training.batch_size (line {line_of(text, 'eight')})"


def test_value_from_the_command_line_is_named_so():
    assert mistake(GRID, ["training.batch_size=eight"]).where == "small.yaml: training.batch_size (--set)"


def test_yaml_syntax_names_the_line():
    error = mistake(GRID.replace("pairs:\n", "pairs: [\n"))
    assert error.where is not None and re.fullmatch(r"small\.yaml \(line \d+\)", error.where)


def test_further_mistakes_are_counted():
    text = GRID.replace("uri: runs", "url: runs").replace("{layers: 4}", "{layers: no}")
    assert re.search(r"\d more", mistake(text).what)


def test_missing_file_and_no_mapping(tmp_path):
    with pytest.raises(UserError) as raised:
        load_grid(tmp_path / "none.yaml")
    assert raised.value.where is not None and raised.value.where.endswith("none.yaml")
    assert "mapping" in mistake("- a\n").what


def test_missing_local_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    files = tmp_path / "{language}.jsonl"
    (tmp_path / "de.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    declared = f"{{files: '{files}', format: alpaca, languages: [de, es]}}"
    error = mistake(GRID.replace("{toy: multialpaca, languages: [de, es], english: letters}", declared).replace(", GR_10", ""))
    assert "es.jsonl" in error.what and error.where is not None and "datasets.many.files" in error.where


def test_counterpart_that_replay_needs():
    error = mistake(GRID.replace(", english: letters", ""))
    assert error.where is not None and "strategies[1]" in error.where
    assert error.fix is not None and "english" in error.fix


def _places(value, path=()):
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


@pytest.mark.parametrize("wrong", [None, -1, "x", [], {"x": 1}, [["x"]], float("nan")], ids=repr)
def test_anything_anywhere_is_a_plan_or_a_user_error_with_a_place(wrong):
    for path in _places(yaml.safe_load(GRID)):
        values = yaml.safe_load(GRID)
        node = values
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = wrong
        try:
            build(grid_from_text(yaml.safe_dump(values), "small.yaml"))
        except UserError as error:
            assert error.where, (path, error)


def test_alias_bomb_and_depth_are_refused():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
    )
    assert "too many" in mistake(bomb).what
    assert "deep" in mistake("a: " + "[" * 60 + "]" * 60).what


def test_nothing_is_constructed_but_plain_values():
    mistake(GRID.replace("batch_size: 8", "batch_size: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize("change", ["training", "=1", "pairs.7.phase1=x", "strategies.LoRA.rank=2", "name.deeper=1"])
def test_set_that_fits_nowhere(change):
    error = mistake(GRID, [change])
    assert error.where is not None and change.split("=")[0] in error.where
