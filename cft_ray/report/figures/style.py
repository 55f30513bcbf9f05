"""How every figure looks: sizes, and series that are told apart without colour.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with the usual kinds of colour
blindness can tell apart, without the yellow, which is lost on white. A series also has a marker and a dash of its own,
so that a grey print will do; where area is coloured, the map is cividis, whose lightness rises evenly.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "d", "p", "8")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MAP = "cividis"
WIDTH = 7.2
"""inches, of a figure that fills a page"""
FORMATS = ("pdf", "svg", "png")

_SETTINGS: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 9,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#d0d0d0",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: letters stay letters
    "svg.fonttype": "none",
    "svg.hashsalt": "cft-ray",  # the same picture is the same file
}


@dataclass(frozen=True)
class Series:
    """What tells one series from the others."""

    colour: str
    marker: str
    dash: Any


def series(number: int) -> Series:
    """The look of series ``number``; all below 91 differ."""
    return Series(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures are made and saved in this style."""
    with mpl.rc_context(_SETTINGS):
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, whose parts are laid out without overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(canvas: Figure, rows: int, columns: int, **options: Any) -> list[list[Axes]]:
    """``rows`` × ``columns`` axes, also where there is one."""
    return [list(row) for row in canvas.subplots(rows, columns, squeeze=False, **options)]


def legend(canvas: Figure, handles: list[Any], columns: int = 4, title: str | None = None) -> None:
    """One legend below all panels, unless there is nothing to tell apart."""
    if handles:
        canvas.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), title=title)


def encoded(canvas: Figure) -> dict[str, bytes]:
    """Suffix -> bytes of the file; the same figure gives the same bytes."""
    dates: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    files = {}
    for form in FORMATS:
        sink = io.BytesIO()
        canvas.savefig(sink, format=form, metadata=dates[form])
        files[form] = sink.getvalue()
    return files
