"""The file of `--output`: regular ones whole, all else written to and never replaced."""

import os
import stat
import threading
from pathlib import Path

import pytest

from cft_ray.errors import UserError
from cft_ray.output import write_file


def test_a_pipe_gets_the_bytes_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"rows")
    reader.join(10)
    assert came == [b"rows"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link, real = tmp_path / "link.csv", tmp_path / "real" / "x.csv"
    link.symlink_to("real/x.csv")
    for content in (b"first", b"second"):  # also one that dangles
        write_file(link, content)
        assert link.is_symlink() and real.read_bytes() == content


def test_a_device_stays_a_device():
    write_file(Path("/dev/null"), b"rows")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_full_device_is_the_users_to_mend():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(UserError, match="No space left"):
        write_file(Path("/dev/full"), b"rows")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_an_open_file_is_written_to(tmp_path):
    with (tmp_path / "open").open("wb") as opened:
        write_file(Path(f"/dev/fd/{opened.fileno()}"), b"rows")
        assert (tmp_path / "open").read_bytes() == b"rows"
        assert (tmp_path / "open").stat().st_ino == os.fstat(opened.fileno()).st_ino


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "x.csv"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_file(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_gets_what_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "new" / "x.csv", b"rows")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "x.csv").stat().st_mode) == 0o666 & ~umask


def test_a_path_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "file" / "x.csv", b"rows")
    with pytest.raises(UserError):
        write_file(tmp_path, b"rows")
