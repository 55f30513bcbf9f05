"""What a plan shows in numbers, written out by hand or computed beside it; shapes, places and reasons."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from made import Made
from rich.console import Console

from cft_ray.data.accounts import RowAccount
from cft_ray.data.toy import generate
from cft_ray.errors import UserError
from cft_ray.grid.schema import Grid, grid_from_text, load_grid
from cft_ray.plan.build import build
from cft_ray.plan.items import located
from cft_ray.plan.known import DATASETS, ITEMS, MEMORY_BYTES, PEAK_FLOPS, SHAPES, checkpoint_shape, toy_size
from cft_ray.plan.show import _memory, _number, show
from cft_ray.plan.specs import SPECS, Checkpoint
from cft_ray.plan.stage import Plan, skips
from cft_ray.plan.view import as_json, stored, view


def lines(plan: Plan, grid: Grid, made: list[Made], **options: Any) -> list[list[str]]:
    """What is shown in a very wide terminal, in words."""
    text = io.StringIO()
    show(plan, grid, Console(file=text, width=1000), made, **options)
    return [line.split() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "?"), (0, "0"), (0.0123, "0.0123"), (999.4, "999"), (1000, "1k"), (1234, "1.23k"), (1e6, "1M"), (2.5e9, "2.5G"),
        (1e12, "1T"), (9.99e15, "9.99P"), (1e18, "1E"), (1.5e21, "1.5e+03E"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_unit(value, said):
    assert _number(value) == said


@pytest.mark.parametrize(("value", "said"), [(None, "?"), (80e9, "80.0"), (5e7, "0.1"), (4.9e7, "0.049"), (1.26e9, "1.3")])
def test_memory_is_in_gigabytes(value, said):
    assert _memory(value) == said


def test_reasons_for_skipping_are_counted():
    assert skips(["no judge", None, "no key", "no judge"]) == ["skipped: no judge (2 stages)", "skipped: no key (1 stage)"]
    assert skips([None]) == []


def test_the_kinds_that_occur_in_the_order_of_the_work(repository):
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    seen = view(plan, grid, [])
    kinds = {kind.kind: kind for kind in seen.kinds()}
    there = {stage.kind for stage in plan.stages.values()}
    assert list(kinds) == [kind for kind in SPECS if kind in there] and set(SPECS) - there
    new = [seen.estimates[key] for key, stage in plan.stages.items() if stage.kind == "finetune"]
    assert kinds["finetune"].tokens == pytest.approx(sum(estimate.tokens or 0 for estimate in new))
    assert kinds["finetune"].money == pytest.approx(sum(estimate.money or 0 for estimate in new))
    assert kinds["finetune"].memory_bytes == max(estimate.memory_bytes or 0 for estimate in new)
    assert all(kinds[kind].unknown == 0 for kind in kinds if kind != "evaluate")
    assert (kinds["dataset"].device_hours, kinds["dataset"].skipped) == (None, 0)
    nothing = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]", "cluster={}"])
    told = {kind.kind: kind for kind in view(build(nothing), nothing, []).kinds()}
    assert (told["finetune"].unknown, told["dataset"].unknown) == (len(new), 0)


def test_what_is_shown_is_what_was_estimated(repository):
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    seen = view(plan, grid, [])
    said = lines(plan, grid, [])
    finetune = next(kind for kind in seen.kinds() if kind.kind == "finetune")
    (row,) = [line for line in said if line[:1] == ["finetune"] and len(line) == 9]
    assert finetune.device_hours is not None and finetune.money is not None and finetune.memory_bytes is not None
    hours, money = (_number(value) for value in (finetune.device_hours, finetune.money))
    assert row[1:4] == [str(finetune.unique), "0", str(finetune.unique)]
    assert row[6:] == [f"{finetune.memory_bytes / 1e9:.1f}", hours, money]
    key, stage = next((key, stage) for key, stage in plan.stages.items() if stage.label == "mistral-7b alpaca")
    estimate = seen.estimates[key]
    assert estimate.seconds is not None and estimate.memory is not None
    (row,) = [line for line in said if line[:2] == ["mistral-7b", "alpaca"] and len(line) == 8]
    assert row[2:5] == ["1", str(stage.resources.workers), _number(estimate.steps)]
    assert row[7] == _number(estimate.seconds / 3600)
    (together,) = [line for line in said if line[:1] == ["together"]]
    assert together[1] == f"{estimate.memory.total / 1e9:.1f}"
    assert not any(line[:2] == ["why", "new"] for line in said) and not any("rows of local" in " ".join(line) for line in said)
    shared = [(line[-1], line[-2]) for line in said if line[-2:-1] in (["finetune"], ["replay"], ["drift"])]
    counts = [int(uses) for uses, _ in shared]
    assert counts == sorted(counts, reverse=True) and 0 < len(counts) <= 12 and min(counts) > 1
    assert counts[0] == max(uses for key, uses in seen.uses.items() if plan.stages[key].kind in ("finetune", "replay", "drift"))


def test_cells_to_do_and_why_what_is_new(repository):
    """All but one evaluation is there: one cell is to do, and its stage is named with a reason."""
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    absent = plan.cells[0].roles["phase2:TA:ifeval"]
    made = [
        Made(stage.kind, stage.spec.version, key, stage.spec.identity(), dict(stage.inputs))
        for key, stage in plan.stages.items()
        if key != absent
    ]
    seen = view(plan, grid, made)
    assert [key for key, reason in seen.reasons.items() if reason.status == "new"] == [absent]
    said = lines(plan, grid, made)
    first = plan.cells[0]
    rows = [line for line in said if line[:3] == [first.model, first.phase1, first.phase2]]
    assert rows[0][-2:] == [str(sum((c.model, c.phase1, c.phase2) == tuple(rows[0][:3]) for c in plan.cells)), "1"]
    assert any(line[:2] == ["why", "new"] for line in said)
    assert any(line[: len(plan.stages[absent].label.split())] == plan.stages[absent].label.split() for line in said)


def test_rows_that_were_read_while_planning_are_shown(repository):
    grid = load_grid(repository / "grids/smoke.yaml", [])
    plan = build(grid)
    key, stage = next((key, stage) for key, stage in plan.stages.items() if stage.kind == "dataset")
    account = RowAccount(came=2000, used=1500, left_out={"no_output": 100}, set_aside={"not_in_sample": 400})
    text = [" ".join(line) for line in lines(plan, grid, [], rows={key: account})]
    (row,) = [line for line in text if line.startswith(f"{stage.label} 2,000")]
    assert row.startswith(f"{stage.label} 2,000 1,500 100 6.2 % 100 ") and "400 " in row


@pytest.mark.parametrize(
    ("path", "folder", "place"),
    [
        ("s3://b/x", "data", "s3://b/x"),
        ("/abs/x", "data", "/abs/x"),
        ("x/y", "/data/", "/data/x/y"),
        ("x/y", "s3://b/", "s3://b/x/y"),
        ("./x", "/data", "HERE/x"),
        ("../x", "/data", "HERE/../x"),
        ("x", None, "HERE/x"),
        ("~/x", "/data", "HOME/x"),
    ],
)
def test_places_are_absolute_or_addresses(path, folder, place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    wanted = place.replace("HERE", str(tmp_path / "here")).replace("HOME", str(tmp_path / "home"))
    found = located(path, folder)
    assert found == wanted or Path(found).resolve() == Path(wanted).resolve()
    assert "://" in found or Path(found).is_absolute()


SHAPE = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "kv_heads", "head_size", "tied"),
    [
        ({}, 4, 16, False),
        ({"head_dim": 32, "num_key_value_heads": 2, "tie_word_embeddings": True}, 2, 32, True),
        ({"head_dim": None, "num_key_value_heads": None}, 4, 16, False),
    ],
)
def test_the_shape_of_a_local_checkpoint(tmp_path, more, kv_heads, head_size, tied):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | more))
    shape = checkpoint_shape(Checkpoint(path=str(tmp_path), digest="d"))
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.heads, shape.intermediate, shape.vocabulary) == (2, 64, 4, 32, 100)
    assert (shape.kv_heads, shape.head_size, shape.tied) == (kv_heads, head_size, tied)


@pytest.mark.parametrize("damage", [{"num_attention_heads": 0}, {"hidden_size": None}, {"num_attention_heads": "4"}])
def test_a_checkpoint_of_unknown_shape_has_none(tmp_path, damage):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | damage))
    assert checkpoint_shape(Checkpoint(path=str(tmp_path), digest="d")) is None
    assert checkpoint_shape(Checkpoint(path=str(tmp_path / "absent"), digest="d")) is None
    assert checkpoint_shape(Checkpoint(hub="nobody/unknown", revision="a")) is None


def test_a_storage_without_a_name_is_refused_and_one_at_home_is_read(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "artifacts").mkdir(parents=True)
    grid = load_grid(repository / "grids/smoke.yaml", ["storage.uri=~/runs"])
    assert list(stored(grid)) == []
    blank = grid.model_copy(update={"storage": grid.storage.model_copy(update={"uri": "  "})})
    with pytest.raises(UserError):
        list(stored(blank))


def test_known_models_have_their_published_number_of_parameters():
    """As the hub counts them in the models' safetensors files."""
    published = {"mistralai/Mistral-7B-v0.1": 7_241_732_096, "meta-llama/Meta-Llama-3-8B": 8_030_261_248}
    for base, parameters in published.items():
        alike = [SHAPES[name] for name in SHAPES if name.split("/")[0] == base.split("/")[0]]
        assert {shape.parameters for shape in alike} == {parameters}
        # 8 key-value heads of 128 numbers in 32 layers: 131,072 bytes a token in bfloat16.
        assert {2 * shape.layers * shape.kv_heads * shape.head_size * 2 for shape in alike} == {131_072}
    tied = dataclasses.replace(SHAPES["mistralai/Mistral-7B-v0.1"], tied=True)
    assert tied.parameters == published["mistralai/Mistral-7B-v0.1"] - 32_000 * 4096


def test_known_data_sets_and_benchmarks_have_their_published_sizes():
    rows = {"tatsu-lab/alpaca": 52_002, "DAMO-NLP-MT/multialpaca": 132_701, "Open-Orca/OpenOrca": 4_233_923}
    assert {name: size.rows for name, size in DATASETS.items()} == rows
    items = {"ifeval": 541, "alpaca_eval": 805, "mmlu": 14_042, "hellaswag": 10_042, "xquad": 1190 * 11, "mlqa": 30_655}
    assert {name: asked[0] for name, asked in ITEMS.items()} == items
    # Multiple choice asks for no token; IFEval's own task allows 1,280.
    assert {name: asked[2] for name, asked in ITEMS.items()} == {
        "ifeval": 1280, "alpaca_eval": 512, "mmlu": 0, "hellaswag": 0, "xquad": 32, "mlqa": 32,
    }  # fmt: skip


def test_devices_have_the_memory_and_the_speed_of_their_data_sheets():
    sheets = {
        "A100-40GB": (40, 312), "A100-80GB": (80, 312), "A10G": (24, 70), "L4": (24, 121), "L40S": (48, 362), "H100": (80, 989),
        "H200": (141, 989), "B200": (180, 2250),
    }  # fmt: skip
    assert {name: (MEMORY_BYTES[name] / 1e9, PEAK_FLOPS[name] / 1e12) for name in MEMORY_BYTES} == sheets
    assert set(PEAK_FLOPS) == set(MEMORY_BYTES)


def test_a_toy_data_set_is_measured_on_its_first_rows():
    first = list(generate("multialpaca", "de", 50))
    characters = sum(len("".join(row[name] for name in ("system", "instruction", "input", "output"))) for row in first) / 50
    size = toy_size("multialpaca", ("de", "es"), None)
    assert (size.rows, size.characters) == (6000, pytest.approx(characters))
    assert toy_size("multialpaca", ("de",), 7).rows == 7 and toy_size("absent", ("de",), 7).rows is None


def test_facts_that_estimates_rest_on_are_those_that_were_measured():
    """Characters of a row, and of all requests for an item: multiple choice repeats the question with each of four answers."""
    assert {name: size.characters for name, size in DATASETS.items()} == {
        "tatsu-lab/alpaca": 353, "DAMO-NLP-MT/multialpaca": 262, "Open-Orca/OpenOrca": None,
    }  # fmt: skip
    assert {name: asked[1] for name, asked in ITEMS.items()} == {
        "ifeval": 211, "alpaca_eval": 165, "mmlu": 1780, "hellaswag": 1372, "xquad": 821, "mlqa": 825,
    }  # fmt: skip


def test_a_toy_data_sets_given_rows_count_for_each_language():
    assert toy_size("multialpaca", ("de", "es"), 7).rows == 14


MANY = """\
name: g
storage: x
models: {a: {base: {hub: org/a}}}
datasets: {DATASETS}
pairs: [PAIRS]
strategies: [none]
template: plain
training: {epochs: 1}
evaluation: {benchmarks: [ifeval]}
"""


def many(pairs: int) -> tuple[Plan, Grid]:
    """A grid of so many pairs."""
    sets = ", ".join(f"d{n}: {{hub: org/d{n}, format: alpaca, languages: [en]}}" for n in range(pairs + 1))
    named = ", ".join(f"{{phase1: d0, phase2: d{n + 1}}}" for n in range(pairs))
    text = MANY.replace("DATASETS", sets).replace("PAIRS", named)
    grid = grid_from_text(text, "g.yaml")
    return build(grid), grid


def test_long_tables_end_with_the_number_that_is_left_out():
    plan, grid = many(61)
    said = [" ".join(line) for line in lines(plan, grid, [])]
    rows = [line for line in said if line.startswith("a d0 d") and line.endswith("none 1 1")]
    assert len(rows) == 60 and "… 1 more" in said
    first = next(iter(plan.stages.values()))
    made = [Made(first.kind, first.spec.version, first.fingerprint, first.spec.identity(), {})]
    said = [" ".join(line) for line in lines(plan, grid, made)]
    new = sum(reason.status == "new" for reason in view(plan, grid, made).reasons.values())
    assert f"… {new - 60} more (all of them: --json)" in said
    plan, grid = many(60)
    said = [" ".join(line) for line in lines(plan, grid, [])]
    assert len([line for line in said if line.endswith("none 1 1")]) == 60 and not any("more" in line.split() for line in said)


def test_what_a_run_would_be_refused_for_is_said_without_secrets():
    plan, grid = many(1)
    lack = UserError("no key in sk-planted0123456789planted", where="evaluation.judge", fix="set [it]")
    (line,) = [" ".join(line) for line in lines(plan, grid, [], lacks=[lack]) if line[:3] == ["a", "run", "would"]]
    assert line.startswith("a run would be refused: evaluation.judge: no key in")
    assert as_json(plan, grid, [], lacks=[lack])["lacks"] == [{"what": lack.what, "where": "evaluation.judge", "fix": "set [it]"}]


def test_like_trainings_are_one_line_with_their_number_and_memory_is_shown_for_four_shapes():
    sizes = "\n".join(f"  m{n}: {{base: {{scratch: {{layers: {n + 1}}}, train: {{data: d}}}}}}" for n in range(6))
    text = f"name: g\nstorage: x\nmodels:\n{sizes}\ndatasets: {{d: {{toy: alpaca, languages: [en]}}}}\n"
    text += "pairs: [{phase1: d, phase2: d}]\nstrategies: [none]\nseeds: [0, 1, 2]\ntemplate: toy\ntraining: {steps: 2}\n"
    text += "evaluation: {benchmarks: [toy_letters]}\n"
    grid = grid_from_text(text, "g.yaml")
    plan = build(grid)
    said = lines(plan, grid, [])
    alike = [line for line in said if len(line) == 8 and line[:2] == ["m3", "base"]]
    assert [line[2] for line in alike] == ["7"], "its base, and Phase 1 and 2 under three seeds"
    (heads,) = [line for line in said if line[:1] == ["training"] and line.count("base") == 4]
    assert heads == ["training", "m0", "base", "m1", "base", "m2", "base", "m3", "base"]
    (together,) = [line for line in said if line[:1] == ["together"]]
    assert len(together) == 5


def test_where_some_times_are_unknown_the_sums_say_so(repository):
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    kinds = {kind.kind: kind for kind in view(plan, grid, []).kinds()}
    assert 0 < kinds["evaluate"].unknown < kinds["evaluate"].unique
    (row,) = [line for line in lines(plan, grid, []) if line[:1] == ["evaluate"] and len(line) == 9]
    assert [text.endswith("+?") for text in row[1:]] == [False, False, False, True, True, False, True, True]
    (row,) = [line for line in lines(plan, grid, []) if line[:1] == ["replay"] and len(line) == 9]
    assert not any("?" in text for text in row[1:])


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("{device: H100, mfu: 0.25, price_per_device_hour: 2.5, currency: EUR}", "H100 at 25% of its peak; 2.5 EUR an hour."),
        ("{device: H100}", "H100 at 40% of its peak."),
        ("{characters_per_token: 3.5}", "no device named (`cluster`), so no times. 3.5 characters a token"),
    ],
)
def test_what_is_assumed(cluster, said):
    plan, grid = many(1)
    grid = grid.model_copy(update={"cluster": type(grid.cluster).model_validate(yaml.safe_load(cluster))})
    assert said in " ".join(" ".join(line) for line in lines(plan, grid, []))


def test_large_stages_are_warned_of_three_at_most():
    tight = ["cluster={device: L4}", "resources={finetune: {gpus: 1}}"]
    models = ", ".join(f"m{n}: {{base: {{hub: {name}}}}}" for n, name in enumerate(SHAPES))
    text = MANY.replace("{a: {base: {hub: org/a}}}", f"{{{models}}}").replace("DATASETS", "d: {toy: alpaca, languages: [en]}")
    grid = grid_from_text(text.replace("PAIRS", "{phase1: d, phase2: d}"), "g.yaml", tight)
    assert len([text for text in view(build(grid), grid, []).warnings if "which has 24 GB" in text]) == 3


def test_the_memory_of_a_training_is_shown_part_by_part(repository):
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]", "training.gradient_checkpointing=true"])
    plan = build(grid)
    found = {plan.stages[key].label: estimate.memory for key, estimate in view(plan, grid, []).estimates.items()}
    memory = found["mistral-7b alpaca"]
    assert memory is not None
    said = {line[0]: line[1] for line in lines(plan, grid, []) if len(line) > 1}
    parts = dataclasses.asdict(memory)
    assert {name: said[name] for name in parts} == {name: _memory(value) for name, value in parts.items()}


def drawn(plan: Plan, grid: Grid, made: list[Made], width: int, **options: Any) -> list[str]:
    text = io.StringIO()
    show(plan, grid, Console(file=text, width=width), made, **options)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_numbers_and_kinds_are_whole_at_any_width_and_titles_stand_left(width, repository):
    """Names give way, or each row is a list of its cells."""
    grid = load_grid(repository / "grids/full.yaml", ["exclude=[{phase2: mopenorca}]"])
    plan = build(grid)
    wide, narrow = (drawn(plan, grid, [], each) for each in (1000, width))
    rows = [line.split() for line in wide if len(line.split()) == 9 and line.split()[0] in ("finetune", "evaluate", "replay")]
    assert len(rows) == 3
    text = " ".join(" ".join(narrow).split())
    heads = ("unique", "cached", "new", "tokens", "FLOPs", "GB", "dev-hours", "USD")
    for row in rows:
        below = " ".join(f"{head}: {number}" for head, number in zip(heads, row[1:], strict=True))
        assert " ".join(row) in text or f"- {row[0]} {below}" in text
    for shown in (wide, narrow):
        assert [line.rstrip() for line in shown if "most shared" in line] == ["most shared"]


def test_the_words_of_a_reason_and_of_rows_are_whole_where_there_is_room(repository):
    grid = load_grid(repository / "grids/smoke.yaml", [])
    plan = build(grid)
    key, stage = next((key, stage) for key, stage in plan.stages.items() if stage.kind == "dataset")
    account = RowAccount(came=9, used=8, left_out={"no_output": 1}, set_aside={})
    text = " ".join(" ".join(drawn(plan, grid, [], 80, rows={key: account})).split())
    assert f"{stage.label} 9 8 1 11.1 % 1 without an answer (11.1 %)" in text
