"""How long a storage is waited for, and what is said of it."""

import errno
from typing import Any

import pytest

from cft_ray.storage import retry
from cft_ray.storage.entry import Version
from cft_ray.storage.errors import StorageError, Unavailable
from cft_ray.storage.local import Folder
from cft_ray.storage.root import Storage


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest pauses."""
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)


def test_pauses_double_up_to_a_limit_and_end_with_the_patience(clock):
    times: list[float] = []

    def call() -> None:
        times.append(round(clock.now, 6))
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="x", seconds=60)
    assert times == [0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 40.4, 55.4, 60.0]


def test_it_is_told_after_some_seconds_and_then_now_and_then(clock):
    told: list[tuple[float, str]] = []

    def call() -> None:
        raise OSError("away\nwith details")

    with retry.telling(lambda text: told.append((round(clock.now, 3), text))), pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="s3://b", seconds=200)
    assert [when for when, _ in told] == [3.0, 40.4, 70.4, 100.4, 130.4, 160.4, 190.4]
    assert told[0][1] == "s3://b does not answer (away); trying again for 3 min more"
    assert told[-1][1] == "s3://b does not answer (away); trying again for 10 s more"
    with retry.telling(lambda text: told.append((0, text))), pytest.raises(OSError, match="away"):
        retry.patiently(call, lambda _: True, where="x", seconds=93, words=lambda error: "in words")
    assert told[7][1] == "x does not answer (in words); trying again for 2 min more"


def test_patience_is_a_setting_that_must_be_a_number(monkeypatch):
    for text, seconds in (("5", 5.0), ("0.5", 0.5), ("-3", 0.0), ("long", 600.0), ("", 600.0)):
        monkeypatch.setenv(retry.VARIABLE, text)
        assert retry.patience() == seconds


def test_an_error_in_one_line():
    assert retry.reason(OSError(errno.EIO, "Input/output error", "x")) == "Input/output error"
    assert retry.reason(ValueError("one\ntwo")) == "one" and retry.reason(ValueError(" \n")) == "ValueError"


def test_the_listener_before_is_back_afterwards(clock):
    heard: list[str] = []
    with retry.telling(heard.append):
        with retry.telling(lambda text: None):
            pass
        retry._tell("again")
    assert heard == ["again"]


def test_errors_of_a_storage_are_said_once_and_of_their_sort(tmp_path):
    storage: Any = Storage(tmp_path, patience=0)

    def raising(error: Exception) -> Any:
        def call() -> None:
            raise error

        return call

    for error, sort, what in (
        (OSError(errno.EIO, "away"), Unavailable, "the storage cannot be read: away"),
        (PermissionError(errno.EACCES, "Permission denied"), StorageError, "the storage cannot be read: Permission denied"),
    ):
        with pytest.raises(StorageError) as raised:
            storage._ask("cannot be read", raising(error))
        assert type(raised.value) is sort and raised.value.what == what and raised.value.where == str(tmp_path)
    for error in (ValueError("x"), KeyError("x"), StorageError("x")):
        with pytest.raises(type(error)):
            storage._ask("cannot be read", raising(error))
    with pytest.raises(FileNotFoundError):
        storage._ask("cannot be read", raising(FileNotFoundError(errno.ENOENT, "No such file")))
    with pytest.raises(StorageError, match="cannot be written to: No such file"):
        storage._ask("cannot be written to", raising(FileNotFoundError(errno.ENOENT, "No such file")))


def test_a_storage_that_ignores_conditions_is_refused(tmp_path, monkeypatch):
    def create(self: Folder, path: str, data: bytes) -> Version:
        return self.write(path, data)

    monkeypatch.setattr(Folder, "create", create)
    with pytest.raises(StorageError, match="ignores conditional writes"):
        Storage(tmp_path).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_copied_to_the_root_and_back(tmp_path):
    source = tmp_path / "source"
    for name in ("a", "b/c", "b/d/e"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    storage = Storage(tmp_path / "root")
    storage.fill(source)
    assert [(entry.name, entry.size) for entry in storage.list(recursive=True)] == [("a", 1), ("b/c", 3), ("b/d/e", 5)]
    storage.mirror(tmp_path / "back", "b")
    back = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "back").as_posix(): path.read_text() for path in back} == {"c": "b/c", "d/e": "b/d/e"}
    storage.sync("b")


@pytest.mark.parametrize("copy", [lambda storage, folder: storage.fill(folder), lambda storage, folder: storage.mirror(folder)])
def test_a_folder_of_which_a_file_cannot_be_copied_is_no_copy(tmp_path, copy):
    storage: Any = Storage(tmp_path / "storage", patience=0)
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder" / "a", tmp_path / "storage" / "a"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("x")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage._files.upload = storage._files.download = full
    with pytest.raises(StorageError, match="No space left"):
        copy(storage, tmp_path / "folder")
