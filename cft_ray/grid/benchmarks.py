"""The benchmarks that a grid may name: what they measure, the harness tasks behind them, and the metric that counts.

Declarations only: the tasks themselves are lm-evaluation-harness YAMLs (the harness' own, by their names in 0.4.13, or
ours in `cft_ray/evaluation/tasks`). Pure, and quick to import.
"""

from typing import Literal

from pydantic import Field

from cft_ray.grid.settings import GenerationSettings, Settings


class Benchmark(Settings):
    """One benchmark."""

    ability: Literal["TA", "LA"] = Field(description="task ability or language ability")
    tasks: dict[str, str] = Field(description="language -> harness task or group")
    metric: str = Field(description="harness metric shown in the results, between 0 and 1")
    generation: GenerationSettings = GenerationSettings()
    data: str | None = Field(default=None, description="toy-world data set that holds its items; None: the harness loads them")
    missing: str | None = Field(
        default=None, description="why it cannot be run yet; such a benchmark can be planned, and its stages refuse to run"
    )


def _by_language(pattern: str, languages: str) -> dict[str, str]:
    return {language: pattern.format(language) for language in languages.split()}


_ANSWERS = GenerationSettings(max_length=512)
"""Toy models have 512 positions."""

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
    "ifeval": Benchmark(ability="TA", tasks={"en": "ifeval"}, metric="prompt_level_strict_acc"),
    "mmlu": Benchmark(ability="TA", tasks={"en": "mmlu"}, metric="acc"),
    "hellaswag": Benchmark(ability="TA", tasks={"en": "hellaswag"}, metric="acc_norm"),
    "alpaca_eval": Benchmark(
        ability="TA", tasks={"en": "alpaca_eval"}, metric="win_rate", missing="its task and its judge are not built yet"
    ),
    "xquad": Benchmark(ability="LA", tasks=_by_language("xquad_{}", "ar de el es hi ro ru th tr vi zh"), metric="f1"),
    "mlqa": Benchmark(ability="LA", tasks=_by_language("mlqa_{0}_{0}", "ar de es hi vi zh"), metric="f1"),
    "xlsum": Benchmark(
        ability="LA",
        tasks=_by_language("xlsum_{}", "ar en es fr hi ja zh"),
        metric="rougeL",
        missing="the harness has no such task for these languages, and ours is not written yet",
    ),
}
