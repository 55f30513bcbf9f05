import subprocess
import sys

from cft_ray.data.formats import FORMATS
from cft_ray.data.rows import COLUMNS


def test_formats_map_canonical_columns_and_always_say_where_question_and_answer_are() -> None:
    for columns in FORMATS.values():
        assert set(columns) <= set(COLUMNS)
        assert {"instruction", "output"} <= set(columns)


def test_the_planner_can_import_formats_and_toy_without_heavy_libraries() -> None:
    code = (
        "import sys, cft_ray.data.formats, cft_ray.data.toy;"
        "print(sorted({'torch', 'ray', 'transformers', 'datasets', 'pyarrow', 'polars', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
