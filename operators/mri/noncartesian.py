"""MRI along any trajectory: radial, spiral and others, with one coil or many."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn, split

from recon.operators.algebra import total
from recon.operators.base import LinearOperator
from recon.operators.mri.arguments import (
    checked_maps,
    checked_shape,
    checked_trajectory,
    item_trajectories,
    squeezed,
)
from recon.operators.mri.finufft import Finufft
from recon.operators.mri.gridding import Gridding
from recon.operators.mri.off_resonance import OffResonance, Transform
from recon.operators.mri.sensitivity import (
    check_items,
    coil_images,
    coil_sum,
    items_of,
    mixed_maps,
)
from recon.operators.mri.toeplitz import Toeplitz
from recon.space import Space

# Coil images at once: as many as share one sparse product.
_AT_ONCE = 8
# Relative errors of gridding with 7 weights an axis, by the oversampling of its grid.
_FAST, _ACCURATE = (2.5e-4, 1.25), (2.5e-6, 2.0)

_Part = Callable[[Tensor, Tensor | None, "_Encoding"], Tensor]


class NonCartesianMRI(LinearOperator):
    """``y[c, j] = N^-1/2 sum_n maps[c, n] x[n] exp(-2 pi i k_j . (n - size // 2) / size)``.

    Images ``(*batch, sets, *shape)`` to samples ``(*batch, coils, *trajectory.shape[:-1])``, both
    complex; N is the number of pixels, so that a trajectory of whole numbers gives the values of
    ``CartesianMRI``. The sum is approximated to ``tolerance``, on white noise; the adjoint is that
    of the approximation, exactly.

    With a trajectory for each item, such as the frames of a series, inputs end their batch in the
    items, as those of ``CartesianMRI`` with a mask for each: ``(samples, *items, sets, *shape)``.

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
        ``n / (2 pi)``). See ``mri.trajectories``. With ``item_axes``, one for each item:
        ``(*items, *samples, axes)``, all of equally many samples.
    item_axes
        How many leading axes of the trajectory are of items: 1 for frames ``(frames, spokes,
        readout, 2)``, 0 for one trajectory that all items share.
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
        Of all items. Split into a few transforms so that no pixel is off by more than ``tolerance``
        at any time; ``off_resonance_error`` is the largest difference.
    times
        Of the samples in seconds since the spins were in phase, broadcast to
        ``trajectory.shape[:-1]``, items included; wanted with ``off_resonance``.

    Examples
    --------
    >>> k = torch.rand(4, 16, 2) * 16 - 8
    >>> NonCartesianMRI((16, 16), k)(torch.ones(1, 16, 16, dtype=torch.complex64)).shape
    torch.Size([1, 4, 16])
    >>> A = NonCartesianMRI((16, 16), torch.rand(5, 3, 32, 2) * 16 - 8, item_axes=1)
    >>> A(torch.ones(5, 1, 16, 16, dtype=torch.complex64)).shape
    torch.Size([5, 1, 3, 32])
    """

    maps: Tensor | None
    items: tuple[int, ...]

    def __init__(self, shape: Sequence[int], trajectory: Tensor, maps: Tensor | None = None,
                 sets: int = 1, *, item_axes: int = 0, tolerance: float = 2.5e-4,
                 backend: Literal["gridding", "finufft"] = "gridding",
                 toeplitz: bool | None = None, off_resonance: Tensor | None = None,
                 times: Tensor | None = None) -> None:
        size = checked_shape("NonCartesianMRI", shape)
        k = checked_trajectory("NonCartesianMRI", trajectory, size)
        k, item_axes = item_trajectories("NonCartesianMRI", k, item_axes)
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
                         Space((coils, *k.shape[item_axes:-1]), torch.complex64))
        self.register_buffer("maps", maps)
        self.size, self.sets, self.item_axes = size, sets, item_axes
        held = items_of(maps, sets, len(size))
        try:
            items = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
                k.shape[:item_axes], held)
        except RuntimeError:
            raise ValueError(
                f"NonCartesianMRI: trajectory is for items {tuple(k.shape[:item_axes])}, maps for "
                f"{held}: give both for the same items"
            ) from None
        self.items = tuple(items)
        self.tolerance, self.backend = tolerance, backend
        self._toeplitz = toeplitz
        self._field = None if off_resonance is None else _field(off_resonance, size)
        self._times = None if times is None else _times(times, k.shape[:-1])
        self.trajectory = k
        self._prepare()
        if maps is not None:
            self.encodings.to(maps.device)

    @property
    def off_resonance_error(self) -> float:
        """The largest difference of the phase factors used from the exact ones; 0 without a field.
        """
        return max(float(encoding.error) for encoding in self.encodings)

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
            item_axes=self.item_axes, tolerance=self.tolerance, backend=self.backend,
            toeplitz=self._toeplitz, off_resonance=self._field, times=self._times)

    def _prepare(self) -> None:
        samples = math.prod(self.range.shape[1:])
        trajectories = self.trajectory.reshape(-1, samples, len(self.size))
        times = ([None] * len(trajectories) if self._times is None
                 else self._times.reshape(-1, samples))
        self.encodings: Any = nn.ModuleList(
            self._encoding(k, t) for k, t in zip(trajectories, times, strict=True))

    def _encoding(self, k: Tensor, times: Tensor | None) -> "_Encoding":
        oversampling = (_FAST if self.tolerance >= _FAST[0] else _ACCURATE)[1]
        inner: Transform = (Gridding(self.size, k, oversampling) if self.backend == "gridding"
                            else Finufft(self.size, k, self.tolerance))
        if self._field is not None and times is not None:
            return _Encoding(OffResonance(inner, self._field, times, self.tolerance))
        long = self._toeplitz or (self._toeplitz is None and _is_long(len(k), self.size))
        return _Encoding(inner, Toeplitz(self.size, k) if long else None)

    def _forward(self, x: Tensor, maps: Tensor | None, encoding: "_Encoding") -> Tensor:
        images = coil_images(x, maps, self.sets, len(self.size))
        y = encoding.transform(images.flatten(0, 1))
        return y.view(len(x), *self.range.shape)

    def _adjoint(self, y: Tensor, maps: Tensor | None, encoding: "_Encoding") -> Tensor:
        images = encoding.adjoint(y.reshape(-1, math.prod(self.range.shape[1:])))
        return coil_sum(images.view(*y.shape[:2], *self.size), maps, self.sets, len(self.size))

    def _normal(self, x: Tensor, maps: Tensor | None, encoding: "_Encoding") -> Tensor:
        axis = -len(self.size) - 1

        def through(S: Tensor | None) -> Tensor:
            images = coil_images(x, S, self.sets, len(self.size))
            filtered = encoding.normal(images.flatten(0, 1)).view(images.shape)
            return coil_sum(filtered, S, self.sets, len(self.size))

        if maps is None or x.device.type != "cpu":
            return through(maps)
        # by twos, a grid twice the image stays in a core's cache
        coils = _AT_ONCE if encoding.kernel is None else 2
        return total(through(S) for S in split(maps, coils, axis))

    def _each(self, part: _Part, x: Tensor, space: Space) -> Tensor:
        """``part(x, maps, encoding)``, item by item of ``items``; of what these share, as many as
        make one product.
        """
        batch = space.batch_of(x)
        check_items(self.label(), "trajectories or maps", self.items, batch)
        lead = batch[: len(batch) - len(self.items)]
        ends = batch[len(lead) :]
        x = x.reshape(math.prod(lead), *ends, *space.shape)
        maps = None if self.maps is None else self.maps.to(x.dtype)
        if maps is not None and self.items:
            own = len(items_of(maps, self.sets, len(self.size)))
            maps = maps.expand(*ends, *maps.shape[own:])
        which = torch.arange(len(self.encodings)).view(self.trajectory.shape[: self.item_axes])
        width = max(1, _AT_ONCE // self.range.shape[0]) if x.device.type == "cpu" else len(x)
        found = []
        for item, number in zip(itertools.product(*(range(n) for n in ends)),
                                which.expand(ends).flatten().tolist(), strict=True):
            S = maps[item] if maps is not None and self.items else maps
            encoding = self.encodings[number]
            mine: tuple[Any, ...] = (slice(None), *item)
            found.append(torch.cat([part(some, S, encoding) for some in
                                    split(x[mine], max(width, 1))]))
        return torch.stack(found, 1).view(*batch, *found[0].shape[1:])

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
        self.encodings.to(device)

    def extra_repr(self) -> str:
        return (f"shape={self.size}, samples={self.range.shape[1:]}, coils={self.range.shape[0]}, "
                f"items={self.items}, sets={self.sets}, tolerance={self.tolerance:g}, "
                f"backend={self.backend}")


class _Encoding(nn.Module):
    """One trajectory: its transform, and its normal operator by two FFTs where that is faster."""

    def __init__(self, inner: Transform, kernel: Toeplitz | None = None) -> None:
        super().__init__()
        self.inner: Any = inner
        self.kernel = kernel

    @property
    def error(self) -> float:
        return self.inner.error if isinstance(self.inner, OffResonance) else 0.0

    def transform(self, images: Tensor) -> Tensor:
        samples: Tensor = self.inner.transform(images)
        return samples

    def adjoint(self, samples: Tensor) -> Tensor:
        images: Tensor = self.inner.adjoint(samples)
        return images

    def normal(self, images: Tensor) -> Tensor:
        if self.kernel is None:
            return self.adjoint(self.transform(images))
        return self.kernel.normal(images)


def _is_long(samples: int, size: tuple[int, ...]) -> bool:
    """Whether two FFTs on a grid twice the image are faster than gridding there and back."""
    # in points of an FFT, of which gridding has two of 1.25 times the image; one weight, there and
    # back, costs a seventh of a point (fitted to timings of 8 coils at 256^2 and 48^3)
    pixels, axes = math.prod(size), len(size)
    return samples * 7**axes / 7 + 2 * 1.25**axes * pixels > 2 * 2**axes * pixels


def _field(off_resonance: Tensor, size: tuple[int, ...]) -> Tensor:
    field = torch.as_tensor(off_resonance).detach().to("cpu", torch.float64, copy=True)
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
    given = torch.as_tensor(times).detach().to("cpu", torch.float64, copy=True)
    given = squeezed(given, len(samples))  # as the trajectory is
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
