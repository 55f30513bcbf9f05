"""Win rates from preferences, by the alpaca-eval package's own functions.

The length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475) is what a logistic model of the judge's preferences
predicts for answers as long as the references. The package's model (``length_controlled_v1``) knows how hard each
instruction is, and is held near two artificial players; both come from a file on the hub. Where that file is absent
there is only its simplest model (``length_controlled_minimal``), of the difference of lengths alone, which goes by a name
of its own: the two are different metrics.
"""

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import sklearn
from alpaca_eval.metrics import get_winrate, glm_winrate

from cft_ray.errors import UserError
from cft_ray.evaluation.alpaca_eval.items import Item

MODELS = {
    "length_controlled_win_rate": "length_controlled_v1",
    "length_controlled_win_rate_minimal": "length_controlled_minimal",
}
"""metric -> model in the package"""


@dataclass(frozen=True)
class Metric:
    """A share between 0 and 1.

    Args:
        value: None where it cannot be computed.
        stderr: its standard error; None where it cannot be computed.
    """

    value: float | None
    stderr: float | None


def win_rates(
    items: Sequence[Item], answers: Sequence[str], preferences: Mapping[int, float], control: Path | None
) -> dict[str, Metric]:
    """Metric -> value: ``win_rate``, ``discrete_win_rate`` (a tie counts half) and the length-controlled ones.

    Args:
        items: all that were asked.
        answers: the model's, one for each.
        preferences: item's number -> 1 (the reference) to 2 (the model's answer); items without judgement are absent.
        control: the file ``df_gamed.csv`` of the benchmark; None: without the metric that needs it.

    Raises:
        UserError: the file is not what it should be.
    """
    frame = pd.DataFrame(
        {
            "preference": [preferences.get(item.number, math.nan) for item in items],
            "output_1": [item.reference for item in items],
            "output_2": list(answers),
            "generator_1": "reference",
            "generator_2": "model",
        },
        index=[item.number for item in items],
    )
    plain = get_winrate(frame)
    found = {
        "win_rate": _metric(plain["win_rate"], plain["standard_error"]),
        "discrete_win_rate": _metric(plain["discrete_win_rate"], math.nan),
    }
    for metric, model in MODELS.items():
        if model == "length_controlled_v1" and control is None:
            continue
        with _featurized_with(items, None if model == "length_controlled_minimal" else control):
            found[metric] = _length_controlled(frame, model, control)
    return found


def _length_controlled(frame: pd.DataFrame, model: str, control: Path | None) -> Metric:
    splits = glm_winrate.GLM_INFO[model]["kwargs"]["n_splits"]
    lengths = frame["output_1"].str.len() - frame["output_2"].str.len()
    if frame["preference"].notna().sum() < splits or not lengths.std() > 0:
        return Metric(None, None)  # too few items for its cross-validation, or lengths that never differ
    # The package switches a process-wide option of scikit-learn on; inside the context it goes back.
    with sklearn.config_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of arguments that go out of use
        try:
            result = glm_winrate.get_length_controlled_winrate(
                frame.copy(), glm_name=model, save_weights_dir=None, is_warn_extreme_changes=False
            )
        except (KeyError, IndexError) as error:
            raise UserError(
                f"it lacks the column or the item {error}", where=str(control), fix="df_gamed.csv of tatsu-lab/alpaca_eval"
            ) from error
    return _metric(result["length_controlled_winrate"], result["lc_standard_error"])


@contextmanager
def _featurized_with(items: Sequence[Item], control: Path | None) -> Iterator[None]:
    """Let the package read this file where it would ask the hub; None: one that says nothing of any instruction."""
    with tempfile.TemporaryDirectory() as folder:
        path = control or Path(folder) / "neutral.csv"
        if control is None:
            numbers = range(max(item.number for item in items) + 1)
            pd.DataFrame({"model": "", "index": numbers, "instruction_difficulty": 0.0}).to_csv(path, index=False)
        module: Any = glm_winrate
        of_the_hub = module.hf_hub_download
        module.hf_hub_download = lambda **_: str(path)
        try:
            yield
        finally:
            module.hf_hub_download = of_the_hub


def _metric(percent: float, error: float) -> Metric:
    value, stderr = float(percent) / 100, float(error) / 100
    return Metric(None if math.isnan(value) else value, None if math.isnan(stderr) else stderr)
