"""The reporting actor's own class, without Ray: what callers are told when writing goes wrong."""

import asyncio

import pytest

from cft_ray.metrics.reporter import _ReporterActor
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore


def step(number: int) -> Append:
    return Append("f", 1, number, table_of("steps", [{"step": number, "loss": 0.5}]))


async def answers(actor: _ReporterActor, appends: list[Append]) -> list[object]:
    return await asyncio.gather(*(actor.append("steps", append) for append in appends), return_exceptions=True)


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("a bug"), OSError("disk gone"), KeyError("x")])
def test_no_call_is_acknowledged_when_anything_is_raised(tmp_path, monkeypatch, error):
    """Calls that share a file share its fate: none of them may believe that its rows are on the disk."""

    def fail(*_):
        raise error

    appends = [step(number) for number in range(5)]
    actor = _ReporterActor(str(tmp_path))
    with asyncio.Runner() as runner:
        with monkeypatch.context() as patch:
            patch.setattr(TableStore, "_write", fail)
            found = runner.run(answers(actor, appends))
        assert [type(answer) for answer in found] == [type(error)] * 5
        assert not list(tmp_path.rglob("*.parquet"))
        assert runner.run(answers(actor, appends)) == [None] * 5  # it goes on afterwards
    assert len(list(tmp_path.rglob("*.parquet"))) >= 1


def test_a_compaction_that_fails_does_not_fail_rows_that_are_safe(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("cannot delete")

    monkeypatch.setattr(TableStore, "merge_levels", fail)
    actor = _ReporterActor(str(tmp_path))
    assert asyncio.run(answers(actor, [step(1)])) == [None]
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
