"""Cartesian MRI with one coil or many, fully sampled or not, in two and three dimensions."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, split
from torch.fft import fft, fftn, ifftn, ifftshift

from recon.operators.algebra import total
from recon.operators.base import LinearOperator, Operator
from recon.operators.mri.arguments import checked_maps, checked_mask, checked_shape
from recon.operators.mri.fourier import centring
from recon.operators.mri.sensitivity import (
    check_items,
    coil_images,
    coil_sum,
    items_of,
    map_sum,
    mixed_maps,
)
from recon.space import Space

# On a CPU, temporaries that fit a core's second-level cache are twice as fast as whole coil
# stacks, and from 32 MiB on the allocator maps, faults and unmaps every page at every call; below
# half a MiB each call of a transform, which plans anew, costs more than the cache saves.
_BLOCK_BYTES = 2**19
_WHOLE_BATCH_BYTES = 4 * 2**20

_Part = Callable[[Tensor, Tensor | None, Tensor], Tensor]


class CartesianMRI(LinearOperator):
    """``y[c] = mask * F(sum_s maps[s, c] * x[s])``, F the centred orthonormal transform.

    Images ``(*batch, sets, *shape)`` to k-space ``(*batch, coils, *shape)``, both complex; one
    coil and no weighting without ``maps``, and one set of maps unless ``sets`` says otherwise. The
    first axis of an image is the readout, the others are phase encoded: height and width of a
    slice, depth, height and width of a volume. Entries that are not sampled are +0 (Pruessmann et
    al. 1999, SENSE; with several sets Uecker et al. 2014, ESPIRiT).

    ``normal`` needs no shifts, and transforms only along the axes along which the mask varies: in
    a slice with a mask of columns, or a volume with a mask of its phase encodings, that of the
    readout cancels. ``solve`` has a closed form for a single coil without ``x0``; there ``shift=0``
    gives the pseudo-inverse.

    Parameters
    ----------
    shape
        ``(height, width)`` or ``(depth, height, width)`` of the image; a channel of 1 may lead it,
        as in ``(1, height, width)``, which is a slice.
    mask
        Zeros and ones of any dtype: ``(width,)`` for sampled columns, ``(height, width)``, also
        ``(depth, height, width)`` for a volume, or one for each item, such as the frames of a
        series: ``(*items, 1, 1, width)`` or ``(*items, 1, height, width)``, in a volume
        ``(*items, 1, 1, height, width)``. None samples everything.
    maps
        Complex coil sensitivities ``(coils, *shape)``, or one for each item,
        ``(*items, coils, *shape)``; of the items some but not all may be zero. Of several sets
        ``(*items, sets, coils, *shape)``.
    sets
        How many images, each seen through maps of its own, add up to the measurements.

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
    items: tuple[int, ...]

    def __init__(self, shape: Sequence[int], mask: Tensor | Sequence[int] | None = None,
                 maps: Tensor | None = None, sets: int = 1) -> None:
        size = checked_shape("CartesianMRI", shape)
        ndim = len(size)
        if maps is None and sets != 1:
            raise ValueError(f"CartesianMRI: {sets} sets want maps of each, got none")
        maps = None if maps is None else checked_maps("CartesianMRI", maps, size, sets)
        coils = 1 if maps is None else maps.shape[-ndim - 1]
        super().__init__(Space((sets, *size), torch.complex64),
                         Space((coils, *size), torch.complex64))
        device = None if maps is None else maps.device
        mask = torch.ones(size[-1], device=device) if mask is None else torch.as_tensor(mask)
        self.register_buffer("mask", checked_mask("CartesianMRI", mask, size))
        self.register_buffer("maps", maps)
        self.ndim, self.sets = ndim, sets
        held = items_of(maps, sets, ndim)
        try:
            items = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
                self.mask.shape[: -ndim - 1], held)
        except RuntimeError:
            raise ValueError(
                f"CartesianMRI: mask is for items {tuple(self.mask.shape[: -ndim - 1])}, maps for "
                f"{held}: give both for the same items"
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
        gain = ifftshift(self.mask, self._axes) + self.per_item(shift, rhs)
        # where nothing is measured and nothing is asked, gain = 0 and the answer is 0
        return self._filter(rhs, 1 / torch.where(gain == 0, torch.inf, gain), self.mask)

    def masked(self, mask: Tensor) -> Operator:
        mask = mask.reshape((1,) * (self.ndim + 1 - mask.ndim) + mask.shape)
        one = mask.narrow(-self.ndim - 1, 0, 1)
        shared = self.mask & one
        some = shared.flatten(-self.ndim - 1).any(-1)
        if bool((mask == one).all()) and bool(some.all()):
            # keeps its shorter normal
            return CartesianMRI((1, *self.range.shape[1:]), shared, self.maps, self.sets)
        return super().masked(mask)

    def mixed(self, matrix: Tensor) -> "CartesianMRI":
        """The model of ``matrix @ y`` over the coils, ``(virtual coils, coils)``: maps mixed alike.
        """
        maps = (torch.ones(self.range.shape, dtype=matrix.dtype, device=matrix.device)
                if self.maps is None else self.maps)
        return CartesianMRI((1, *self.range.shape[1:]), self.mask,
                            mixed_maps(matrix, maps, self.ndim), self.sets)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.ndim, 0))

    def _forward(self, x: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        phase = centring(x, self.ndim)
        k = fftn(coil_images(phase * x, maps, self.sets, self.ndim), dim=self._axes, norm="ortho")
        return torch.where(mask, k.mul_(phase), 0)  # where, not times: no -0.0

    def _adjoint(self, y: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        phase = centring(y, self.ndim).conj()
        weight = mask * phase
        if maps is None:
            x: Tensor = ifftn(weight * y, dim=self._axes, norm="ortho")
            return x.mul_(phase)
        coil = -self.ndim - 1
        size = self._at_once(y, coil)
        blocks = zip(split(maps, size, coil), split(y, size, coil), strict=True)
        return total(coil_sum(ifftn(weight * k, dim=self._axes, norm="ortho"), S, self.sets,
                              self.ndim) for S, k in blocks) * phase

    def _normal(self, x: Tensor, maps: Tensor | None, mask: Tensor) -> Tensor:
        # A^H A holds F^H mask F, in which the shifts of the image cancel and those of k-space
        # move to the mask.
        kept = ifftshift(mask, self._axes).to(x.dtype.to_real())
        if maps is None:
            return self._filter(x, kept, mask)
        filtered = self._conjugate_filter(kept, mask)
        coil, along = -self.ndim - 1, -self.ndim
        coils = self._at_once(x, coil)
        # parts of the readout are independent of one another where the mask is constant along it
        rows = x.shape[along] if mask.shape[along] > 1 or coils > 1 else self._at_once(x, along)
        parts = []
        for S, part in zip(split(maps, rows, along), split(x, rows, along), strict=True):
            found: Tensor | None = None
            for some in split(S, coils, coil):
                # of conjugates, which the sum over coils takes without a copy of conj(S)
                images = filtered(coil_images(part, some, self.sets, self.ndim))
                found = map_sum(images, some, self.sets, self.ndim, found)
            assert found is not None  # there is at least one coil
            parts.append(found.conj_physical_())
        return parts[0] if len(parts) == 1 else torch.cat(parts, along)

    def _filter(self, x: Tensor, gain: Tensor, mask: Tensor) -> Tensor:
        """``F^H gain F x``, the real gain in the order of ``fft``."""
        return self._conjugate_filter(gain, mask)(x).conj_physical_()

    def _conjugate_filter(self, gain: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
        """``x -> conj(F^H gain F x) = F (gain conj(F x))``."""
        # Both transforms unscaled, their scale in the small gain, which conjugates on the way: one
        # pass less over the coils each. Along axes of one value of the mask the transforms cancel.
        dims = tuple(d for d in self._axes if d == -1 or mask.shape[d] > 1)
        gain = gain / math.prod(self.range.shape[d] for d in dims)
        turned = torch.stack([gain, -gain], -1)

        def filtered(x: Tensor) -> Tensor:
            k: Tensor = fft(x) if len(dims) == 1 else fftn(x, dim=dims)
            torch.view_as_real(k).mul_(turned)
            images: Tensor = fft(k) if len(dims) == 1 else fftn(k, dim=dims)
            return images

        return filtered

    def _each(self, part: _Part, x: Tensor) -> Tensor:
        """``part(x, maps, mask)``: all items at once, or one by one where memory asks for it."""
        batch = self._check_items(x)
        maps = None if self.maps is None else self.maps.to(x.dtype)
        mask = self.mask
        if x.device.type != "cpu" or batch.numel() * self._item_bytes(x) <= _WHOLE_BATCH_BYTES:
            return part(x, maps, mask)
        mask = mask.expand(batch + mask.shape[-self.ndim - 1:])
        if maps is not None:
            maps = maps.expand(batch + maps.shape[-self.ndim - (1 if self.sets == 1 else 2):])
        items = [part(x[i], None if maps is None else maps[i], mask[i])
                 for i in itertools.product(*(range(n) for n in batch))]
        return torch.stack(items).view(batch + items[0].shape) if batch else items[0]

    def _at_once(self, x: Tensor, dim: int) -> int:
        """How many coils, or lines of the readout of one coil, of the k-space of ``x`` are a block.
        """
        n = self.range.shape[dim]
        total = x.shape[: -self.ndim - 1].numel() * self._item_bytes(x)
        if x.device.type != "cpu" or total == 0:
            return n
        per_coil = total if dim < -self.ndim else total // self.range.shape[0]
        return min(n, max(1, n * _BLOCK_BYTES * torch.get_num_threads() // per_coil))

    def _item_bytes(self, x: Tensor) -> int:
        return math.prod(self.range.shape) * x.element_size()

    def _check_items(self, x: Tensor) -> torch.Size:
        batch = x.shape[: -self.ndim - 1]
        check_items(self.label(), "masks or maps", self.items, batch)
        return batch
