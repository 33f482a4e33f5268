"""What all pictures share: our style, small files that are written whole, colours. Loads no torch.

Needs no display; matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rlhf.store.artifact import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, vermilion, green, purple, orange, sky (Okabe and Ito 2008), which people tell apart who see few colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
QUIET = "#666666"
DOTS_PER_INCH, PALETTE = 140, 96
STYLE: Any = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#AAAAAA",
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "svg.hashsalt": "rlhf",  # equal figures, equal files
}


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Our style, whatever the user's own says, and no word about caches, fonts and missing glyphs."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # before the import, which warns of a home directory that cannot be written
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib

            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                matplotlib.rcParams.update(STYLE)
                yield
    finally:
        logger.setLevel(level)


def write_png(drawn: Figure, output: Path, title: str) -> None:
    """Write a figure as a PNG, whole or not at all."""
    file = io.BytesIO()
    save_png(drawn, file, {"Title": title})
    write_bytes(output, file.getvalue())


def save_png(drawn: Figure, file: IO[bytes], texts: Mapping[str, str]) -> None:
    """Write a figure in few colours: a third of the size, and nobody sees a difference."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image, PngImagePlugin

    drawn.set_dpi(DOTS_PER_INCH)
    canvas: Any = FigureCanvasAgg(drawn)  # its types are incomplete
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    information = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        information.add_itxt(key, text)
    few = image.quantize(PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "png", optimize=True, pnginfo=information, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))


def label(ax: Axes, title: str, unit: str) -> None:
    """What a panel shows on the left, its unit on the right."""
    ax.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
    ax.set_title(unit, loc="right", fontsize=7, color=QUIET, parse_math=False)
