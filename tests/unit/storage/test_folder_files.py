"""Files of a folder: whole or absent, with and without links and locks."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.storage import local
from cft_ray.storage.entry import Entry, Version
from cft_ray.storage.local import Folder, remove_local, write_local


def test_a_file_keeps_its_mode_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "file"
    write_local(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    path.chmod(0o640)
    write_local(path, b"22")
    assert path.read_bytes() == b"22" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for write in (
        lambda: write_local(path, b"x"),
        lambda: Folder("x").create(str(tmp_path / "new"), b"x"),
        lambda: Folder("x").upload(path, str(tmp_path / "up")),
    ):
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write()
        monkeypatch.undo()
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"before")]


def test_a_long_name_is_no_obstacle_to_its_temporary_sibling(tmp_path):
    name = "x" * 250
    write_local(tmp_path / name, b"1")
    assert Folder("x").create(str(tmp_path / ("y" * 250)), b"1") is not None
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [250, 250]


def test_where_links_are_refused_for_another_reason_it_is_said(tmp_path, monkeypatch):
    def link(*_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="Permission denied"):
        Folder("x").create(str(tmp_path / "a"), b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV])
def test_without_links_the_first_of_two_stays_as_well(tmp_path, monkeypatch, number):
    def link(*_: Any) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", link)
    folder, path = Folder("x"), str(tmp_path / "a")
    first = folder.create(path, b"1")
    assert first is not None and folder.create(path, b"2") is None and folder.read(path) == (b"1", first)
    assert {each.name for each in tmp_path.iterdir()} == {"a", ".lock"}


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(local.fcntl, "flock", flock)
    with pytest.raises(UserError, match="no file locks") as raised:
        Folder("x").replace(str(tmp_path / "a"), b"1", Version("x"))
    assert raised.value.where == str(tmp_path)


def test_sizes_kinds_and_what_is_no_file(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    folder = Folder("x")
    os.mkfifo(tmp_path / "pipe")
    found = [folder.entry(str(tmp_path / name)) for name in ("file", "", "no", "file/x", "pipe")]
    assert found[1:] == [None] * 4 and found[0] is not None and (found[0].name, found[0].size) == ("file", 3)
    assert [folder.kind(str(tmp_path / name)) for name in ("file", "", "no", "file/x")] == ["file", "folder", None, None]
    assert folder.read(str(tmp_path / "file"), 3) is not None and folder.read(str(tmp_path / "no"), 3) is None
    with pytest.raises(ValueError, match="has 3 bytes, more than 2"):
        folder.read(str(tmp_path / "file"), 2)
    assert folder.read(str(tmp_path / "file" / "x")) is None and folder.list(str(tmp_path / "file"), recursive=False) == []
    assert Entry("a", 0).is_file and not Entry("a", None).is_file


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    folder = Folder("x")
    folder.delete(str(tmp_path / "link"))
    assert (tmp_path / "there" / "file").exists() and not (tmp_path / "link").is_symlink()
    folder.delete(str(tmp_path / "there" / "file"))
    folder.delete(str(tmp_path / "there" / "file" / "below"))
    assert (tmp_path / "there").is_dir() and not list((tmp_path / "there").iterdir())
    folder.delete(str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    remove_local(tmp_path / "there")


def test_a_listing_has_times_and_sizes(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "f").write_bytes(b"12")
    os.utime(tmp_path / "d" / "e" / "f", (1_000_000, 1_000_000))
    (found,) = Folder("x").list(str(tmp_path / "d"), recursive=True)
    assert (found.name, found.size) == ("e/f", 2) and found.changed is not None and found.changed.timestamp() == 1_000_000
    (found,) = Folder("x").list(str(tmp_path / "d"), recursive=False)
    assert (found.name, found.size, found.is_file) == ("e", None, False) and found.changed is not None


def test_what_is_not_there_cannot_be_replaced(tmp_path):
    assert Folder("x").replace(str(tmp_path / "deep" / "a"), b"1", Version("x")) is None
    assert not (tmp_path / "deep" / "a").exists()


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EPERM, "held")])
def test_what_another_removes_meanwhile_is_removed_and_what_cannot_be_is_said(tmp_path, monkeypatch, error):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    unlink = os.unlink

    def removed(path: Any, **more: Any) -> None:
        unlink(path, **more)
        raise error

    monkeypatch.setattr(os, "unlink", removed)
    if isinstance(error, FileNotFoundError):
        remove_local(tmp_path / "folder")
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(PermissionError, match="held"):
            remove_local(tmp_path / "folder")


@pytest.mark.parametrize("how", ["write", "create", "replace", "upload"])
def test_what_counts_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch, how):
    """A power cut leaves the old file or the new one, never a name without its content."""
    folder, target, done = Folder("x"), tmp_path / "deep" / "file", []
    target.parent.mkdir()
    (tmp_path / "source").write_bytes(b"new")
    version = folder.write(str(target), b"old") if how == "replace" else Version("none")
    flush = os.fsync

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_relative_to(tmp_path):  # a thread that another test has left may write elsewhere meanwhile
            done.append(("folder" if path.is_dir() else "content", target.exists() and target.read_bytes() == b"new"))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    made = {
        "write": lambda: folder.write(str(target), b"new"),
        "create": lambda: folder.create(str(target), b"new"),
        "replace": lambda: folder.replace(str(target), b"new", version),
        "upload": lambda: folder.upload(tmp_path / "source", str(target)),
    }[how]()
    assert how == "upload" or made is not None
    assert done == [("content", False), ("folder", True)]
