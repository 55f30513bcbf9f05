"""Every declared benchmark names tasks that exist: ours in the package, the others in the installed harness."""

import re
from pathlib import Path

import lm_eval
import pytest

import cft_ray
from cft_ray.data.toy import TOY
from cft_ray.grid.benchmarks import BENCHMARKS

OWN = Path(cft_ray.__path__[0]) / "evaluation" / "tasks"
STOCK = Path(lm_eval.__path__[0]) / "tasks"


def names(folder: Path) -> set[str]:
    """Tasks and groups that the YAMLs of a folder define."""
    return {
        found
        for path in folder.glob("**/*.yaml")
        for found in re.findall(r"^(?:task|group): *[\"']?([\w-]+)", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_tasks_exist(name):
    declared = BENCHMARKS[name]
    if declared.missing or declared.judged:
        return
    if declared.data:
        assert set(declared.tasks) <= set(TOY[declared.data].languages)
        assert set(declared.tasks.values()) <= names(OWN)
    else:
        assert set((declared.tasks | declared.also).values()) <= names(STOCK / declared.folder if declared.folder else OWN)


def test_languages_are_the_studys():
    assert set(BENCHMARKS["xquad"].tasks) == {"ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"}
    assert set(BENCHMARKS["mlqa"].tasks) == {"ar", "de", "es", "hi", "vi", "zh"}
    assert len(BENCHMARKS["xlsum"].tasks) == 7
