"""What a command gives: its standard output, and the file of `--output`.

Standard output may be a terminal that cannot show `→`, a pipe that was closed, or a full disk; a path may be a device, a
pipe or a link. None of them may cost the work that came before, or be replaced by a regular file.
"""

import codecs
import contextlib
import io
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
NARROWEST = 30
"""columns below which tables are not made narrower: the terminal wraps their lines"""
_ASCII = dict(zip(map(ord, "→–—×·…≈≤≥✗✓"), ">--x..~<>x+", strict=True))


class _Output(io.TextIOWrapper):
    """Standard output whose refusal is the user's to mend; a closed pipe stays a BrokenPipeError, which ends quietly."""

    def write(self, text: str, /) -> int:
        with _refused():
            return super().write(text)

    def flush(self) -> None:
        with _refused():
            super().flush()


@contextlib.contextmanager
def _refused() -> Any:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up()
        fix = "free space where it goes, or write to a file elsewhere"
        raise UserError(f"cannot be written to: {error.strerror or error}", where="standard output", fix=fix) from None


def prepare() -> None:
    """Make standard output and error take every character, and turn what standard output refuses into a UserError."""
    codecs.register_error("cft-ray", _nearest)
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding, buffering = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(sys.stdout.detach(), encoding=encoding, errors="cft-ray", line_buffering=buffering)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="cft-ray")


def give_up() -> None:
    """Point standard output nowhere, so that the interpreter does not fail at its end over what is left in the buffer."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def write_bytes(data: bytes) -> None:
    """To standard output, as they are.

    Raises:
        UserError: it cannot be written to.
    """
    sys.stdout.flush()
    with _refused():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def write_file(path: Path, data: bytes) -> None:
    """Write the file of ``--output``: a regular one whole or not at all, anything else as it comes.

    Args:
        path: ``-``: standard output; a link: what it points to; a device or a pipe: is written to. A file that is there
            keeps its mode. The folder is made.
        data: the whole content.

    Raises:
        UserError: it cannot be written.
    """
    if str(path) in STANDARD_OUTPUT:
        write_bytes(data)
        return
    try:
        if _special(path):
            with path.open("wb") as sink:
                sink.write(data)
        else:
            from cft_ray.storage.local import write_local

            write_local(path.resolve(), data)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=str(path), fix="give another path") from error


def fitted(table: "Table", console: "Console") -> "RenderableType":
    """A table, or its rows one below the other where the console is too narrow for the words in it; nothing is cut off.

    A row is its first cell, and a line ``column: cell`` for each of the others that is not empty.
    """
    from rich.console import Group
    from rich.measure import Measurement
    from rich.text import Text

    endless = console.options.update(max_width=10_000)
    least, most = [], []
    for column in table.columns:
        sizes = [Measurement.get(console, endless, cell) for cell in (column.header, *column.cells)]
        most.append(max(size.maximum for size in sizes))
        least.append(most[-1] if column.no_wrap else max(size.minimum for size in sizes))
    columns = len(table.columns)
    borders = columns + 1 if table.box else 0
    room = console.width - borders - (columns if table.pad_edge else columns - 1) * sum(table.padding[1::2])
    if sum(most) <= room:
        return table
    if sum(least) <= room:
        # rich itself would take from narrow columns, too, and break their words.
        share = (room - sum(least)) / (sum(most) - sum(least))
        for column, narrow, wide in zip(table.columns, least, most, strict=True):
            column.width = narrow + int(share * (wide - narrow))
        return table

    def text(cell: Any) -> Text:
        return Text.from_markup(cell) if isinstance(cell, str) else cell

    lines: list[Text] = [text(table.title).copy()] if table.title else []
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        lines.append(Text("- ") + text(first))
        lines += [
            Text(f"  {column.header}: ") + text(cell)
            for column, cell in zip(table.columns[1:], others, strict=True)
            if text(cell).plain.strip()
        ]
    return Group(*lines, Text())


def _special(path: Path) -> bool:
    """Whether a path is no regular file, or names an open one (``/dev/fd/3``)."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _nearest(error: UnicodeError) -> tuple[str, int]:
    """A character of the same width for each that the encoding lacks, so that columns stay in line."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_ASCII)
    return "".join(character if character.isascii() else "?" for character in text), error.end
