"""What a grid's strategies and benchmarks come to: a registered one, a changed one, one declared in place."""

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.benchmarks import BENCHMARKS
from cft_ray.grid.choices import ChosenBenchmark, chosen_benchmarks, chosen_strategies
from cft_ray.grid.schema import grid_from_text

GRID = """\
name: g
storage: runs/g
models: {a: {base: {hub: org/a}}}
datasets:
  en: {toy: alpaca, languages: [en]}
  multi: {toy: multialpaca, languages: [de], english: en}
pairs: [{phase1: en, phase2: multi}]
strategies: [none]
evaluation: {benchmarks: [toy_letters]}
"""


def benchmark(item: str, *sets: str) -> ChosenBenchmark:
    [found] = chosen_benchmarks(grid_from_text(GRID, "g.yaml", (f"evaluation.benchmarks=[{item}]", *sets)))
    return found


def refused(*sets: str) -> UserError:
    with pytest.raises(UserError) as raised:
        grid_from_text(GRID, "g.yaml", sets)
    return raised.value


def test_a_benchmark_by_its_name_is_as_it_is_known():
    found = benchmark("xquad")
    assert (found.name, found.use, found.benchmark) == ("xquad", "xquad", BENCHMARKS["xquad"])
    assert found.generation == BENCHMARKS["xquad"].generation and found.limit is None and found.template == "model"


def test_languages_are_those_of_the_study_unless_asked_otherwise():
    assert list(benchmark("xquad").benchmark.tasks) == ["ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]
    assert benchmark("{name: xquad, languages: [zh, en]}").benchmark.tasks == {"zh": "xquad_zh", "en": "xquad_en"}
    assert benchmark("{name: mlqa, languages: [en, de]}").benchmark.tasks == {"en": "mlqa_en_en", "de": "mlqa_de_de"}
    error = refused("evaluation.benchmarks=[{name: xquad, languages: [de, ja]}]")
    assert error.where == "g.yaml: evaluation.benchmarks[0].languages[1] (--set)" and "'ja'" in error.what
    assert error.fix is not None and error.fix.startswith("one of ar, de, el, en, es,")


def test_a_nearer_setting_of_a_benchmark_wins():
    everywhere = ("evaluation.limit=7", "evaluation.template=plain", "evaluation.generation={temperature: 0.5, max_length: 100}")
    found = benchmark("ifeval", *everywhere)
    assert (found.limit, found.template.name) == (7, "plain")  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.generation.temperature, found.generation.max_length, found.generation.max_new_tokens) == (0.5, 100, 1280)
    own = "{name: ifeval, limit: 3, template: toy, generation: {temperature: 0.25, max_new_tokens: 5}}"
    found = benchmark(own, *everywhere)
    assert (found.limit, found.template.name) == (3, "toy")  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.generation.temperature, found.generation.max_length, found.generation.max_new_tokens) == (0.25, 100, 5)


def test_a_known_benchmark_under_another_name_and_changed():
    found = benchmark("{name: short, use: xquad, metric: em, ability: TA, tasks: {de: mine}, data: eval_letters}")
    assert (found.name, found.use) == ("short", "xquad")
    assert found.benchmark == BENCHMARKS["xquad"].model_copy(
        update={"metric": "em", "ability": "TA", "tasks": {"de": "mine"}, "data": "eval_letters"}
    )
    assert found.of({"short": 1, "xquad": 2}) == "short" and found.of({"xquad": 2}) == "xquad" and found.of({"mlqa": 1}) is None


def test_a_benchmark_declared_in_place():
    found = benchmark("{name: own, ability: LA, metric: acc, tasks: {de: task_de, es: task_es}}")
    assert (found.name, found.use, found.benchmark.items, found.benchmark.judged) == ("own", "own", None, False)
    assert found.benchmark.tasks == {"de": "task_de", "es": "task_es"} and found.benchmark.ability == "LA"
    error = refused("evaluation.benchmarks=[{name: own, ability: LA, tasks: {de: task_de}}]")
    assert error.what == "'metric' is missing" and error.where == "g.yaml: evaluation.benchmarks[0].metric (--set)"


def test_an_unknown_benchmark():
    error = refused("evaluation.benchmarks=[{name: own}]")
    assert error.where == "g.yaml: evaluation.benchmarks[0] (--set)"
    assert "'own'" in error.what
    # One that is named by `use` is meant to be a known one, also where more is said.
    error = refused("evaluation.benchmarks=[{name: own, use: xqad, metric: f1}]")
    assert error.where == "g.yaml: evaluation.benchmarks[0].use (--set)" and "'xqad'" in error.what
    assert error.fix is not None and "xquad" in error.fix


@pytest.mark.parametrize(
    "place", ["evaluation.generation.max_tokens=1", "evaluation.benchmarks=[{name: ifeval, generation: {max_tokens: 1}}]"]
)
def test_an_unknown_setting_of_the_answers(place):
    error = refused(place)
    assert "'max_tokens'" in error.what and str(error.where).endswith("generation.max_tokens (--set)")


def test_a_strategy_takes_what_its_name_says_and_what_stands_there():
    grid = grid_from_text(
        GRID, "g.yaml", ("strategies=[GR_10, {name: mine, use: GR_10, ratio: [0.2, 0.3]}, {name: GR, ratio: 0.4}]",)
    )
    plain, swept, given = chosen_strategies(grid)
    assert plain.build(grid, {}).model_dump()["ratio"] == 0.1 and plain.axes == ()
    assert swept.axes == (("ratio", (0.2, 0.3)),) and "ratio" not in swept.settings and swept.name == "mine"
    assert [swept.build(grid, {"ratio": ratio}).model_dump()["ratio"] for ratio in (0.2, 0.3)] == [0.2, 0.3]
    assert given.settings == {"ratio": 0.4} and given.path == ("strategies", 2)


def test_an_unknown_strategy_is_named_where_it_is_used():
    assert refused("strategies=[none, {name: mine, use: GRR}]").where == "g.yaml: strategies[1].use (--set)"
    assert refused("strategies=[none, {name: GRR}]").where == "g.yaml: strategies[1] (--set)"


# The study's benchmarks (arXiv 2410.16006, section 4.1): what each measures, in which languages, and the metric of the tables.
STUDY = {
    "ifeval": ("TA", "en", "prompt_level_strict_acc", 1280),
    "mmlu": ("TA", "en", "acc", None),
    "hellaswag": ("TA", "en", "acc_norm", None),
    "alpaca_eval": ("TA", "en", "win_rate", 2048),
    "xquad": ("LA", "ar de el es hi ro ru th tr vi zh", "f1", 256),
    "mlqa": ("LA", "ar de es hi vi zh", "f1", 256),
    "xlsum": ("LA", "ar en es fr hi ja zh", "rougeL", None),
}


@pytest.mark.parametrize("name", STUDY)
def test_the_benchmarks_of_the_study(name):
    known = BENCHMARKS[name]
    found = (known.ability, " ".join(known.tasks), known.metric, known.generation.max_new_tokens)
    assert found == STUDY[name] and known.generation.max_length == 4096
    assert known.judged == (name == "alpaca_eval") and known.missing is None and known.data is None


def test_toy_answers_fit_into_the_toy_models():
    toys = [known for name, known in BENCHMARKS.items() if name.startswith("toy_")]
    assert len(toys) == 4
    assert {(known.generation.max_length, known.metric, known.judged) for known in toys} == {(512, "exact_match", False)}
