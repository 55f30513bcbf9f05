"""The table as a set of keyed rows: whatever is sent twice, crashes in between or is compacted, the set is the same."""

import errno
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cft_ray
from cft_ray.errors import UserError
from cft_ray.metrics import store as store_module
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, DamagedFileWarning, TableStore
from cft_ray.storage.root import Storage


def steps(fingerprint: str, attempt: int, sequence: int, count: int) -> Append:
    """The loss says whose row it is, so that a mixed-up row is seen."""
    rows = [{"step": n, "loss": attempt * 1000.0 + n} for n in range(sequence, sequence + count)]
    return Append(fingerprint, attempt, sequence, table_of("steps", rows))


def on_disk(folder: Path) -> list[tuple]:
    """Every row of every file, by polars alone."""
    files = sorted((folder / "tables" / "steps").glob("*.parquet"))
    columns = ["fingerprint", "attempt", "sequence", "step", "loss"]
    return [row for file in files for row in pl.read_parquet(file).select(columns).rows()]


def read(folder: Path) -> list[tuple]:
    """What a reader of the library sees, all attempts."""
    columns = ["fingerprint", "attempt", "sequence", "step", "loss"]
    return sorted(cft_ray.open(folder)._table("steps").select(columns).collect().rows())


def expected(*ranges: tuple[str, int, int, int]) -> list[tuple]:
    keys = {(f, a, n) for f, a, start, count in ranges for n in range(start, start + count)}
    return sorted((f, a, n, n, a * 1000.0 + n) for f, a, n in keys)


RANGE = st.tuples(st.sampled_from("fg"), st.integers(1, 2), st.integers(0, 12), st.integers(1, 6))
ACTION = st.one_of(st.lists(RANGE, min_size=1, max_size=3), st.sampled_from(["restart", "merge", "compact"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTION, max_size=10))
def test_any_history_is_the_union_of_what_was_sent(actions):
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "FAN_IN", 2)
        storage = Storage(name)
        store, sent = TableStore(storage, "steps"), []
        for action in actions:
            if action == "restart":
                store = TableStore(storage, "steps")
            elif action == "merge":
                store.merge_levels()
            elif action == "compact":
                store.compact()
            else:
                new = len(expected(*sent, *action)) - len(expected(*sent))
                assert store.commit(steps(*item) for item in action) == new
                sent += action
            assert sorted(on_disk(Path(name))) == expected(*sent)  # durable at once, and nothing doubled


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    store = TableStore(Storage(tmp_path), "steps")
    store.commit([steps("f", 1, 0, 3)])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError):
            store.commit([steps("f", 1, 3, 3)])
    assert read(tmp_path) == expected(("f", 1, 0, 3))
    assert store.commit([steps("f", 1, 3, 3)]) == 3
    assert read(tmp_path) == expected(("f", 1, 0, 6))


class Crash(BaseException):
    """Stands for the process ending at this very point."""


@pytest.mark.parametrize("point", range(6))
def test_a_crash_at_any_point_of_a_compaction(tmp_path, monkeypatch, point):
    storage = Storage(tmp_path)
    store = TableStore(storage, "steps")
    for number in range(5):
        store.commit([steps("f", 1, 4 * number, 4)])
    calls = 0

    def crashing(change):
        def call(self, *parts, **data):
            nonlocal calls
            if calls == point:
                raise Crash
            calls += 1
            return change(self, *parts, **data)

        return call

    with monkeypatch.context() as patch:  # one write, then five removals: the crash comes before the point-th of them
        patch.setattr(Storage, "write", crashing(Storage.write))
        patch.setattr(Storage, "delete", crashing(Storage.delete))
        with pytest.raises(Crash):
            store.compact()
    assert read(tmp_path) == expected(("f", 1, 0, 20))
    assert cft_ray.open(tmp_path).steps().collect()["step"].to_list() == list(range(20))
    again = TableStore(storage, "steps")
    assert again.commit([steps("f", 1, 10, 12)]) == 2
    again.compact()
    assert sorted(on_disk(tmp_path)) == expected(("f", 1, 0, 22))
    assert len(list((tmp_path / "tables" / "steps").iterdir())) == 1


def test_two_writers_on_one_folder(tmp_path):
    stores = [TableStore(Storage(tmp_path), "steps") for _ in range(2)]
    for number in range(4):
        for store in stores:
            store.commit([steps("f", 1, 3 * number, 5)])  # both write the same rows
    stores[0].compact()
    assert read(tmp_path) == expected(("f", 1, 0, 14))
    stores[1].compact()
    assert read(tmp_path) == expected(("f", 1, 0, 14))


def test_levels_keep_the_files_few(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FAN_IN", 4)
    store, merged = TableStore(Storage(tmp_path), "steps"), 0
    for number in range(70):
        store.commit([steps("f", 1, number, 1)])
        files = len(list((tmp_path / "tables" / "steps").iterdir()))
        store.merge_levels()
        there = len(list((tmp_path / "tables" / "steps").iterdir()))
        assert there <= 4 * 3 and there <= files
        merged += files - there >= 3
    assert merged >= 70 // 4, "every fourth commit makes one file of four"
    assert sorted(on_disk(tmp_path)) == expected(("f", 1, 0, 70))


def test_compaction_is_bounded_and_leaves_what_is_not_ours(tmp_path, monkeypatch):
    store = TableStore(Storage(tmp_path), "steps")
    for number in range(6):
        store.commit([steps("f", 1, 4 * number, 4)])
    folder = tmp_path / "tables" / "steps"
    size = max(file.stat().st_size for file in folder.iterdir())
    foreign = {"notes.txt": b"mine", "broken.parquet": b"PAR1 no", f"0-{'0' * 32}.parquet": b"PAR1 no"}
    for name, content in foreign.items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(store_module, "LARGEST", 3 * size)
    with pytest.warns(DamagedFileWarning):
        store = TableStore(Storage(tmp_path), "steps")
        store.compact()
        assert 2 <= len(list(folder.iterdir())) - len(foreign) <= 3
        assert read(tmp_path) == expected(("f", 1, 0, 24))
    assert {name: (folder / name).read_bytes() for name in foreign} == foreign


def test_temporary_files_of_a_crash_are_removed_when_old(tmp_path):
    TableStore(Storage(tmp_path), "steps").commit([steps("f", 1, 0, 1)])
    folder = tmp_path / "tables" / "steps"
    for name in (".0-old.parquet-x", ".0-new.parquet-x"):
        (folder / name).write_bytes(b"half")
    os.utime(folder / ".0-old.parquet-x", (time.time() - 7200, time.time() - 7200))
    TableStore(Storage(tmp_path), "steps")
    assert {file.name for file in folder.glob(".*")} == {".0-new.parquet-x"}


def test_every_table_survives_a_merge(tmp_path):
    sample = {"benchmark": "b", "task": "t", "language": "en", "item": "1", "metrics": [{"metric": "em", "value": 1.0}]}
    layer = {"model": "m", "layer": 0, "mean": [0.5, 1.5], "variance": 1.0}
    for table, row in (("samples", sample), ("layers", layer)):
        store = TableStore(Storage(tmp_path), table)
        for number in range(3):
            store.commit([Append("f", 1, 2 * number, table_of(table, [row, row]))])
        store.compact()
        rows = cft_ray.open(tmp_path)._table(table).sort("sequence").collect().to_dicts()
        assert [r["sequence"] for r in rows] == list(range(6))
        assert all({**r, **row} == r for r in rows)


class Failing:
    """A file system that fails to give files a number of times; everything else is the real one's."""

    def __init__(self, real, failures):
        self.real, self.failures = real, failures

    def __getattr__(self, name):
        if name in ("open", "read") and self.failures > 0:
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error")
        return getattr(self.real, name)


def test_a_storage_that_stutters_loses_no_row(tmp_path):
    storage: Any = Storage(tmp_path)
    TableStore(storage, "steps").commit([steps("f", 1, 0, 5)])
    storage._files = Failing(storage._files, failures=3)
    ((_, rows),) = store_module.read_files(storage, "steps", ["fingerprint", "step"])
    assert rows["step"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_storage_that_gives_no_file_is_an_error_and_no_table_without_rows(tmp_path):
    storage: Any = Storage(tmp_path, patience=0.2)
    TableStore(storage, "steps").commit([steps("f", 1, 0, 5)])
    storage._files = Failing(storage._files, failures=10**9)
    with pytest.raises(UserError, match="Input/output error"):
        store_module.read_files(storage, "steps", ["fingerprint", "step"])


def test_files_that_keep_vanishing_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module.time, "sleep", lambda _: None)
    storage = Storage(tmp_path)
    TableStore(storage, "steps").commit([steps("f", 1, 0, 5)])
    (info,) = store_module.table_files(storage, "steps")
    (tmp_path / "tables" / "steps" / info.name).unlink()
    monkeypatch.setattr(store_module, "table_files", lambda *_: [info])
    with pytest.raises(UserError, match="change"):
        store_module.read_files(storage, "steps", ["step"])


def test_a_merge_keeps_the_columns_of_a_newer_version(tmp_path):
    storage = Storage(tmp_path)
    store = TableStore(storage, "steps")
    store.commit([steps("f", 1, 0, 2)])
    store.commit([steps("f", 1, 2, 2)])
    folder = tmp_path / "tables" / "steps"
    newer = min(folder.iterdir(), key=lambda path: pl.read_parquet(path)["step"].to_list())
    pl.read_parquet(newer).with_columns(temperature=pl.col("step") + 0.5).write_parquet(newer)
    TableStore(storage, "steps").compact()
    (merged,) = folder.iterdir()
    assert pl.read_parquet(merged).sort("step")["temperature"].to_list() == [0.5, 1.5, None, None]
    assert read(tmp_path) == expected(("f", 1, 0, 4))


def test_files_whose_unknown_columns_disagree_are_left_as_they_are(tmp_path):
    storage = Storage(tmp_path)
    store = TableStore(storage, "steps")
    store.commit([steps("f", 1, 0, 2)])
    store.commit([steps("f", 1, 2, 2)])
    for number, path in enumerate(sorted((tmp_path / "tables" / "steps").iterdir())):
        value = pl.lit("warm") if number else pl.lit(1.5)
        pl.read_parquet(path).with_columns(temperature=value).write_parquet(path)
    TableStore(storage, "steps").compact()
    assert len(list((tmp_path / "tables" / "steps").iterdir())) == 2
    assert read(tmp_path) == expected(("f", 1, 0, 4))


def test_a_file_that_a_compaction_removed_meanwhile_costs_no_row(tmp_path, monkeypatch):
    """It is in the listing and gone when it is read: the listing is made anew, and its rows are in the merged file."""
    monkeypatch.setattr(store_module.time, "sleep", lambda _: None)
    storage = Storage(tmp_path)
    for number in range(3):
        TableStore(storage, "steps").commit([steps("f", 1, 2 * number, 2)])
    real, stale = store_module.table_files, store_module.table_files(storage, "steps")
    TableStore(storage, "steps").compact()
    looks = iter([stale])
    monkeypatch.setattr(store_module, "table_files", lambda *given: next(looks, None) or real(*given))
    read = store_module.read_files(storage, "steps", ["fingerprint", "step"])
    assert sorted(step for _, rows in read for step in rows["step"].to_pylist()) == list(range(6))


def test_a_compaction_takes_as_many_files_as_fit_together(tmp_path, monkeypatch):
    """Four files of one size and room for two: two pairs, neither three files nor a pair and two single ones."""
    store = TableStore(Storage(tmp_path), "steps")
    for name in "abcd":
        store.commit([steps(name, 1, 0, 1)])
    sizes = {path.stat().st_size for path in (tmp_path / "tables" / "steps").iterdir()}
    assert len(sizes) == 1
    monkeypatch.setattr(store_module, "LARGEST", 2 * sizes.pop())
    store.compact()
    found = [sorted(pl.read_parquet(path)["fingerprint"]) for path in (tmp_path / "tables" / "steps").iterdir()]
    assert sorted(found) == [["a", "b"], ["c", "d"]]


def levels(folder: Path) -> list[int]:
    return sorted(int(path.name[0]) for path in (folder / "tables" / "steps").glob("*.parquet"))


def test_files_of_a_level_become_one_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FAN_IN", 2)
    store, seen = TableStore(Storage(tmp_path), "steps"), []
    for number in range(8):
        store.commit([steps("f", 1, number, 1)])
        store.merge_levels()
        seen.append(levels(tmp_path))
    assert seen[:4] == [[0], [1], [0, 1], [2]] and seen[-1] == [3]
    assert sorted(on_disk(tmp_path)) == expected(("f", 1, 0, 8))


def test_no_level_is_above_nine(tmp_path):
    store = TableStore(Storage(tmp_path), "steps")
    for number in range(3):
        store.commit([steps("f", 1, number, 1)])
    store._merge(list(store._levels[0])[:2], 12)
    assert levels(tmp_path) == [0, 9]
    again = TableStore(Storage(tmp_path), "steps")
    again.compact()
    assert levels(tmp_path) == [9] and sorted(on_disk(tmp_path)) == expected(("f", 1, 0, 3))


def test_thirty_two_files_are_merged_while_they_are_small_and_not_once_they_are_large(tmp_path, monkeypatch):
    store = TableStore(Storage(tmp_path), "steps")
    for number in range(31):
        store.commit([steps("f", 1, number, 1)])
    store.merge_levels()
    assert levels(tmp_path) == [0] * 31
    store.commit([steps("f", 1, 31, 1)])
    size = sum(path.stat().st_size for path in (tmp_path / "tables" / "steps").iterdir())
    monkeypatch.setattr(store_module, "LARGEST", size - 1)
    store.merge_levels()
    assert levels(tmp_path) == [0] * 32
    monkeypatch.setattr(store_module, "LARGEST", size)
    store.merge_levels()
    assert levels(tmp_path) == [1]


def test_at_most_thirty_two_megabytes_are_merged_at_a_time(tmp_path):
    """By the sizes that are known of the files; nothing so large is written."""
    for size, merged in ((2**20, [1]), (2**20 + 1, [0] * 32)):
        folder = tmp_path / str(size)
        store = TableStore(Storage(folder), "steps")
        for number in range(32):
            store.commit([steps("f", 1, number, 1)])
        store._levels[0] = dict.fromkeys(store._levels[0], size)
        store.merge_levels()
        assert levels(folder) == merged


def test_a_file_that_another_writer_has_merged_is_left_out_of_a_merge(tmp_path):
    store = TableStore(Storage(tmp_path), "steps")
    for number in range(3):
        store.commit([steps("f", 1, number, 1)])
    gone = min((tmp_path / "tables" / "steps").iterdir(), key=lambda path: pl.read_parquet(path)["step"].to_list())
    gone.unlink()
    store.compact()
    assert sorted(on_disk(tmp_path)) == expected(("f", 1, 1, 2)) and levels(tmp_path) == [0]
    store.commit([steps("f", 1, 9, 1)])
    store.compact()
    assert len(levels(tmp_path)) == 1


def test_a_single_file_is_not_written_again(tmp_path):
    store = TableStore(Storage(tmp_path), "steps")
    store.commit([steps("f", 1, 0, 1)])
    before = [path.name for path in (tmp_path / "tables" / "steps").iterdir()]
    store.compact()
    store.merge_levels()
    assert [path.name for path in (tmp_path / "tables" / "steps").iterdir()] == before
    TableStore(Storage(tmp_path / "empty"), "steps").compact()


def test_a_table_is_looked_at_twenty_times(tmp_path, monkeypatch):
    looks: list[float] = []
    monkeypatch.setattr(store_module.time, "sleep", looks.append)
    storage = Storage(tmp_path)
    TableStore(storage, "steps").commit([steps("f", 1, 0, 1)])
    (info,) = store_module.table_files(storage, "steps")
    (tmp_path / "tables" / "steps" / info.name).unlink()
    monkeypatch.setattr(store_module, "table_files", lambda *_: [info])
    with pytest.raises(UserError, match="change faster"):
        store_module.read_files(storage, "steps", ["step"])
    assert looks == [0.05] * 20


def test_leavings_go_after_an_hour(tmp_path):
    folder = tmp_path / "tables" / "steps"
    folder.mkdir(parents=True)
    for name, age in ((".old", 3700), (".young", 3500), ("visible", 9999)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    TableStore(Storage(tmp_path), "steps")
    assert sorted(path.name for path in folder.iterdir()) == [".young", "visible"]


def test_rows_come_in_the_columns_that_are_asked_for(tmp_path):
    storage = Storage(tmp_path)
    TableStore(storage, "steps").commit([steps("f", 1, 0, 2)])
    ((name, rows),) = store_module.read_files(storage, "steps", ["loss", "fingerprint"])
    assert rows.column_names == ["loss", "fingerprint"] and name.endswith(".parquet")
    assert store_module.read_files(storage, "scores", ["value"]) == []
    folder = tmp_path / "tables" / "steps"
    for hidden in ("_x.parquet", ".x.parquet", "x.txt"):
        (folder / hidden).write_bytes(b"no table")
    assert [info.name for info in store_module.table_files(storage, "steps")] == [name]


def test_the_same_row_twice_in_one_call_is_written_once(tmp_path):
    store = TableStore(Storage(tmp_path), "steps")
    assert store.commit([steps("f", 1, 0, 4), steps("f", 1, 2, 4), steps("f", 2, 0, 1)]) == 7
    assert store.commit([steps("f", 1, 0, 6)]) == 0 and len(levels(tmp_path)) == 1
    assert sorted(on_disk(tmp_path)) == expected(("f", 1, 0, 6), ("f", 2, 0, 1))
