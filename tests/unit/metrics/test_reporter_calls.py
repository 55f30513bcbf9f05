"""The reporting actor's own class, without Ray: what callers are told when writing goes wrong."""

import asyncio

import polars as pl
import pytest

from cft_ray.metrics.reporter import _ReporterActor
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import FAN_IN, Append, TableStore


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


def test_finishing_leaves_one_file_a_table_with_every_row(tmp_path):
    actor = _ReporterActor(str(tmp_path))

    async def work() -> None:
        for number in range(5):
            assert await answers(actor, [step(number)]) == [None]
        assert len(list(tmp_path.rglob("*.parquet"))) == 5
        await actor.finish()

    asyncio.run(work())
    (file,) = tmp_path.rglob("*.parquet")
    assert sorted(pl.read_parquet(file)["step"]) == [0, 1, 2, 3, 4]


def test_many_single_files_are_merged_while_the_run_goes_on(tmp_path):
    actor = _ReporterActor(str(tmp_path))

    async def work() -> None:
        for number in range(FAN_IN):
            await actor.append("steps", step(number))

    asyncio.run(work())
    assert len(list(tmp_path.rglob("*.parquet"))) == 1


def test_after_a_failed_write_the_files_are_looked_at_again(tmp_path, monkeypatch):
    """What the actor remembers of the keys may be wrong then: here another process wrote the row meanwhile."""
    actor = _ReporterActor(str(tmp_path))
    asyncio.run(actor.append("steps", step(0)))

    def fail(*_):
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(TableStore, "_write", fail)
        with pytest.raises(OSError, match="disk gone"):
            asyncio.run(actor.append("steps", step(1)))
    TableStore(actor._storage, "steps").commit([step(1)])
    asyncio.run(actor.append("steps", step(1)))
    steps = [number for file in tmp_path.rglob("*.parquet") for number in pl.read_parquet(file)["step"]]
    assert sorted(steps) == [0, 1]
