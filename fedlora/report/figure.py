"""One look for every plot: colours for the colour-blind, quiet axes, no global state.

``matplotlib.pyplot`` keeps figures and settings for the whole process; ``Figure`` objects do not,
so plots can be drawn from any thread.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from fedlora.errors import FedloraError
from fedlora.storage import replace_file

INK = "#24292f"
MUTED = "#6b7480"
GRID = "#e3e7eb"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6d31",
    "#4d4d4d",
)
"""Okabe and Ito's palette, which stays distinct for the colour-blind, its yellow replaced."""

SEQUENTIAL = "Blues"
WIDTH_INCHES = 8.0
DPI = 150
MAX_NAME = 24
MAX_NAMED = 32
"""Most clients or labels that are named on an axis."""


def panels(columns: int = 1, *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, in the house style.

    Parameters
    ----------
    columns
        Number of panels.
    height
        Of the figure, in inches.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.06)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout=layout, facecolor="white")
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for ax in axes:
        _quiet(ax)
    return figure, axes


def literal(names: Iterable[str]) -> list[str]:
    """Return names that come from data so that they are drawn as they are, and not too long.

    A character that the font of plots lacks, such as one of Chinese, stands there by its number.
    """
    names = ("".join(map(_drawn, name)) for name in names)
    short = (name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for name in names)
    return [name.replace("$", r"\$") for name in short]  # an even number of $ would start maths


def _drawn(character: str) -> str:
    """Return a character, or its number where the font has none of it."""
    known = character.isprintable() and ord(character) in _characters()
    return character if known else f"U+{ord(character):04X}"


@functools.cache
def _characters() -> frozenset[int]:
    """Return the characters that the font of plots has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def label(ax: Axes, *, title: str, x: str, y: str) -> None:
    """Set title and axis labels."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold", pad=8)
    ax.set_xlabel(x, fontsize=9, color=MUTED)
    ax.set_ylabel(y, fontsize=9, color=MUTED)


def round_axis(ax: Axes, rounds: Sequence[int]) -> None:
    """Give the horizontal axis whole rounds, with room at both ends."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    if rounds:
        ax.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)


def log_scale(ax: Axes, *, x: bool = False, y: bool = False) -> None:
    """Make axes logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    for wanted, axis, set_scale in ((x, ax.xaxis, ax.set_xscale), (y, ax.yaxis, ax.set_yscale)):
        if not wanted:
            continue
        set_scale("log")
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())


def legend(ax: Axes, *, columns: int = 1) -> None:
    """Put a legend without a frame below the panel."""
    handles, names = ax.get_legend_handles_labels()
    if handles:
        ax.legend(
            handles,
            names,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=columns,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            handlelength=1.6,
            columnspacing=1.4,
        )


FORMATS = ("png", "pdf", "svg")
"""What figures are written as."""
_UNDATED = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats of ``--figures``.

    Raises
    ------
    FedloraError
        When one is none of ``FORMATS``.
    """
    found = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in found:
        if name not in FORMATS:
            raise FedloraError(
                f"--figures names {name[:40]!r}, and figures are written as {', '.join(FORMATS)}; "
                "name some of these, separated by commas"
            )
    return found


def save(figure: Figure, path: Path, formats: Sequence[str] = ()) -> Path:
    """Write a figure, each of its files whole or not at all.

    Parameters
    ----------
    figure
        What to write.
    path
        A PNG file.
    formats
        Further formats of ``FORMATS``, which get files of that ending beside it.

    Raises
    ------
    FedloraError
        When a file cannot be written.
    """
    for name in dict.fromkeys(("png", *formats)):
        buffer = io.BytesIO()
        # The same figure is the same bytes: no date, and names that follow from a constant.
        if name == "png":  # savefig would draw it twice
            FigureCanvasAgg(figure).print_png(buffer, metadata=_UNDATED[name])
        else:
            with rc_context({"svg.hashsalt": "fedlora", "pdf.fonttype": 42}):
                figure.savefig(buffer, format=name, facecolor="white", metadata=_UNDATED[name])
        replace_file(path.with_suffix(f".{name}"), buffer.getvalue())
    return path


def _quiet(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(colors=MUTED, labelsize=8, length=3, width=0.8)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
