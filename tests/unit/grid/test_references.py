"""What only several sections of a grid together show, each mistake with its place and remedy; and complaints about the form."""

# ruff: noqa: E501 - tables read best with one case a line

import jsonschema
import pytest

from cft_ray.errors import UserError
from cft_ray.grid.problems import as_user_error
from cft_ray.grid.schema import Grid, grid_from_text, json_schema, load_grid
from cft_ray.grid.tree import Source

GRID = """\
name: g
storage: runs/g
models:
  a:
    base: {scratch: {}, train: {data: en}}
    instruct: {start: base, train: {data: en}}
    more: {start: instruct, train: {data: en}}
  b: {base: {hub: org/b}, tuned: {hub: org/b-it}}
datasets:
  en: {toy: alpaca, languages: [en]}
  multi: {toy: multialpaca, languages: [de, es], english: en}
  asked: {files: x.jsonl, columns: {instruction: q}, languages: [en]}
  many: {files: "{language}.jsonl", format: alpaca, languages: [de, es]}
pairs: [{phase1: en, phase2: multi}]
strategies: [none, LF_H1, LoRA]
evaluation: {benchmarks: [toy_letters]}
"""


def grid(*sets: str) -> Grid:
    return grid_from_text(GRID, "g.yaml", sets)


def refused(*sets: str) -> tuple[str, str, str | None]:
    """Where (without file and line), what, and the remedy."""
    with pytest.raises(UserError) as raised:
        grid(*sets)
    error = raised.value
    assert error.where is not None
    return error.where.removeprefix("g.yaml: ").partition(" (")[0], error.what, error.fix


@pytest.mark.parametrize(
    ("change", "where", "what", "fix"),
    [
        ("seeds=[3, 4, 3]", "seeds[2]", "3 is named twice", "keep one of the two"),
        ("strategies=[none, LoRA, none]", "strategies[2]", "'none' is named twice", "give each a name of its own"),
        ("evaluation.benchmarks=[toy_letters, toy_letters]", "evaluation.benchmarks[1]", "'toy_letters' is named twice", "keep one of the two"),
        ("loggers=[wandb, tensorboard, wandb]", "loggers[2]", "'wandb' is named twice", "keep one of the two"),
        ("pairs=[{phase1: en, phase2: multi}, {phase1: en, phase2: multi}]", "pairs[1]", "'en→multi' is named twice", "keep one of the two"),
        ("datasets.en.toy=alpca", "datasets.en.toy", "there is no toy data set 'alpca'", "did you mean alpaca or multialpaca?"),
        ("datasets.multi.languages=[de, ja]", "datasets.multi.languages[1]", "there is no multialpaca in language 'ja'", None),
        ("datasets.multi.english=eng", "datasets.multi.english", "there is no data set 'eng'", "did you mean en?"),
        ("datasets.multi.english=multi", "datasets.multi.english", "multi is its own English counterpart", None),
        ("datasets.en.english=multi", "datasets.multi.english", "en is the counterpart of its counterpart: a circle", None),
        ("datasets.tuned={toy: alpaca, languages: [en]}", "datasets.tuned",
         "'tuned' is both a data set and a checkpoint of b, so a pair's phase1 could mean either", "rename one of the two"),
        ("models.b={tuned: {hub: a/b}}", "models.b", "b has no checkpoint `base`", None),
        ("models.a.base.train.data=eng", "models.a.base.train.data", "there is no data set 'eng'", "did you mean en?"),
        ("models.a.base.train.training={step: 3}", "models.a.base.train.training.step", "unknown key 'step'", "did you mean steps?"),
        ("models.a.base.train.training={steps: 0}", "models.a.base.train.training.steps", "found 0", "input should be greater than 0"),
        ("models.a.more.start=instrct", "models.a.more.start", "there is no checkpoint 'instrct'", "did you mean instruct?"),
        ("models.a.base={start: more, train: {data: en}}", "models.a.base.start",
         "base starts from more starts from instruct starts from base: a circle", "let one of them be hub, path or scratch"),
        ("pairs=[{phase1: instrct, phase2: multi}]", "pairs[0].phase1", "phase 1 'instrct' names neither a data set nor a checkpoint", "did you mean instruct?"),
        ("pairs=[{phase1: en, phase2: instruct}]", "pairs[0].phase2", "there is no data set 'instruct'", None),
        ("evaluation.data={xquadd: x}", "evaluation.data.xquadd", "there is no benchmark 'xquadd'", "did you mean xquad?"),
        ("evaluation.revisions={mlq: main}", "evaluation.revisions.mlq", "there is no benchmark 'mlq'", None),
        ("evaluation.judge={of: a/bas}", "evaluation.judge.of", "there is no checkpoint 'a/bas'", "did you mean a/base or b/base?"),
        ("evaluation.judge={of: base}", "evaluation.judge.of", "there is no checkpoint 'base'", None),
        ("insight={activations: {prompts: mt}}", "insight.activations.prompts", "there is no data set 'mt'", None),
        ("insight={activations: {parallel: mt}}", "insight.activations.parallel", "there is no data set 'mt'", None),
        ("insight={activations: {parallel: en}}", "insight.activations.parallel", "parallel sentences are in one language only", "name two languages or more"),
        ("include=[{}]", "include[0]", "this says nothing of any cell", "one of model, phase1, phase2, strategy, seed, settings"),
        ("exclude=[{model: c}]", "exclude[0].model", "there is no model 'c'", None),
        ("exclude=[{model: [a, c]}]", "exclude[0].model[1]", "there is no model 'c'", None),
        ("exclude=[{strategy: 'GR*'}]", "exclude[0].strategy", "no strategy is like 'GR*'", None),
        ("exclude=[{strategy: [none, 'GR?']}]", "exclude[0].strategy[1]", "no strategy is like 'GR?'", None),
        ("exclude=[{strategy: '[xyz]one'}]", "exclude[0].strategy", "no strategy is like '[xyz]one'", None),
        ("exclude=[{seed: 7}]", "exclude[0].seed", "there is no seed '7'", "known: 0"),
        ("exclude=[{phase1: multi}]", "exclude[0].phase1", "there is no phase1 'multi'", None),
        ("exclude=[{phase2: en}]", "exclude[0].phase2", "there is no phase2 'en'", None),
    ],
    ids=lambda item: item if isinstance(item, str) and "=" in item else "",
)  # fmt: skip
def test_what_does_not_fit_together(change, where, what, fix):
    found = refused(change)
    assert found[:2] == (where, what) and found[2] and (fix is None or found[2] == fix)


def test_what_fits_together():
    assert grid("evaluation.judge={of: a/instruct}", "evaluation.data={xquad: x}", "evaluation.revisions={mlqa: main}")
    assert grid("evaluation.benchmarks=[{name: mine, use: mlqa}]", "evaluation.data={mine: x, mlqa: y}")
    assert grid("insight={activations: {prompts: asked, parallel: multi}}") and grid("insight={activations: {parallel: false}}")
    assert grid("insight={activations: false}") and grid("insight=false").insight is None
    assert grid("pairs=[{phase1: instruct, phase2: multi}]", "exclude=[{model: b}]") and grid(
        "exclude=[{strategy: ['LF_*', none]}]"
    )
    assert grid("pairs=[{phase1: en, phase2: multi}, {phase1: multi, phase2: en}]")


def test_prompts_without_answers_are_trained_nowhere():
    what = (
        "data set asked has prompts without answers (its `columns` do not say where `output` is), so nothing can be trained on it"
    )
    fix = "add `output: <column>` to datasets.asked.columns"
    for change, where in (
        ("models.a.base.train.data=asked", "models.a.base.train.data"),
        ("pairs=[{phase1: asked, phase2: multi}]", "pairs[0].phase1"),
        ("pairs=[{phase1: en, phase2: asked}]", "pairs[0].phase2"),
    ):
        assert refused(change) == (where, what, fix)
    assert grid("pairs=[{phase1: en, phase2: asked}]", "datasets.asked.columns={instruction: q, output: a}")


def test_a_sample_of_each_language_is_not_parallel():
    parallel = "insight={activations: {parallel: many}}"
    assert grid(parallel)
    where, what, fix = refused(parallel, "datasets.many.rows=5")
    assert where == "insight.activations.parallel" and "no longer parallel" in what and "insight.activations.sample" in str(fix)
    # As prompts they need be neither parallel nor of two languages.
    assert grid("insight={activations: {prompts: many, parallel: false}}", "datasets.many.rows=5")


@pytest.mark.parametrize(
    ("workers", "gpus", "most", "need"),
    [(2, 1, 2, None), (2, 1, 1, "2"), (3, 0.5, 2, None), (4, 0.5, 1, "2"), (8, 0, 1, None), (1, 0.5, 1, None)],
)
def test_no_stage_asks_for_more_devices_than_there_are(workers, gpus, most, need):
    resources = f"{{workers: {workers}, gpus: {gpus}}}"
    sizes = ("training={batch_size: 24}", f"cluster.max_devices={most}")
    for change, who, where in (
        (f"resources={{finetune: {resources}}}", "a finetune stage", "resources.finetune"),
        (f"models.a.instruct.train.resources={resources}", "the training of a instruct", "models.a.instruct.train.resources"),
    ):
        if need is None:
            assert grid(change, *sizes)
        else:
            what = f"{who} asks for {need} devices ({workers} workers of {gpus:g}), but the cluster has at most {most}"
            assert refused(change, *sizes) == (where, what, f"ask for at most {most}, or raise cluster.max_devices")
        assert grid(change, sizes[0])


# --- the form --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where", "what", "fix"),
    [
        ("max_cells=0", "max_cells", "found 0", "input should be greater than 0"),
        ("max_parallel=many", "max_parallel", "found 'many'", None),
        ("name=[a]", "name", "found a list", "input should be a valid string"),
        (f"currency={'x' * 61}", "currency", "unknown key 'currency'", None),
        (f"max_parallel={'x' * 61}", "max_parallel", f"found '{'x' * 60}'…", None),
        (f"max_parallel={'x' * 60}", "max_parallel", f"found '{'x' * 60}'", None),
        ("name=a b", "name", "'a b' cannot be a name", "a name without spaces, slashes, brackets, commas, colons, = and *"),
        ("insight={embedding: {modl: x}}", "insight.embedding.modl", "unknown key 'modl'", "did you mean model?"),
        ("resources={finetune: {wrkers: 2}}", "resources.finetune.wrkers", "unknown key 'wrkers'", "did you mean workers?"),
        ("pairs=[{phase1: en}]", "pairs[0].phase2", "'phase2' is missing", "write `phase2: …`"),
        ("evaluation={}", "evaluation.benchmarks", "'benchmarks' is missing", "write `benchmarks: …`"),
        ("evaluation={benchmark: [x]}", "evaluation.benchmark", "unknown key 'benchmark' (and 1 more to mend)", "did you mean benchmarks?"),
        ("training=5", "training", "found 5", None),
        ("seeds=[true]", "seeds[0]", "found true where a number stands", "a number"),
        ("training.batch_size=true", "training.batch_size", "found true where a number stands", "a number"),
        ("resources={finetune: {workers: false}}", "resources.finetune.workers", "found false where a number stands", "a number"),
        ("seeds=[]", "seeds", "found a list", None),
        ("pairs=[]", "pairs", "found a list", None),
        ("models={}", "models", "found a dict", None),
        ("strategies=[]", "strategies", "found a list", None),
        ("evaluation.benchmarks=[]", "evaluation.benchmarks", "found a list", None),
        ("datasets.en.languages=[]", "datasets.en.languages", "found a list", None),
        ("datasets.en.split=''", "datasets.en.split", "found ''", None),
        ("training.batch_size=[]", "training.batch_size", "an empty list sweeps nothing", "give at least one value"),
        ("training.batch_size=[4, 8, 4]", "training.batch_size[2]", "4 is swept twice", "give each value once"),
        ("training.batch_sze=4", "training.batch_sze", "unknown key 'batch_sze'", "did you mean batch_size?"),
        ("strategies=[{name: LoRA, target_modules: [[q_proj], 5]}]", "strategies[0].target_modules[1]", "found 5", None),
    ],
    ids=lambda item: item if isinstance(item, str) and "=" in item else "",
)  # fmt: skip
def test_what_has_not_the_right_form(change, where, what, fix):
    found = refused(change)
    assert found[:2] == (where, what) and found[2] and (fix is None or found[2] == fix)


def test_truths_stand_where_truths_are_meant():
    assert grid("evaluation.evaluate_base=false").evaluation.evaluate_base is False
    assert grid("training.train_on_prompt=[true, false]") and grid("insight={embedding: true}").insight is not None


def test_sections_that_a_command_asks_for():
    for given in ((), ("insight=",), ("insight=false",)):
        assert grid_from_text(GRID, "g", given).insight is None
        made = grid_from_text(GRID, "g", given, ("insight",)).insight
        assert made is not None and made == grid("insight=true").insight
    given = grid_from_text(GRID, "g", ("insight={embedding: false}",), ("insight",)).insight
    assert given is not None and given.embedding is None


def test_a_grid_is_read_from_a_file_as_from_text(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(GRID)
    assert load_grid(path, ["seeds=[5]"]).model_dump() == grid("seeds=[5]").model_dump()
    assert load_grid(path, (), ("insight",)).insight is not None
    loaded = load_grid(path)
    assert loaded.source.where(("pairs", 0, "phase1")) == f"{path}: pairs[0].phase1 (line 14)"


def test_a_misspelt_key_is_named_before_the_one_that_is_missing():
    from pydantic import ValidationError

    raw = {"name": "x", "storag": "y", "seeds": []}
    with pytest.raises(ValidationError) as raised:
        Grid.model_validate(raw)
    error = as_user_error(raised.value, Grid, raw, Source("g"), ("at",))
    assert error.what == "unknown key 'storag' (and 7 more to mend)" and error.where == "g: at.storag"
    assert error.fix == "did you mean storage or strategies?"


VALID = [
    "training: {learning_rate: 1.0e-5, batch_size: [4, 8], phase1: {steps: [1, 2]}, phase2: {steps: 1}}",
    "replay: {temperature: [0.5, 1.0]}",
    "strategies: [none, {name: LoRA, training: {learning_rate: [1, 2]}, rank: 4}]",
    "insight: true",
    "insight: {embedding: false, drift: false}",
    "template: plain",
    "loggers: [wandb]",
    "seeds: [0]",
    "include: [{model: a, seed: 3, strategy: [none]}]",
]
INVALID = [
    "training: {batch_size: []}",
    "training: {batch_sise: 4}",
    "training: {batch_size: 0}",
    "training: {phase1: {phase2: {}}}",
    "training: {phase1: {step: 4}}",
    "training: {phase3: {}}",
    "replay: {top_p: [2]}",
    "strategies: []",
    "strategies: [{name: LoRA, training: {phase1: {}}}]",
    "models: {a: {base: {scratch: {}, train: {data: x, training: {batch_size: [4]}}}}}",
    "models: {}",
    "seeds: [-1]",
    "storages: x",
]


def test_the_json_schema_takes_what_the_grid_takes():
    import yaml

    schema = jsonschema.Draft202012Validator(json_schema())
    whole = yaml.safe_load(GRID)
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for text in VALID:
        assert list(schema.iter_errors(whole | yaml.safe_load(text))) == [], text
    for text in INVALID:
        assert list(schema.iter_errors(whole | yaml.safe_load(text))), text
    described = json_schema()["properties"]["training"]["properties"]
    assert described["learning_rate"]["description" if "description" in described["learning_rate"] else "title"]
    assert (
        "default" not in described["learning_rate"]
        and "phase1" in described
        and "phase1" not in described["phase1"]["properties"]
    )
