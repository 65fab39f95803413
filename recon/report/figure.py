"""Rows of grey images with their numbers under them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import datasets


class Panel(NamedTuple):
    """An image of a row; ``peak`` is its white."""

    title: str
    image: Tensor  # (height, width), shown by magnitude
    caption: str = ""
    peak: float | None = None
    colours: str = "gray"


def panels(path: str | Path, row: Sequence[Panel], *, peak: float, title: str = "",
           overwrite: bool = False) -> None:
    """Write a PNG of panels side by side, black at 0 and white at ``peak`` or their own.

    Raises FileExistsError where the file exists and ``overwrite`` is not given.
    """
    grid(path, [[p if p.peak else p._replace(peak=peak) for p in row]], title=title,
         overwrite=overwrite)


def grid(path: str | Path, rows: Sequence[Sequence[Panel]], *, title: str = "",
         overwrite: bool = False) -> None:
    """Write a PNG of rows of panels; images of a row have one size, of rows they may differ.

    Raises FileExistsError where the file exists and ``overwrite`` is not given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inches, columns = 2.6, max(map(len, rows))
    heights = [inches * row[0].image.shape[0] / row[0].image.shape[1] + 0.55 for row in rows]
    figure = Figure(figsize=(inches * columns, sum(heights) + 0.2), dpi=150)
    FigureCanvasAgg(figure)
    places = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            axes = figure.add_subplot(places[i, j])
            axes.imshow(panel.image.detach().abs().cpu().to(torch.float32).numpy(),
                        cmap=panel.colours, vmin=0, vmax=panel.peak or 1.0,
                        interpolation="nearest")
            axes.set_title(panel.title, fontsize=9)
            axes.set_xlabel(panel.caption, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    with datasets.replacing(path, overwrite=overwrite) as (part,):
        figure.savefig(part, format="png", metadata={"Software": None})
