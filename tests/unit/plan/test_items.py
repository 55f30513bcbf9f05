"""Files that stand in for the hub: found, known by content, and refused by name."""

from pathlib import Path

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.schema import load_grid
from cft_ray.plan.build import build
from cft_ray.plan.digest import Digests
from cft_ray.plan.specs import EvaluateSpec


@pytest.fixture
def data(tmp_path) -> Path:
    for name in ("xquad/ar.parquet", "xquad/en.parquet", "mmlu/test.parquet", "mmlu/dev.parquet"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "data"


def specs(repository: Path, tmp_path: Path, *sets: str) -> dict[str, EvaluateSpec]:
    grid = load_grid(
        repository / "grids" / "real-data.yaml",
        ["evaluation.benchmarks=[{name: xquad, languages: [ar, en]}, mmlu]", *sets],
    )
    plan = build(grid, digests=Digests(tmp_path / "digests.json"))
    return {stage.spec.benchmark: stage.spec for stage in plan.stages.values() if isinstance(stage.spec, EvaluateSpec)}


def test_files_count_by_content_not_by_place(repository, data, tmp_path):
    files = "evaluation.data={xquad: 'xquad/{language}.parquet', mmlu: mmlu}"
    found = specs(repository, tmp_path, files, f"evaluation.data_folder={data}")
    xquad, mmlu = found["xquad"], found["mmlu"]
    assert xquad.tasks == {"ar": "xquad_ar", "en": "xquad_en"}
    assert xquad.items is not None and mmlu.items is not None
    assert xquad.items.files == {"scored": f"{data}/xquad/{{language}}.parquet"} and xquad.nltk_data == f"{data}/nltk"
    assert mmlu.items.files == {"scored": f"{data}/mmlu/test*"}
    (data / "mmlu" / "dev.parquet").write_bytes(b"other")
    moved = data.rename(tmp_path / "moved")
    again = specs(repository, tmp_path, files, f"evaluation.data_folder={moved}")
    assert {name: spec.canonical for name, spec in again.items()} == {name: spec.canonical for name, spec in found.items()}
    (moved / "xquad" / "ar.parquet").write_bytes(b"other")
    changed = specs(repository, tmp_path, files, f"evaluation.data_folder={moved}")
    assert changed["mmlu"].canonical == mmlu.canonical and changed["xquad"].canonical != xquad.canonical


def test_revision_counts(repository, tmp_path):
    found = specs(repository, tmp_path, "evaluation.data={}", "evaluation.revisions={xquad: abc}")
    assert found["xquad"].items is not None and found["xquad"].items.revision == "abc" and found["mmlu"].items is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluation.data={xquad: 'xquad/{language}.txt', mmlu: mmlu}", r"xquad/ar\.txt"),
        ("evaluation.data={xqad: x}", "xqad"),
        ("evaluation.benchmarks=[{name: xquad, languages: [ar, xx]}]", "no language 'xx'"),
        ("evaluation={data: {mmlu: mmlu}, revisions: {mmlu: abc}, benchmarks: [mmlu]}", "keep one of the two"),
    ],
)
def test_mistakes_are_named(repository, data, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        specs(
            repository,
            tmp_path,
            "evaluation.data={xquad: 'xquad/{language}.parquet', mmlu: mmlu}",
            change,
            f"evaluation.data_folder={data}",
        )
