"""Cartesian MRI with one coil or many, fully sampled or not."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, split
from torch.fft import fft, fft2, ifft, ifft2, ifftshift

from recon.operators.base import LinearOperator, Operator
from recon.operators.mri.fourier import centring
from recon.space import Space

# On a CPU, temporaries that fit a core's second-level cache are twice as fast as whole coil
# stacks, and from 32 MiB on the allocator maps, faults and unmaps every page at every call.
_BLOCK_BYTES = 2**20
_WHOLE_BATCH_BYTES = 4 * 2**20

_Part = Callable[[Tensor, Tensor | None, Tensor], Tensor]


class CartesianMRI(LinearOperator):
    """``y[c] = mask * F(maps[c] * x)``, F the centred orthonormal 2-D transform ``fft2c``.

    Images ``(*batch, 1, height, width)`` to k-space ``(*batch, coils, height, width)``, both
    complex; one coil and no weighting without ``maps``. Height is the readout, width the phase
    encoding. Entries that are not sampled are +0 (Pruessmann et al. 1999, SENSE).

    ``normal`` needs no shifts; with a mask of columns the readout transform cancels as well.
    ``solve`` has a closed form for a single coil without ``x0``; there ``shift=0`` gives the
    pseudo-inverse.

    Parameters
    ----------
    shape
        ``(height, width)`` or ``(1, height, width)`` of the image.
    mask
        Zeros and ones of any dtype: ``(width,)`` for sampled columns, ``(height, width)``, or one
        for each item, ``(*items, 1, 1, width)`` or ``(*items, 1, height, width)``. None samples
        everything.
    maps
        Complex coil sensitivities ``(coils, height, width)``, or one set for each item,
        ``(*items, coils, height, width)``; of the items some but not all may be zero.

    With masks or maps for each item, inputs end their batch in ``items``:
    ``(samples, *items, 1, height, width)`` works, another number of items is a ValueError.

    Examples
    --------
    >>> A = CartesianMRI((8, 6), mask=torch.tensor([1, 0, 1, 1, 0, 1]))
    >>> A(torch.ones(1, 8, 6, dtype=torch.complex64)).shape
    torch.Size([1, 8, 6])
    """

    mask: Tensor
    maps: Tensor | None

    def __init__(self, shape: Sequence[int], mask: Tensor | Sequence[int] | None = None,
                 maps: Tensor | None = None) -> None:
        size = tuple(int(n) for n in shape)
        if len(size) == 3 and size[0] == 1:
            size = size[1:]
        if len(size) != 2:
            raise ValueError(f"CartesianMRI: want a shape (height, width), got {tuple(shape)}")
        maps = None if maps is None else _checked_maps(maps, size)
        coils = 1 if maps is None else maps.shape[-3]
        super().__init__(Space((1, *size), torch.complex64), Space((coils, *size), torch.complex64))
        device = None if maps is None else maps.device
        mask = torch.ones(size[1], device=device) if mask is None else torch.as_tensor(mask)
        self.register_buffer("mask", _checked_mask(mask, size))
        self.register_buffer("maps", maps)
        try:
            held = [t.shape[:-3] for t in (self.mask, self.maps) if t is not None]
            items = torch.broadcast_shapes(*held)  # type: ignore[no-untyped-call]
        except RuntimeError:
            raise ValueError(
                f"CartesianMRI: mask is for items {tuple(self.mask.shape[:-3])}, maps for "
                f"{() if maps is None else tuple(maps.shape[:-3])}: give both for the same items"
            ) from None
        self.items = tuple(items)

    def forward(self, x: Tensor) -> Tensor:
        return self._each(self._forward, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._each(self._adjoint, y)

    def normal(self, x: Tensor) -> Tensor:
        return self._each(self._normal, x)

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        # from an x0, two steps at most: in rhs = A^H y + shift x0 rounding drowns what is not
        # measured of x0 where shift is small, and the closed form would divide it by shift
        if self.maps is not None or x0 is not None:
            return super().solve(rhs, shift, x0, max_iter, rtol)
        self.domain.check(rhs, f"{self.label()}.solve")
        self._check_items(rhs)
        gain = ifftshift(self.mask, (-2, -1)) + self.per_item(shift, rhs)
        # where nothing is measured and nothing is asked, gain = 0 and the answer is 0
        return self._filter(rhs, 1 / torch.where(gain == 0, torch.inf, gain), self.mask)

    def masked(self, mask: Tensor) -> Operator:
        shared = self.mask & mask[..., :1, :, :]
        if bool((mask == mask[..., :1, :, :]).all()) and bool(shared.flatten(-3).any(-1).all()):
            return CartesianMRI(self.domain.shape, shared, self.maps)  # keeps its shorter normal
        return super().masked(mask)

    def _forward(self, x: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        phase = centring(x)
        x = phase * x
        k = fft2(x if maps is None else maps * x, norm="ortho")
        return torch.where(mask, k.mul_(phase), 0)  # where, not times: no -0.0

    def _adjoint(self, y: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        phase = centring(y).conj()
        weight = mask * phase
        if maps is None:
            x: Tensor = ifft2(weight * y, norm="ortho")
            return x.mul_(phase)
        size = self._at_once(y, -3)
        blocks = zip(split(maps, size, -3), split(y, size, -3), strict=True)
        return _total(_coil_sum(S, ifft2(weight * k, norm="ortho")) for S, k in blocks) * phase

    def _normal(self, x: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        # A^H A holds F^H mask F, in which the shifts of the image cancel and those of k-space
        # move to the mask.
        kept = ifftshift(mask, (-2, -1)).to(x.dtype.to_real())
        if maps is None:
            return self._filter(x, kept, mask)
        if mask.shape[-2] > 1:
            coils = split(maps, self._at_once(x, -3), -3)
            return _total(_coil_sum(S, self._filter(S * x, kept, mask)) for S in coils)
        size = self._at_once(x, -2)  # the rows are independent of one another
        rows = zip(split(maps, size, -2), split(x, size, -2), strict=True)
        return torch.cat([_coil_sum(S, self._filter(S * part, kept, mask)) for S, part in rows], -2)

    def _filter(self, x: Tensor, gain: Tensor, mask: Tensor) -> Tensor:
        """``F^H gain F x``, the gain in the order of ``fft``."""
        # Both transforms unscaled, their scale in the small gain: one pass less over the coils
        # each. A mask of columns commutes with the readout's transform, which then cancels.
        columns = mask.shape[-2] == 1
        k: Tensor = fft(x) if columns else fft2(x)
        k.mul_(gain / (x.shape[-1] if columns else x.shape[-2:].numel()))
        filtered: Tensor = ifft(k, norm="forward") if columns else ifft2(k, norm="forward")
        return filtered

    def _each(self, part: _Part, x: Tensor) -> Tensor:
        """``part(x, maps, mask)``: all items at once, or one by one where memory asks for it."""
        batch = self._check_items(x)
        maps = None if self.maps is None else self.maps.to(x.dtype)
        mask = self.mask
        if x.device.type != "cpu" or batch.numel() * self._item_bytes(x) <= _WHOLE_BATCH_BYTES:
            return part(x, maps, mask)
        mask = mask.expand(batch + mask.shape[-3:])
        maps = None if maps is None else maps.expand(batch + maps.shape[-3:])
        items = [part(x[i], None if maps is None else maps[i], mask[i])
                 for i in itertools.product(*(range(n) for n in batch))]
        return torch.stack(items).view(batch + items[0].shape) if batch else items[0]

    def _at_once(self, x: Tensor, dim: int) -> int:
        """How many coils (dim -3) or rows (dim -2) of the k-space of ``x`` make one block."""
        n, total = self.range.shape[dim], x.shape[:-3].numel() * self._item_bytes(x)
        if x.device.type != "cpu" or total == 0:
            return n
        return min(n, max(1, n * _BLOCK_BYTES * torch.get_num_threads() // total))

    def _item_bytes(self, x: Tensor) -> int:
        return math.prod(self.range.shape) * x.element_size()

    def _check_items(self, x: Tensor) -> torch.Size:
        batch, items = x.shape[:-3], self.items
        ends = batch[len(batch) - len(items):] if len(batch) >= len(items) else None
        if ends is None or any(n not in (1, b) for n, b in zip(items, ends, strict=True)):
            raise ValueError(
                f"{self.label()}: holds masks or maps for items {items}, got a batch of "
                f"{tuple(batch)}: its last dimensions must be {items}"
            )
        return batch


def _coil_sum(maps: Tensor, images: Tensor) -> Tensor:
    return images.mul_(maps.conj()).sum(-3, keepdim=True)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _checked_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """``mask`` as bool, ``(*items, 1, 1 or height, width)``."""
    height, width = size
    if mask.ndim == 0 or mask.shape[-1] != width:
        count = 0 if mask.ndim == 0 else mask.shape[-1]
        raise ValueError(
            f"CartesianMRI: mask has {count} columns but the k-space has {width}: pass the mask "
            "of this file, or crop the k-space to the mask"
        )
    mask = mask.reshape((1,) * (3 - mask.ndim) + mask.shape)
    if mask.shape[-2] not in (1, height):
        raise ValueError(
            f"CartesianMRI: mask has {mask.shape[-2]} rows but the k-space has {height}: pass "
            "(width,), (height, width) or, one for each item, (items, 1, 1, width)"
        )
    if mask.shape[-3] != 1:
        raise ValueError(
            f"CartesianMRI: mask {tuple(mask.shape)} has {mask.shape[-3]} where the coils are: "
            "all coils share one mask; for one mask an item pass (items, 1, 1, width)"
        )
    binary = (mask == 0) | (mask == 1)
    if not bool(binary.all()):
        raise ValueError(
            f"CartesianMRI: mask holds {mask[~binary][0].item()}, want zeros and ones only: "
            "threshold it, or apply weights with operators.Scale"
        )
    sampled = (mask != 0).flatten(-3).any(-1)
    if not bool(sampled.all()):
        where = f" of item {_first(~sampled)}" if sampled.ndim else ""
        raise ValueError(f"CartesianMRI: mask{where} is all zero: nothing is measured")
    mask = _squeezed(mask != 0)
    # written out as (height, width), a mask of columns still deserves the cheaper path
    columns = mask[..., :1, :]
    return columns.clone() if bool((mask == columns).all()) else mask


def _checked_maps(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """``maps`` as ``(*items, coils, height, width)``."""
    if not maps.is_complex():
        raise TypeError(
            f"CartesianMRI: want complex maps, got {maps.dtype}: pass maps.to(torch.complex64), "
            "or torch.view_as_complex(maps) if the last dimension is (real, imaginary)"
        )
    if maps.ndim < 3 or tuple(maps.shape[-2:]) != size or maps.shape[-3] < 1:
        raise ValueError(
            f"CartesianMRI: want maps (coils, {size[0]}, {size[1]}) to match the image, got "
            f"{tuple(maps.shape)}: estimate them from this k-space, or crop both alike"
        )
    finite = torch.isfinite(maps).flatten(-2).all(-1)  # (*items, coils)
    if not bool(finite.all()):
        raise ValueError(f"CartesianMRI: maps are not finite at coil {_first(~finite)}")
    if not bool(maps.any()):
        raise ValueError("CartesianMRI: maps are all zero: was the calibration data empty?")
    return _squeezed(maps.resolve_conj())


def _first(flags: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in flags.nonzero()[0])


def _squeezed(t: Tensor) -> Tensor:
    """Without leading item dimensions of size one: those are shared, not per item."""
    while t.ndim > 3 and t.shape[0] == 1:
        t = t[0]
    return t
