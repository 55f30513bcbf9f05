"""The benchmarks that a grid may name: what they measure, the harness tasks behind them, and the metric that counts.

Declarations only: the tasks themselves are lm-evaluation-harness YAMLs (the harness' own, by their names in 0.4.13, or
ours in `cft_ray/evaluation/tasks`). Pure, and quick to import.
"""

from typing import Literal

from pydantic import Field

from cft_ray.grid.settings import GenerationSettings, Settings


class Items(Settings):
    """Where a benchmark's items come from, and what a file must hold that stands in for the hub (`evaluation.data`)."""

    hub: str = Field(description="Hugging Face data set id")
    config: str | None = Field(default=None, description="hub configuration, `{language}` allowed")
    names: dict[str, str] = Field(
        default_factory=dict, description="language -> what `{language}` stands for in `config`, where that is not the code"
    )
    split: str = Field(description="the hub's split that is scored")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="name, as in `evaluation.data` -> file in the repository, where no configuration and split lead to it",
    )
    columns: tuple[str, ...] = Field(description="columns that its tasks read")
    by: str | None = Field(
        default=None, description="column that tells the items of a group's tasks apart: its value is the task's `dataset_name`"
    )


class Benchmark(Settings):
    """One benchmark."""

    ability: Literal["TA", "LA"] = Field(description="task ability or language ability")
    tasks: dict[str, str] = Field(description="language -> harness task or group")
    also: dict[str, str] = Field(default_factory=dict, description="as `tasks`: further languages, scored where a grid asks")
    metric: str = Field(description="harness metric shown in the results, between 0 and 1")
    generation: GenerationSettings = GenerationSettings()
    data: str | None = Field(default=None, description="toy-world data set that holds its items; None: the harness loads them")
    items: Items | None = Field(default=None, description="its items on the hub; None: what its tasks say")
    folder: str | None = Field(default=None, description="folder of the harness' tasks that holds its own; None: search all")
    judged: bool = Field(
        default=False, description="answers are compared with reference answers by `evaluation.judge`; without one it is skipped"
    )
    missing: str | None = Field(
        default=None, description="why it cannot be run yet; such a benchmark can be planned, and its stages refuse to run"
    )


def _by_language(pattern: str, languages: str) -> dict[str, str]:
    return {language: pattern.format(language) for language in languages.split()}


_ANSWERS = GenerationSettings(max_length=512)
"""Toy models have 512 positions."""

_SHORT = GenerationSettings(max_new_tokens=256)
"""What the harness takes where a task does not say."""
_QUESTIONS = ("id", "context", "question", "answers")
_XLSUM = {
    "ar": "arabic",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "hi": "hindi",
    "ja": "japanese",
    "zh": "chinese_simplified",
}

BENCHMARKS: dict[str, Benchmark] = {
    "toy_letters": Benchmark(
        ability="TA", tasks={"en": "toy_letters"}, metric="exact_match", generation=_ANSWERS, data="eval_letters"
    ),
    "toy_numbers": Benchmark(
        ability="TA", tasks={"en": "toy_numbers"}, metric="exact_match", generation=_ANSWERS, data="eval_numbers"
    ),
    "toy_languages": Benchmark(
        ability="LA",
        tasks=_by_language("toy_languages_{}", "de es sw"),
        metric="exact_match",
        generation=_ANSWERS,
        data="eval_languages",
    ),
    "toy_languages_numbers": Benchmark(
        ability="LA",
        tasks=_by_language("toy_languages_numbers_{}", "de es sw"),
        metric="exact_match",
        generation=_ANSWERS,
        data="eval_languages_numbers",
    ),
    "ifeval": Benchmark(
        ability="TA",
        tasks={"en": "ifeval"},
        metric="prompt_level_strict_acc",
        generation=GenerationSettings(max_new_tokens=1280),
        items=Items(hub="google/IFEval", split="train", columns=("key", "prompt", "instruction_id_list", "kwargs")),
        folder="ifeval",
    ),
    "mmlu": Benchmark(
        ability="TA",
        tasks={"en": "mmlu"},
        metric="acc",
        items=Items(
            hub="cais/mmlu", config="all", split="test", columns=("question", "subject", "choices", "answer"), by="subject"
        ),
        folder="mmlu/default",
    ),
    "hellaswag": Benchmark(
        ability="TA",
        tasks={"en": "hellaswag"},
        metric="acc_norm",
        items=Items(hub="Rowan/hellaswag", split="validation", columns=("activity_label", "ctx", "endings", "label")),
        folder="hellaswag",
    ),
    "alpaca_eval": Benchmark(
        ability="TA",
        tasks={"en": "alpaca_eval"},
        metric="win_rate",
        generation=GenerationSettings(max_new_tokens=2048),
        items=Items(
            hub="tatsu-lab/alpaca_eval",
            split="eval",
            files={"scored": "alpaca_eval.json", "length_control": "df_gamed.csv"},
            columns=("instruction", "output"),
        ),
        judged=True,
    ),
    "xquad": Benchmark(
        ability="LA",
        tasks=_by_language("xquad_{}", "ar de el es hi ro ru th tr vi zh"),
        also=_by_language("xquad_{}", "en"),
        metric="f1",
        generation=_SHORT,
        items=Items(hub="google/xquad", config="xquad.{language}", split="validation", columns=_QUESTIONS),
        folder="xquad",
    ),
    "mlqa": Benchmark(
        ability="LA",
        tasks=_by_language("mlqa_{0}_{0}", "ar de es hi vi zh"),
        also=_by_language("mlqa_{0}_{0}", "en"),
        metric="f1",
        generation=_SHORT,
        items=Items(hub="facebook/mlqa", config="mlqa.{language}.{language}", split="test", columns=_QUESTIONS),
        folder="mlqa",
    ),
    "xlsum": Benchmark(
        ability="LA",
        tasks=_by_language("xlsum_{}", "ar en es fr hi ja zh"),
        # By words as each language has them. The study does not say which ROUGE it prints; its near-zero Arabic and Hindi
        # point to the ASCII tokenizer, whose `rougeL_ascii` is in the table of scores beside it.
        metric="rougeL",
        items=Items(hub="csebuetnlp/xlsum", config="{language}", names=_XLSUM, split="test", columns=("id", "summary", "text")),
    ),
}
