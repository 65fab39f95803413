"""MRI along any trajectory: radial, spiral and others, with one coil or many."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, split

from recon.operators.base import LinearOperator
from recon.operators.mri.arguments import checked_maps, checked_shape, checked_trajectory
from recon.operators.mri.finufft import Finufft
from recon.operators.mri.gridding import Gridding
from recon.operators.mri.off_resonance import OffResonance, Transform
from recon.operators.mri.sensitivity import (
    check_items,
    coil_images,
    coil_sum,
    items_of,
    mixed_maps,
    total,
)
from recon.operators.mri.toeplitz import Toeplitz
from recon.space import Space

# Coil images at once: as many as share one sparse product.
_AT_ONCE = 8
# Relative errors of gridding with 7 weights an axis, by the oversampling of its grid.
_FAST, _ACCURATE = (2.5e-4, 1.25), (2.5e-6, 2.0)

_Part = Callable[[Tensor, Tensor | None], Tensor]


class NonCartesianMRI(LinearOperator):
    """``y[c, j] = N^-1/2 sum_n maps[c, n] x[n] exp(-2 pi i k_j . (n - size // 2) / size)``.

    Images ``(*batch, sets, *shape)`` to samples ``(*batch, coils, *trajectory.shape[:-1])``, both
    complex; N is the number of pixels, so that a trajectory of whole numbers gives the values of
    ``CartesianMRI``. The sum is approximated to ``tolerance``, on white noise; the adjoint is that
    of the approximation, exactly.

    ``normal`` is ``adjoint(forward(x))`` for short trajectories; for long ones it is that of the
    exact sum, by two FFTs on a grid twice as large, whatever the number of samples, and differs
    from the former by the tolerance.

    Parameters
    ----------
    shape
        ``(height, width)`` or ``(depth, height, width)`` of the image; a channel of 1 may lead it.
    trajectory
        ``(*samples, axes)``, for instance ``(spokes, readout, 2)``: frequencies along the axes of
        the image in their order, in cycles per field of view: from ``-n / 2`` to ``n / 2`` along an
        axis of n pixels, neighbouring Cartesian samples 1 apart (radians per pixel times
        ``n / (2 pi)``). See ``mri.trajectories``.
    maps
        Complex coil sensitivities as of ``CartesianMRI``: ``(coils, *shape)``, one for each item
        ``(*items, coils, *shape)``, or of several sets ``(*items, sets, coils, *shape)``.
    sets
        How many images, each seen through maps of its own, add up to the measurements.
    tolerance
        Relative error of the transform; gridding has 2.5e-4 (a grid 1.25 times the image) and
        2.5e-6 (twice), and takes the coarser of these that is within it.
    backend
        "gridding", on any device, or "finufft": an extra, on the CPU, for trajectories whose
        weights (8 bytes for each of 49 or, along three axes, 343 a sample, twice) exceed memory.
    toeplitz
        Whether ``normal`` takes the two FFTs; None decides by the number of samples. Not with
        off-resonance.
    off_resonance
        Frequencies of the spins in Hz, ``shape``: a factor ``exp(-2 pi i off_resonance t)``.
        Split into a few transforms so that no pixel is off by more than ``tolerance`` at any time;
        ``off_resonance_error`` is the largest difference.
    times
        Of the samples in seconds since the spins were in phase, broadcast to
        ``trajectory.shape[:-1]``; wanted with ``off_resonance``.

    Examples
    --------
    >>> k = torch.rand(4, 16, 2) * 16 - 8
    >>> NonCartesianMRI((16, 16), k)(torch.ones(1, 16, 16, dtype=torch.complex64)).shape
    torch.Size([1, 4, 16])
    """

    maps: Tensor | None

    def __init__(self, shape: Sequence[int], trajectory: Tensor, maps: Tensor | None = None,
                 sets: int = 1, *, tolerance: float = 2.5e-4,
                 backend: Literal["gridding", "finufft"] = "gridding",
                 toeplitz: bool | None = None, off_resonance: Tensor | None = None,
                 times: Tensor | None = None) -> None:
        size = checked_shape("NonCartesianMRI", shape)
        k = checked_trajectory("NonCartesianMRI", trajectory, size)
        if maps is None and sets != 1:
            raise ValueError(f"NonCartesianMRI: {sets} sets want maps of each, got none")
        maps = None if maps is None else checked_maps("NonCartesianMRI", maps, size, sets)
        if not (math.isfinite(tolerance) and 0 < tolerance < 0.1):
            raise ValueError("NonCartesianMRI: want a tolerance between 0 and 0.1, got "
                             f"{tolerance}")
        if backend not in ("gridding", "finufft"):
            raise ValueError(f"NonCartesianMRI: want backend gridding or finufft, got {backend!r}")
        if backend == "gridding" and tolerance < _ACCURATE[0]:
            raise ValueError(f"NonCartesianMRI: gridding reaches a tolerance of {_ACCURATE[0]:g}, "
                             f'got {tolerance:g}: take backend="finufft"')
        if (off_resonance is None) != (times is None):
            raise ValueError("NonCartesianMRI: off_resonance and times want each other, got one")
        if toeplitz and off_resonance is not None:
            raise ValueError("NonCartesianMRI: with off_resonance the normal operator is not "
                             "Toeplitz: leave toeplitz out")
        coils = 1 if maps is None else maps.shape[-len(size) - 1]
        super().__init__(Space((sets, *size), torch.complex64),
                         Space((coils, *k.shape[:-1]), torch.complex64))
        self.register_buffer("maps", maps)
        self.size, self.sets, self.items = size, sets, items_of(maps, sets, len(size))
        self.tolerance, self.backend = tolerance, backend
        self._toeplitz = toeplitz
        self._field = None if off_resonance is None else _field(off_resonance, size)
        self._times = None if times is None else _times(times, k.shape[:-1])
        self.trajectory = k
        self._prepare()
        if maps is not None:
            self.encoding.to(maps.device)

    @property
    def off_resonance_error(self) -> float:
        """The largest difference of the phase factors used from the exact ones; 0 without a field.
        """
        return self.encoding.error if isinstance(self.encoding, OffResonance) else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self._each(self._forward, x, self.domain)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._each(self._adjoint, y, self.range)

    def normal(self, x: Tensor) -> Tensor:
        return self._each(self._normal, x, self.domain)

    def mixed(self, matrix: Tensor) -> "NonCartesianMRI":
        """The model of ``matrix @ y`` over the coils, ``(virtual coils, coils)``: maps mixed alike.
        """
        maps = (torch.ones(1, *self.size, dtype=matrix.dtype, device=matrix.device)
                if self.maps is None else self.maps)
        return NonCartesianMRI(
            (1, *self.size), self.trajectory, mixed_maps(matrix, maps, len(self.size)), self.sets,
            tolerance=self.tolerance, backend=self.backend, toeplitz=self._toeplitz,
            off_resonance=self._field, times=self._times)

    def _prepare(self) -> None:
        flat = self.trajectory.reshape(-1, len(self.size))
        oversampling = (_FAST if self.tolerance >= _FAST[0] else _ACCURATE)[1]
        inner: Transform = (Gridding(self.size, flat, oversampling) if self.backend == "gridding"
                            else Finufft(self.size, flat, self.tolerance))
        self.encoding: Any = inner
        self.kernel: Toeplitz | None = None
        if self._field is not None and self._times is not None:
            self.encoding = OffResonance(inner, self._field, self._times.flatten(), self.tolerance)
        elif self._toeplitz or (self._toeplitz is None and _is_long(len(flat), self.size)):
            self.kernel = Toeplitz(self.size, flat)

    def _forward(self, x: Tensor, maps: Tensor | None) -> Tensor:
        images = coil_images(x, maps, self.sets, len(self.size))
        y: Tensor = self.encoding.transform(images.flatten(0, 1))
        return y.view(len(x), *self.range.shape)

    def _adjoint(self, y: Tensor, maps: Tensor | None) -> Tensor:
        images = self.encoding.adjoint(y.reshape(-1, math.prod(self.range.shape[1:])))
        return coil_sum(images.view(*y.shape[:2], *self.size), maps, self.sets, len(self.size))

    def _normal(self, x: Tensor, maps: Tensor | None) -> Tensor:
        axis = -len(self.size) - 1

        def through(S: Tensor | None) -> Tensor:
            images = coil_images(x, S, self.sets, len(self.size))
            flat = images.flatten(0, 1)
            flat = (self.encoding.adjoint(self.encoding.transform(flat)) if self.kernel is None
                    else self.kernel.normal(flat))
            return coil_sum(flat.view(images.shape), S, self.sets, len(self.size))

        if maps is None or x.device.type != "cpu":
            return through(maps)
        # by twos, a grid twice the image stays in a core's cache
        return total(through(S) for S in split(maps, _AT_ONCE if self.kernel is None else 2, axis))

    def _each(self, part: _Part, x: Tensor, space: Space) -> Tensor:
        """``part(x, maps)`` for one leading dimension: as many items as make one product."""
        batch = space.batch_of(x)
        check_items(self.label(), "maps", self.items, batch)
        maps = None if self.maps is None else self.maps.to(x.dtype)
        if self.items:
            assert maps is not None
            maps = maps.expand(*batch, *maps.shape[len(self.items):])
            parts = [part(x[i][None], maps[i]) for i in
                     itertools.product(*(range(n) for n in batch))]
        else:
            flat = x.reshape(-1, *space.shape)
            width = max(1, _AT_ONCE // self.range.shape[0]) if x.device.type == "cpu" else len(flat)
            parts = [part(some, maps) for some in split(flat, max(width, 1))]
        joined = torch.cat(parts)
        return joined.view(*batch, *joined.shape[1:])

    def get_extra_state(self) -> dict[str, Tensor]:
        # the weights follow from these, which is all that need be saved
        state = {"trajectory": self.trajectory, "off_resonance": self._field, "times": self._times}
        return {name: t.clone() for name, t in state.items() if t is not None}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        mine = self.get_extra_state()
        shapes, mine_shapes = ({name: tuple(t.shape) for name, t in held.items()}
                               for held in (state, mine))
        if shapes != mine_shapes:
            raise ValueError(f"{self.label()}: want the state of an operator of {mine_shapes}, got "
                             f"one of {shapes}")
        if all(torch.equal(t, state[name].to(t)) for name, t in mine.items()):
            return
        device = None if self.maps is None else self.maps.device
        self.trajectory = state["trajectory"].to("cpu", torch.float64, copy=True)
        if "times" in state:
            self._field, self._times = (state[name].to("cpu", torch.float64, copy=True)
                                        for name in ("off_resonance", "times"))
        self._prepare()
        self.encoding.to(device)

    def extra_repr(self) -> str:
        return (f"shape={self.size}, samples={self.range.shape[1:]}, coils={self.range.shape[0]}, "
                f"sets={self.sets}, tolerance={self.tolerance:g}, backend={self.backend}")


def _is_long(samples: int, size: tuple[int, ...]) -> bool:
    """Whether two FFTs on a grid twice the image are faster than gridding there and back."""
    # in points of an FFT, of which gridding has two of 1.25 times the image; one weight, there and
    # back, costs a seventh of a point (fitted to timings of 8 coils at 256^2 and 48^3)
    pixels, axes = math.prod(size), len(size)
    return samples * 7**axes / 7 + 2 * 1.25**axes * pixels > 2 * 2**axes * pixels


def _field(off_resonance: Tensor, size: tuple[int, ...]) -> Tensor:
    field = torch.as_tensor(off_resonance).detach().to("cpu", torch.float64)
    field = field[0] if field.ndim == len(size) + 1 and len(field) == 1 else field
    if tuple(field.shape) != size:
        raise ValueError(f"NonCartesianMRI: want off_resonance {size} in Hz, got "
                         f"{tuple(off_resonance.shape)}")
    if not bool(torch.isfinite(field).all()):
        at = tuple(int(i) for i in (~torch.isfinite(field)).nonzero()[0])
        raise ValueError(f"NonCartesianMRI: want a finite off_resonance, got {float(field[at])} at "
                         f"pixel {at}")
    return field


def _times(times: Tensor, samples: tuple[int, ...]) -> Tensor:
    given = torch.as_tensor(times).detach().to("cpu", torch.float64)
    try:
        wide = given.expand(samples)
    except RuntimeError:
        raise ValueError(f"NonCartesianMRI: want times in seconds that broadcast to the samples "
                         f"{tuple(samples)}, got {tuple(given.shape)}") from None
    if not bool(torch.isfinite(wide).all()):
        at = tuple(int(i) for i in (~torch.isfinite(wide)).nonzero()[0])
        raise ValueError(f"NonCartesianMRI: want finite times, got {float(wide[at])} at sample "
                         f"{at}")
    return wide.contiguous()
