"""Images through coil maps and back, for one set of maps or several, and the items they are of."""

import torch
from torch import Tensor

from recon.operators.algebra import total
from recon.operators.base import ends_in


def coil_images(x: Tensor, maps: Tensor | None, sets: int, ndim: int) -> Tensor:
    """``sum_s maps[s] x[s]``: ``(*batch, sets, *size)`` to ``(*batch, coils, *size)``."""
    if maps is None or sets == 1:
        return x if maps is None else maps * x
    axis = -ndim - 1
    return total(S * one.unsqueeze(axis) for S, one in
                 zip(maps.unbind(axis - 1), x.unbind(axis), strict=True))


def coil_sum(images: Tensor, maps: Tensor | None, sets: int, ndim: int) -> Tensor:
    """``sum_c conj(maps[s, c]) images[c]`` of each set; may write into ``images``."""
    return images if maps is None else map_sum(images, maps.conj(), sets, ndim)


def map_sum(images: Tensor, maps: Tensor, sets: int, ndim: int,
            before: Tensor | None = None) -> Tensor:
    """``sum_c maps[s, c] images[c]`` of each set, added to ``before``; may write into both."""
    axis = -ndim - 1
    if sets == 1 and images.shape[axis] == 1 and before is not None:
        return before.addcmul_(maps, images)
    if sets == 1:
        weighted = images.mul_(maps)
        weighted = weighted if weighted.shape[axis] == 1 else weighted.sum(axis, keepdim=True)
    else:
        weighted = torch.stack([(images * S).sum(axis) for S in maps.unbind(axis - 1)], axis)
    return weighted if before is None else before.add_(weighted)


def mixed_maps(matrix: Tensor, maps: Tensor, ndim: int) -> Tensor:
    """``matrix @ maps`` over the coils, for ``matrix`` ``(virtual coils, coils)``."""
    flat = matrix.to(maps.device, maps.dtype) @ maps.flatten(-ndim)
    return flat.view(*flat.shape[:-1], *maps.shape[-ndim:])


def items_of(maps: Tensor | None, sets: int, ndim: int) -> tuple[int, ...]:
    """The items that ``maps`` are of, each with its own; none where all share them."""
    return () if maps is None else tuple(maps.shape[: -ndim - (1 if sets == 1 else 2)])


def check_items(label: str, what: str, items: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Refuse a batch that does not end in the items of an operator."""
    if not ends_in(batch, items):
        raise ValueError(f"{label}: holds {what} for items {items}, got a batch of "
                         f"{tuple(batch)}: its last dimensions must be {items}")
