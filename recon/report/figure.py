"""One row of grey images with their numbers under them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import datasets


class Panel(NamedTuple):
    """An image of the row; ``peak`` is its white, the first panel's unless given."""

    title: str
    image: Tensor  # (height, width), shown by magnitude
    caption: str = ""
    peak: float | None = None
    colours: str = "gray"


def panels(path: str | Path, row: Sequence[Panel], *, peak: float, title: str = "",
           overwrite: bool = False) -> None:
    """Write a PNG of the panels side by side, black at 0 and white at ``peak``.

    Raises FileExistsError where the file exists and ``overwrite`` is not given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = row[0].image.shape
    inches = 2.6
    figure = Figure(figsize=(inches * len(row), inches * height / width + 0.75), dpi=150)
    FigureCanvasAgg(figure)
    for i, panel in enumerate(row):
        axes = figure.add_subplot(1, len(row), i + 1)
        axes.imshow(panel.image.detach().abs().cpu().to(torch.float32).numpy(), cmap=panel.colours,
                    vmin=0, vmax=panel.peak or peak or 1.0, interpolation="nearest")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.caption, fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    with datasets.replacing(path, overwrite=overwrite) as (part,):
        figure.savefig(part, format="png")
