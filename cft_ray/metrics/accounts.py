"""The table `rows` as accounts, and as lines for people. No Ray."""

from collections.abc import Iterable

import pyarrow as pa

from cft_ray.data.accounts import RowAccount
from cft_ray.metrics.store import read_files
from cft_ray.storage.root import Storage

_COLUMNS = ["fingerprint", "attempt", "sequence", "fate", "reason", "count", "found"]


def accounts(storage: Storage) -> dict[str, RowAccount]:
    """Fingerprint -> what became of the stage's rows, of the stages that read rows and are done."""
    tables = [rows for _, rows in read_files(storage, "rows", _COLUMNS)]
    if not tables:
        return {}
    stages: dict[str, dict[int, dict[int, dict]]] = {}
    for row in pa.concat_tables(tables).to_pylist():
        stages.setdefault(row["fingerprint"], {}).setdefault(row["attempt"], {})[row["sequence"]] = row
    return {key: _account(attempts[max(attempts)].values()) for key, attempts in stages.items()}


def _account(rows: Iterable[dict]) -> RowAccount:
    rows = list(rows)
    count = {row["fate"]: row["count"] for row in rows}
    fates = {fate: {r["reason"]: r["count"] for r in rows if r["fate"] == fate} for fate in ("left_out", "set_aside", "noted")}
    examples = {row["reason"]: row["found"] for row in rows if row["found"]}
    return RowAccount(came=count["came"], used=count["used"], examples=examples, **fates)


def lines(named: Iterable[tuple[str, RowAccount | None]]) -> list[str]:
    """A line for each data set or training that lost rows, or used some with something to know.

    Args:
        named: what a stage is called, and its account.
    """
    return [f"rows of {name}: {account}" for name, account in named if account is not None and (account.lost or account.noted)]
