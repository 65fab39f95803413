"""Which pixels a metric counts."""

from collections.abc import Sequence

import torch
from torch import Tensor


def chosen_pixels(region: Tensor | None, shape: Sequence[int]) -> Tensor:
    """``region`` as a bool tensor of ``shape`` on the CPU; None chooses every pixel.

    Raises TypeError for anything but bool, ValueError for a shape that does not fit and for a
    region without a pixel.
    """
    if region is None:
        found = torch.ones(tuple(shape), dtype=torch.bool)
    elif not isinstance(region, Tensor) or region.dtype != torch.bool:
        got = region.dtype if isinstance(region, Tensor) else type(region).__name__
        raise TypeError(f"region wants a bool tensor, got {got}")
    else:
        try:
            found = region.detach().cpu().expand(tuple(shape))
        except RuntimeError:
            raise ValueError(f"region wants a shape that fits the images {tuple(shape)}, got "
                             f"{tuple(region.shape)}") from None
    if not bool(found.any()):
        raise ValueError("region chooses no pixel")
    return found
