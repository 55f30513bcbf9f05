"""The account of a stage's rows goes to the table `rows` and comes back as it was; a stage that owes one and has none fails."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cft_ray.data.accounts import RowAccount
from cft_ray.errors import StageFailed
from cft_ray.metrics.accounts import accounts, lines
from cft_ray.metrics.schemas import SCHEMAS
from cft_ray.metrics.store import Append, TableStore
from cft_ray.plan.specs import DatasetSpec, DriftSpec
from cft_ray.plan.stage import Stage
from cft_ray.stages.accounting import OWING, settle
from cft_ray.storage.root import Storage

STAGE = Stage(DatasetSpec(toy="alpaca", columns={}, languages=("en",)), {}, "de")
ACCOUNT = RowAccount(
    came=100,
    used=50,
    left_out={"language_spelled_otherwise": 8, "no_output": 2},
    set_aside={"not_in_sample": 40},
    noted={"truncated": 5},
    examples={"language_spelled_otherwise": "'DE' 8 times"},
)


def test_an_account_becomes_rows_of_a_table_and_comes_back(tmp_path):
    settle(STAGE, {"account": ACCOUNT.model_dump()}, tmp_path)
    body = pq.read_table(tmp_path / "tables" / "rows.parquet")
    shares = {(row["fate"], row["reason"]): row["share"] for row in body.to_pylist()}
    assert shares["used", None] == 50 / 60 and shares["left_out", "no_output"] == 2 / 60
    assert shares["set_aside", "not_in_sample"] == 0.4 and shares["noted", "truncated"] == 0.1
    storage = Storage(tmp_path / "storage")
    assert accounts(storage) == {}
    older = body.set_column(body.column_names.index("count"), "count", pa.array([1] * body.num_rows))
    TableStore(storage, "rows").commit([Append("f", 1, 0, older), Append("f", 2, 0, body)])
    assert accounts(storage) == {"f": ACCOUNT}
    assert set(body.column_names) < set(SCHEMAS["rows"].names)


def test_a_stage_without_its_account_or_with_a_wrong_one_fails(tmp_path):
    with pytest.raises(StageFailed, match="does not account for its rows"):
        settle(STAGE, {"rows": 3}, tmp_path)
    with pytest.raises(StageFailed, match="dataset de does not account"):
        settle(STAGE, {"account": ACCOUNT.model_copy(update={"used": 49}).model_dump()}, tmp_path)
    assert not (tmp_path / "tables").exists()
    settle(Stage(DriftSpec()), {"mpd": 1.0}, tmp_path)
    assert not (tmp_path / "tables").exists() and "drift" not in OWING


def test_only_what_lost_rows_has_a_line():
    whole = RowAccount(came=3, used=3, set_aside={})
    (line,) = lines([("dataset en", whole), ("dataset de", ACCOUNT), ("drift", None)])
    assert line.startswith(
        "rows of dataset de: 50 of 100 rows used; 10 left out (16.7 %): 8 with their language spelled otherwise"
    )
