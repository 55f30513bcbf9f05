"""The account that every stage owes that reads rows: checked before its artifact exists, and left in the table `rows`."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cft_ray.data.accounts import RowAccount, account_of
from cft_ray.errors import StageFailed
from cft_ray.metrics.schemas import table_of
from cft_ray.plan.stage import Stage

OWING = ("dataset", "finetune", "replay", "embed", "activations", "divergence", "replay_quality")
"""Kinds that read the rows of a data set."""


def settle(stage: Stage, outputs: dict[str, Any], output: Path) -> None:
    """Check the account among a stage's outputs, and write it to ``tables/rows.parquet``.

    Args:
        stage: that has run.
        outputs: what it returned.
        output: its folder, which becomes the artifact.

    Raises:
        StageFailed: a stage that reads rows has no account, or one whose numbers are not each other's sum.
    """
    account = account_of(outputs)
    if account is None:
        if stage.kind in OWING:
            raise StageFailed(f"the {stage.kind} stage does not account for its rows")
        return
    account.checked(f"{stage.kind} {stage.label}".strip())
    tables = output / "tables"
    tables.mkdir(exist_ok=True)
    pq.write_table(table_of("rows", table_rows(stage, account)), tables / "rows.parquet")


def table_rows(stage: Stage, account: RowAccount) -> list[dict[str, Any]]:
    """The rows of the table `rows` that say what an account says."""
    parts = {"left_out": account.left_out, "set_aside": account.set_aside, "noted": account.noted}
    counts = [("came", None, account.came), ("used", None, account.used)]
    counts += [(fate, reason, count) for fate, reasons in parts.items() for reason, count in reasons.items()]
    shares = {"came": account.came, "set_aside": account.came, "noted": account.used}
    return [
        {
            "kind": stage.kind,
            "label": stage.label,
            "fate": fate,
            "reason": reason,
            "count": count,
            "share": count / whole if (whole := shares.get(fate, account.wanted)) else None,
            "found": account.examples.get(reason or ""),
        }
        for fate, reason, count in counts
    ]
