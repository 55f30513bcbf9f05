"""How far a grid is, from a storage in which each kind of state was left by hand; and what is sent to the tables anew."""

import io
import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cft_ray.artifacts import lease
from cft_ray.artifacts.lease import Observer
from cft_ray.artifacts.sound import CorruptArtifact
from cft_ray.artifacts.store import ArtifactStore
from cft_ray.data.accounts import RowAccount
from cft_ray.errors import UserError
from cft_ray.execute import tables
from cft_ray.execute.record import load_plan, recorded_grids, save_plan
from cft_ray.execute.status import GridStatus, show, status
from cft_ray.metrics.schemas import table_of
from cft_ray.metrics.store import Append, TableStore
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Plan, PlannedCell, Stage
from cft_ray.stages.accounting import settle
from cft_ray.storage.root import Storage


class Direct:
    """A reporter in this process: the rows go to the storage without an actor between."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.sent: list[tuple[str, int, int]] = []

    def append(self, table: str, rows: Any, *, fingerprint: str, attempt: int, sequence: int) -> None:
        body = table_of(table, rows)
        TableStore(self.storage, table).commit([Append(fingerprint, attempt, sequence, body)])
        self.sent.append((table, sequence, body.num_rows))


def stage(name: str, *inputs: Stage, skip: str | None = None) -> Stage:
    spec = DatasetSpec(toy=name, columns={}, languages=("en",))
    return Stage(spec, {f"role{n}": source.fingerprint for n, source in enumerate(inputs)}, label=name, skip=skip)


def published(storage: Storage, made: Stage, attempt: int = 1, steps: int = 0, account: RowAccount | None = None) -> Any:
    store = ArtifactStore(storage)
    folder = store.stage_folder(made.kind, made.fingerprint, attempt)
    if steps:
        (folder / "tables").mkdir()
        table = pa.table({"step": range(1, steps + 1), "loss": [0.5] * steps})
        pq.write_table(table_of("steps", table), folder / "tables" / "steps.parquet")
    if account is not None:
        settle(made, {"account": account.model_dump()}, folder)
    return store.publish(
        store.finished(made, folder, outputs={"rows": 2}, attempt=attempt, seconds=90.0, versions={"torch": "2"})
    )


def attempted(storage: Storage, made: Stage, attempt: int, state: str, error: str | None = None, seconds: float = 1.0) -> None:
    row = {"kind": made.kind, "status": state, "error": error, "seconds": seconds, "grid": "study"}
    tables.send_attempt(Direct(storage), made.fingerprint, attempt, row)  # type: ignore[arg-type]


ACCOUNT = RowAccount(came=1200, used=1100, left_out={"no_output": 100}, set_aside={})


@pytest.fixture
def world(tmp_path) -> tuple[Storage, dict[str, Stage]]:
    """Done, running, failed twice, two that descend from it, one that lacks a judge, one that waits."""
    storage = Storage(tmp_path)
    made = {"done": stage("done"), "running": stage("running"), "failed": stage("failed")}
    made["child"] = stage("child", made["failed"])
    made["grandchild"] = stage("grandchild", made["child"], made["done"])
    made["judged"] = stage("judged", made["done"], skip="x has no judge")
    made["waits"] = stage("waits", made["running"], made["done"])
    cells = [
        PlannedCell(name, "m", "a", "b", "none", 0, {}, {role: made[role].fingerprint for role in roles})
        for name, roles in {"whole": ("done", "judged"), "half": ("done", "waits"), "lost": ("grandchild",)}.items()
    ]
    save_plan(storage, Plan("study", {each.fingerprint: each for each in made.values()}, tuple(cells)))
    manifest = published(storage, made["done"], attempt=2, account=ACCOUNT)
    attempted(storage, made["done"], 1, "failed", "out of memory")
    assert tables.send_missing(Direct(storage), ArtifactStore(storage), [manifest], "study") == 1  # type: ignore[arg-type]
    attempted(storage, made["failed"], 1, "failed", "first\nline two\nline three")
    attempted(storage, made["failed"], 2, "failed", "again\nline two\nline three")
    assert Observer(storage, made["running"].fingerprint, run="run").claim() is not None
    return storage, made


def test_every_state(world):
    storage, made = world
    found = status(storage.uri)
    by_name = {each.label: each for each in found.stages}
    assert [each.label for each in found.stages] == list(made)
    states = {"done": "done", "running": "running", "failed": "failed", "child": "skipped", "grandchild": "skipped"}
    assert {name: each.state for name, each in by_name.items()} == states | {"judged": "skipped", "waits": "waiting"}
    assert [found.count(state) for state in ("done", "running", "failed", "skipped", "waiting")] == [1, 1, 1, 3, 1]
    assert {name: each.attempts for name, each in by_name.items() if each.attempts} == {"done": 2, "failed": 2}
    assert {name: each.seconds for name, each in by_name.items() if each.seconds is not None} == {"done": 90.0}
    assert {name: each.error for name, each in by_name.items() if each.error} == {"failed": "again\nline two\nline three"}
    assert {name: each.skip for name, each in by_name.items() if each.skip} == {"judged": "x has no judge"}
    assert {name: each.rows for name, each in by_name.items() if each.rows} == {"done": ACCOUNT}
    assert (found.cells, found.cells_complete, found.complete) == (3, 1, False)
    assert found.to_json()["stages"][0]["rows"]["share_left_out"] == pytest.approx(100 / 1200)
    assert json.loads(json.dumps(found.to_json()))["stages"][1]["rows"] is None


def test_a_failed_stage_that_runs_again_and_one_that_was_made_are_no_failures(world):
    storage, made = world
    published(storage, made["failed"], attempt=3)
    assert {each.label: each.state for each in status(storage.uri).stages}["child"] == "waiting"
    assert {each.label: each.error for each in status(storage.uri).stages}["failed"] is None


def test_a_grid_is_complete_when_all_is_there_that_it_can_make(tmp_path):
    storage = Storage(tmp_path)
    one, judged = stage("one"), stage("judged", skip="no judge")
    save_plan(storage, Plan("study", {each.fingerprint: each for each in (one, judged)}, ()))
    assert not status(storage.uri).complete
    published(storage, one)
    assert status(storage.uri).complete


def printed(found: GridStatus, width: int, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO())
    show(found, console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_it_is_shown_with_the_errors_beginning_or_whole(world):
    storage, _ = world
    found = status(storage.uri)
    text = printed(found, 160)
    for part in ("study in", "dataset done", "1,100 of 1,200", "90.0", "x has no judge", "100 left out"):
        assert part in text, part
    assert "again\nline two\n" in text and "line three" not in text and "first" not in text.replace("first lines", "")
    assert "line three" in printed(found, 160, errors_whole=True)
    assert "7 stages: 1 done, 1 running, 1 failed, 3 skipped, 1 waiting; 1 of 3 cells complete" in text
    (line,) = [line for line in text.splitlines() if line.startswith("dataset failed")]
    assert line.split() == ["dataset", "failed", "failed", "2"]
    (line,) = [line for line in text.splitlines() if line.startswith("dataset waits")]
    assert line.split() == ["dataset", "waits", "waiting"]


def test_forty_columns_hold_all_of_it(world):
    """Each stage's name and how it is, one below the other where a row has no room."""
    storage, _ = world
    text = printed(status(storage.uri), 40)
    assert all(len(line) <= 40 for line in text.splitlines()) and "…" not in text
    together = "".join(text.split())
    for part in ("grandchild", "xhasnojudge", "1of3cellscomplete", "again"):
        assert part in together, (part, text)
    lines = text.splitlines()
    start = lines.index("- dataset done")
    assert lines[start + 1 : start + 6] == [
        "  state: done",
        "  attempts: 2",
        "  seconds: 90.0",
        "  rows used: 1,100 of 1,200",
        "- dataset running",
    ]
    start = lines.index("- dataset waits")
    assert lines[start + 1] == "  state: waiting" and not lines[start + 2].startswith("  ")


def test_a_plan_is_found_again_by_its_name(tmp_path):
    storage = Storage(tmp_path)
    with pytest.raises(UserError, match="no grid was run here yet"):
        load_plan(storage)
    one = stage("one")
    cell = PlannedCell("c", "m", "a", "b", "none", 3, {"x": 1}, {"phase1": one.fingerprint})
    for name in ("a/b", "../..", "ok"):
        save_plan(storage, Plan(name, {one.fingerprint: one}, (cell,)))
        found = load_plan(storage, name)
        assert (found.grid, list(found.stages)) == (name, [one.fingerprint])
        assert found.cells[0]["roles"] == {"phase1": one.fingerprint} and found.cells[0]["seed"] == 3
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["_...json", "a_b.json", "ok.json"]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(load_plan(storage, "ok").started)) < timedelta(minutes=5)
    (tmp_path / "runs" / "notes.txt").write_text("x")
    assert recorded_grids(storage) == ["_..", "a_b", "ok"]
    with pytest.raises(UserError, match=r"3 grids were run here: _\.\., a_b, ok"):
        load_plan(storage)
    with pytest.raises(UserError, match="'other' was not run here yet") as raised:
        load_plan(storage, "other")
    assert raised.value.fix == "grids there: _.., a_b, ok"
    with pytest.raises(UserError, match="not run here yet") as raised:
        load_plan(Storage(tmp_path / "empty"), "other")
    assert raised.value.fix == "run it with `cft-ray run GRID`"
    for damage in ("[]", "{", '{"grid": "ok"}', '{"stages": {"a": {}}}', '{"stages": []}'):
        (tmp_path / "runs" / "ok.json").write_text(damage)
        with pytest.raises(UserError, match="damaged"):
            load_plan(storage, "ok")


def test_a_name_without_letters_is_still_a_file(tmp_path):
    storage = Storage(tmp_path)
    save_plan(storage, Plan("...", {}, ()))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["grid.json"]


def steps(storage: Storage) -> list[tuple[int, int, int]]:
    found = [rows for _, rows in tables.read_files(storage, "steps", ["fingerprint", "attempt", "sequence", "step"])]
    return sorted(pl.from_arrow(pa.concat_tables(found)).select("attempt", "sequence", "step").rows()) if found else []  # type: ignore[union-attr]


def test_what_the_tables_lack_is_sent_and_nothing_twice(tmp_path, monkeypatch):
    storage, one, silent = Storage(tmp_path), stage("one"), stage("silent")
    monkeypatch.setattr(tables, "BATCH", 2)
    manifests = [published(storage, one, attempt=4, steps=5), published(storage, silent)]
    direct: Any = Direct(storage)
    assert tables.send_missing(direct, ArtifactStore(storage), manifests, "study") == 2
    assert direct.sent == [("steps", 1, 2), ("steps", 3, 2), ("steps", 5, 1), ("stages", 2, 1), ("stages", 2, 1)]
    assert steps(storage) == [(4, n, n) for n in range(1, 6)]
    assert tables.send_missing(direct, ArtifactStore(storage), manifests, "study") == 0
    assert len(direct.sent) == 5
    rows = [
        rows for _, rows in tables.read_files(storage, "stages", ["fingerprint", "kind", "status", "start", "end", "seconds"])
    ]
    for row in pa.concat_tables(rows).to_pylist():
        assert (row["kind"], row["status"], row["seconds"]) == ("dataset", "done", 90.0)
        assert row["end"] - row["start"] == timedelta(seconds=90)
    # Rows that are numbered from 1 lack their 0; two that are absent are two that were lost.
    for file in (tmp_path / "tables" / "steps").glob("*.parquet"):
        if pl.read_parquet(file)["sequence"].to_list() == [5]:
            file.unlink()
    assert tables.send_missing(direct, ArtifactStore(storage), manifests, "study") == 1
    assert steps(storage) == [(4, n, n) for n in range(1, 6)]


def test_a_damaged_artifact_is_told_and_passed_over(tmp_path):
    storage, one, two = Storage(tmp_path), stage("one"), stage("two")
    damaged, sound = published(storage, one, steps=3), published(storage, two, steps=3)
    path = ArtifactStore(storage).fetch(one.kind, one.fingerprint) / "tables" / "steps.parquet"
    path.write_bytes(b"no Parquet")
    told: list[str] = []
    direct: Any = Direct(storage)
    given = [damaged, sound]
    assert tables.send_missing(direct, ArtifactStore(storage), given, "study", lambda made, _: told.append(made.label)) == 1
    assert told == ["one"] and len(steps(storage)) == 3
    with pytest.raises((CorruptArtifact, pa.ArrowException)):
        tables.send_missing(direct, ArtifactStore(storage), [damaged], "study")


def test_done_is_the_last_word_of_an_attempt(tmp_path):
    storage, one = Storage(tmp_path), stage("one")
    save_plan(storage, Plan("study", {one.fingerprint: one}, ()))
    attempted(storage, one, 1, "done")
    attempted(storage, one, 1, "failed", "its process was lost afterwards")
    assert status(storage.uri, "study").stages[0].attempts == 1
    assert status(storage.uri, "study").stages[0].state == "waiting"  # its artifact is gone: it is made again
    attempted(storage, one, 2, "failed", "x")
    assert status(storage.uri, "study").stages[0].state == "failed"


def test_rows_that_are_numbered_from_nought_are_not_sent_again(tmp_path):
    storage, one = Storage(tmp_path), stage("one")
    account = RowAccount(came=3, used=2, left_out={"no_output": 1})
    made = published(storage, one, account=account)
    direct: Any = Direct(storage)
    assert tables.send_missing(direct, ArtifactStore(storage), [made], "study") == 1
    assert direct.sent == [("rows", 0, 3), ("stages", 2, 1)]
    assert tables.send_missing(direct, ArtifactStore(storage), [made], "study") == 0 and len(direct.sent) == 2
    attempted(storage, stage("two"), 1, "failed")
    (tmp_path / "tables" / "stages").rename(tmp_path / "tables" / "gone")
    assert tables.send_missing(direct, ArtifactStore(storage), [made], "study") == 1 and direct.sent[2:] == [("stages", 2, 1)]


def test_a_large_plan_is_read_again(tmp_path):
    storage = Storage(tmp_path)
    made = [stage(f"{number} {'x' * 200}") for number in range(300)]
    save_plan(storage, Plan("large", {each.fingerprint: each for each in made}, ()))
    assert (tmp_path / "runs" / "large.json").stat().st_size > 100_000
    assert list(load_plan(storage).stages) == [each.fingerprint for each in made]


def test_columns_of_a_status_stand_under_their_heads(world):
    storage, _ = world
    lines = printed(status(storage.uri), 120).splitlines()
    head = next(line for line in lines if line.startswith("stage"))
    row = next(line for line in lines if line.startswith("dataset done"))
    for column, cell in (("attempts", "2"), ("seconds", "90.0"), ("rows used", "1,100 of 1,200")):
        end = max(head.index(column) + len(column), row.index(cell) + len(cell))
        assert row[:end].endswith(cell) and head[:end].rstrip().endswith(column), "numbers stand right"
    assert row.index(" done ", 12) + 1 == head.index("state")
    first = lines.index(next(line for line in lines if line.startswith("dataset done")))
    assert all(line.startswith("dataset ") for line in lines[first : first + 7]), "a line each"


def test_cells_are_complete_whose_stages_are_done_or_cannot_be(tmp_path):
    storage = Storage(tmp_path)
    made = {name: stage(name, skip="no judge" if name == "judged" else None) for name in ("one", "two", "three", "judged")}
    roles = {"a": ("one",), "b": ("one", "two"), "c": ("two", "judged"), "d": ("one", "three"), "e": ("three",)}
    cells = [
        PlannedCell(name, "m", "a", "b", "none", 0, {}, {role: made[role].fingerprint for role in roles[name]}) for name in roles
    ]
    save_plan(storage, Plan("study", {each.fingerprint: each for each in made.values()}, tuple(cells)))
    for name in ("one", "two"):
        published(storage, made[name])
    found = status(storage.uri)
    assert (found.cells, found.cells_complete, found.complete) == (5, 3, False)


def test_on_a_bucket_half_an_upload_is_not_done_and_a_holder_that_is_gone_does_not_run(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lease, "BEAT", 0.05)
    storage = Storage("s3://bucket/run")
    made = {name: stage(name) for name in ("whole", "half", "removed", "died here", "died elsewhere", "alive")}
    cells = tuple(PlannedCell(name, "m", "a", "b", "none", 0, {}, {"x": each.fingerprint}) for name, each in made.items())
    save_plan(storage, Plan("study", {each.fingerprint: each for each in made.values()}, cells))
    published(storage, made["whole"])
    storage.write("artifacts", made["half"].kind, made["half"].fingerprint, "0001-0123abcd", "data.txt", data=b"ha")
    published(storage, made["removed"])
    ArtifactStore(storage).remove(made["removed"].kind, made["removed"].fingerprint)
    here = lease.Record(
        attempt=1, holder="a", machine=lease._machine(), pid=os.getpid(), born="before"
    )  # its number is another's
    elsewhere = lease.Record(attempt=1, holder="b", machine="elsewhere", pid=1, born="1", beat=7)
    for name, record in (("died here", here), ("died elsewhere", elsewhere)):
        storage.write("leases", f"{made[name].fingerprint}.json", data=record.encode())
    held = Observer(storage, made["alive"].fingerprint, run="run").claim()
    assert held is not None
    found = status(storage.uri)
    held.release()
    waiting = ("half", "removed", "died here", "died elsewhere")
    assert {each.label: each.state for each in found.stages} == {"whole": "done", "alive": "running"} | dict.fromkeys(
        waiting, "waiting"
    )
    assert (found.cells_complete, found.complete) == (1, False)
