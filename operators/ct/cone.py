"""Cone-beam computed tomography."""

import copy
import importlib.util
import math
import warnings
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.ct import cone_torch, kernels
from recon.operators.ct.cone_geometry import (
    axes_of,
    circular_vectors,
    covered,
    edge_on,
    footprint,
    in_front,
    views_of,
)
from recon.operators.ct.planar import angles_of, counted, finite_of, length_of
from recon.operators.linear_map import linear_map
from recon.space import Space

Backend = Literal["auto", "numba", "torch", "triton"]


class ConeBeamCT(LinearOperator):
    """Integrals along rays from a source to a flat detector: ``y[v, r, c]`` of a volume.

    X runs along columns (right), Y against rows (up), Z along slices, and the origin is the centre
    of the grid: voxel ``(k, i, j)`` of ``(D, H, W)`` lies at ``X = (j - (W - 1) / 2) * width``,
    ``Y = ((H - 1) / 2 - i) * height``, ``Z = (k - (D - 1) / 2) * depth``. At angle ``t`` detector
    columns run along ``(cos t, sin t, 0)``, rows along Z, the source stands at
    ``source_distance * (sin t, -cos t, 0)`` and the detector opposite: a row in the plane of the
    source is the view of ``FanBeamCT``. ``from_vectors`` takes any place of source and detector.

    Volumes are ``(*batch, 1, D, H, W)``, real; projections ``(*batch, 1, views, rows, columns)`` in
    units of the volume times those of ``voxel_size``. A ray is stepped along the axis on which it
    passes most voxels, and the volume interpolated bilinearly in the plane across: Joseph 1982,
    IEEE Trans. Med. Imaging 1(3), 192, in three dimensions. No weight is stored; the adjoint has
    the same weights to rounding, in float32 and float64, and adds them in the same order always.

    Parameters
    ----------
    size
        ``N`` for ``(N, N, N)`` voxels, or ``(D, H, W)``.
    angles
        Of the source, in radians, in any order and number.
    detectors
        ``(rows, columns)``.
    source_distance
        From the axis of rotation to the source, in the unit of ``voxel_size``.
    detector_distance
        From the axis to the detector.
    detector_offset
        Shift of the detector along its rows and columns, ``(down, right)``, in its pixels.
    pitch
        Way along Z in one turn, for a helical orbit; Z is 0 in the middle of ``angles``, which then
        run on beyond a turn.
    voxel_size
        Side of a voxel, in any unit of length, or ``(depth, height, width)``.
    detector_spacing
        Side of a detector pixel, or ``(height, width)``; None for the smallest side of a voxel,
        magnified from the axis to the detector.
    backend
        "numba" is compiled and for CPUs (extra ``numba``); "triton" is compiled and for GPUs, and
        comes with torch for CUDA; "torch" runs on any device, on a CPU tens of times slower. "auto"
        takes the compiled one of the tensors' device where it is installed. All agree to rounding.
    dtype
        Of the spaces; products are in the precision of the input.

    Raises ValueError for sizes, counts or lengths that are not positive, for numbers that are not
    finite, and where the volume is not wholly in front of the source. Warns if the detector misses
    part of the ellipsoid inscribed in the volume.

    Example
    -------
    >>> turn = torch.arange(12) * torch.pi / 6
    >>> A = ConeBeamCT(16, turn, (24, 24), source_distance=40.0, detector_distance=20.0)
    >>> A(torch.ones(2, 1, 16, 16, 16)).shape
    torch.Size([2, 1, 12, 24, 24])
    """

    items = ()

    def __init__(self, size: int | tuple[int, int, int], angles: Tensor | Sequence[float],
                 detectors: tuple[int, int], source_distance: float,
                 detector_distance: float = 0.0,
                 detector_offset: tuple[float, float] = (0.0, 0.0), pitch: float = 0.0,
                 voxel_size: float | tuple[float, float, float] = 1.0,
                 detector_spacing: float | tuple[float, float] | None = None, *,
                 backend: Backend = "auto", dtype: torch.dtype = torch.float32) -> None:
        call = type(self).__name__
        found, _ = angles_of(call, angles)
        source = length_of(call, "source_distance", source_distance)
        if not (math.isfinite(detector_distance) and detector_distance >= 0):
            raise ValueError(f"{call}: want a detector_distance >= 0, got {detector_distance}")
        offset = tuple(finite_of(call, "detector_offset", o)
                       for o in _numbers(call, "detector_offset", detector_offset, 2))
        voxel = _sides(call, "voxel_size", voxel_size, 3)
        spacing = _sides(call, "detector_spacing",
                         min(voxel) * (source + detector_distance) / source
                         if detector_spacing is None else detector_spacing, 2)
        vectors = circular_vectors(found, source, float(detector_distance),
                                   (spacing[0], spacing[1]), (offset[0], offset[1]),
                                   finite_of(call, "pitch", pitch))
        self._build(size, vectors, detectors, voxel, backend, dtype, found,
                    (source, float(detector_distance)) if pitch == 0 else None)

    @classmethod
    def from_vectors(cls, size: int | tuple[int, int, int], vectors: Tensor,
                     detectors: tuple[int, int],
                     voxel_size: float | tuple[float, float, float] = 1.0, *,
                     backend: Backend = "auto",
                     dtype: torch.dtype = torch.float32) -> "ConeBeamCT":
        """Any views: ``vectors`` is ``(views, 12)``, as ASTRA's ``cone_vec``.

        Each row has, in X, Y, Z: the source, the centre of the detector, the step from one detector
        column to the next, and that from one row to the next.
        """
        A = cls.__new__(cls)
        given = torch.as_tensor(vectors).detach().to("cpu", torch.float64, copy=True)
        if given.ndim != 2 or given.shape[1] != 12 or len(given) == 0:
            raise ValueError(f"{cls.__name__}.from_vectors: want vectors (views, 12): source, "
                             "detector centre, column step, row step, each X, Y, Z; got "
                             f"{tuple(given.shape)}")
        bad = (~given.isfinite()).any(1)
        if bool(bad.any()):
            raise ValueError(f"{cls.__name__}.from_vectors: want finite vectors, got "
                             f"{given[bad][0].tolist()} at view {int(bad.int().argmax())}")
        A._build(size, given, detectors, _sides(cls.__name__, "voxel_size", voxel_size, 3),
                 backend, dtype, None, None)
        return A

    def _build(self, size: int | tuple[int, int, int], vectors: Tensor,
               detectors: tuple[int, int], voxel: tuple[float, ...], backend: Backend,
               dtype: torch.dtype, angles: Tensor | None,
               orbit: tuple[float, float] | None) -> None:
        call = type(self).__name__
        sizes = size if isinstance(size, tuple | list) else (size,) * 3
        volume = tuple(counted(call, "size", n) for n in _numbers(call, "size", sizes, 3))
        rows, columns = (counted(call, "detectors", n)
                         for n in _numbers(call, "detectors", detectors, 2))
        if backend not in ("auto", "numba", "torch", "triton"):
            raise ValueError(f"{call}: want backend auto, numba, torch or triton, got {backend!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{call}: want dtype float32 or float64, got {dtype}")
        super().__init__(Space((1, *volume), dtype), Space((1, len(vectors), rows, columns), dtype))
        self.vectors, self.angles, self.voxel = vectors, angles, voxel
        # what fdk needs to know, and helices and arbitrary views do not have
        self._orbit = orbit
        self.backend = backend
        self._place()
        part = covered(self._views, every=orbit is not None)
        if part < 1 - 1e-9:
            seen = "in any view" if orbit is None else "on average over the views"
            warnings.warn(
                f"{self.label()}: the detector covers {part:.1%} of the ellipsoid inscribed in the "
                f"volume ({seen}); want more detector pixels, a larger detector_spacing or a "
                "smaller detector_offset", stacklevel=3)

    def _place(self) -> None:
        """All that follows from the vectors."""
        _, depth, height, width = self.domain.shape
        _, _, rows, columns = self.range.shape
        step_z, step_y, step_x = self.voxel
        views = views_of(self.vectors, (depth, height, width), (step_z, step_y, step_x),
                         (rows, columns))
        flat = edge_on(views)
        if bool(flat.any()):
            raise ValueError(f"{self.label()}: want a detector that the source faces, got one seen "
                             f"edge-on, or of no area, in view {int(flat.int().argmax())}")
        front = in_front(views)
        if not bool(front.all()):
            first = int((~front).int().argmax())
            raise ValueError(f"{self.label()}: want the whole volume between source and detector, "
                             f"but in view {first} part of it is level with the source or behind: "
                             "source (X, Y, Z) "
                             f"{[round(v, 6) for v in self.vectors[first, :3].tolist()]}; want a "
                             "larger source_distance or a smaller volume")
        self._views = views
        self._axes, self._footprints = axes_of(views), footprint(views)

    def forward(self, x: Tensor) -> Tensor:
        y = linear_map(x.reshape(-1, *self.domain.shape[1:]), self._project, self._backproject)
        return y.view(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        x = linear_map(y.reshape(-1, *self.range.shape[1:]), self._backproject, self._project)
        return x.view(*self.range.batch_of(y), *self.domain.shape)

    def _project(self, x: Tensor) -> Tensor:
        precise = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        if self.compiled(x.device):
            from recon.operators.ct import cone_numba

            return cone_numba.project(precise, self._views).to(x.dtype)
        if self.on_kernels(x.device):
            from recon.operators.ct import cone_triton

            kernels.check_cone(x.device)
            return cone_triton.project(precise, self._views).to(x.dtype)
        return cone_torch.project(precise, self._views, self._axes).to(x.dtype)

    def _backproject(self, y: Tensor) -> Tensor:
        precise = y.to(torch.float64 if y.dtype == torch.float64 else torch.float32)
        if self.compiled(y.device):
            from recon.operators.ct import cone_numba

            return cone_numba.backproject(precise, self._views).to(y.dtype)
        if self.on_kernels(y.device):
            from recon.operators.ct import cone_triton

            kernels.check_cone(y.device)
            return cone_triton.backproject(precise, self._views, self._axes,
                                           self._footprints).to(y.dtype)
        return cone_torch.backproject(precise, self._views, self._axes,
                                      self._footprints).to(y.dtype)

    def compiled(self, device: torch.device) -> bool:
        """Whether tensors on ``device`` take the path compiled for CPUs."""
        if self.backend in ("torch", "triton") or (self.backend == "auto" and device.type != "cpu"):
            return False
        installed = importlib.util.find_spec("numba") is not None
        if self.backend == "numba":
            if not installed:
                raise ImportError(f"{self.label()}: backend numba wants numba: "
                                  'pip install "recon[numba]", or take backend "torch"')
            if device.type != "cpu":
                raise ValueError(f"{self.label()}: backend numba is for CPUs, got a tensor on "
                                 f'{device}: take backend "torch" or "auto"')
        return installed

    def on_kernels(self, device: torch.device) -> bool:
        """Whether tensors on ``device`` take the kernels for GPUs."""
        if self.backend == "triton" and not kernels.present(device):
            if device.type != "cuda":
                raise ValueError(f"{self.label()}: backend triton is for GPUs, got a tensor on "
                                 f'{device}: take backend "numba", "torch" or "auto"')
            raise ImportError(f"{self.label()}: backend triton wants triton, which comes with "
                              'torch for CUDA: pip install triton, or take backend "torch"')
        return self.backend in ("auto", "triton") and kernels.present(device)

    def widened(self, rows: int, below: int, above: int) -> "ConeBeamCT":
        """With ``rows`` added at both ends and so many columns at each, the others in place."""
        A = copy.deepcopy(self)
        _, views, height, width = self.range.shape
        A.range = Space((1, views, height + 2 * rows, width + below + above), self.range.dtype)
        A.vectors[:, 3:6] += (above - below) / 2 * A.vectors[:, 6:9]
        A._place()
        return A

    @property
    def orbit(self) -> tuple[float, float]:
        """Distances of source and detector from the axis, of a circular orbit; else ValueError."""
        if self._orbit is None:
            raise ValueError(f"{self.label()}: want a circular orbit, made from angles without "
                             "pitch, got a helical one or vectors")
        return self._orbit

    def get_extra_state(self) -> Tensor:
        # the weights follow from the vectors, so this is all that need be saved
        numbers = (*self.domain.shape, *self.range.shape, *self.voxel, *(self._orbit or (-1, -1)))
        angles = torch.zeros(0) if self.angles is None else self.angles
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), self.vectors.flatten(),
                          angles.double()])

    def set_extra_state(self, state: Tensor) -> None:
        state = state.to("cpu", torch.float64)
        mine = self.get_extra_state()
        if torch.equal(state, mine):
            return
        if not torch.equal(state[:8], mine[:8]):
            domain, image = (tuple(int(n) for n in part) for part in (state[:4], state[4:8]))
            raise ValueError(f"{self.label()}: want the state of an operator of this shape, got "
                             f"one of {domain} -> {image}")
        self.voxel = tuple(state[8:11].tolist())
        source, detector = state[11:13].tolist()
        self._orbit = None if source < 0 else (source, detector)
        end = 13 + self.vectors.numel()
        self.vectors = state[13:end].view(-1, 12).clone()
        self.angles = state[end:].clone() if len(state) > end else None
        self._place()

    def extra_repr(self) -> str:
        _, views, rows, columns = self.range.shape
        return (f"size={self.domain.shape[1:]}, views={views}, detectors={(rows, columns)}, "
                f"voxel_size={self.voxel}, backend={self.backend!r}")


Number = TypeVar("Number", int, float)


def _numbers(call: str, name: str, value: Sequence[Number], n: int) -> tuple[Number, ...]:
    if not isinstance(value, tuple | list) or len(value) != n:
        raise ValueError(f"{call}: want {n} numbers as {name}, got {value!r}")
    return tuple(value)


def _sides(call: str, name: str, value: float | tuple[float, ...], n: int) -> tuple[float, ...]:
    found = tuple(value) if isinstance(value, tuple | list) else (value,) * n
    if len(found) != n:
        raise ValueError(f"{call}: want one number or {n} as {name}, got {value!r}")
    return tuple(length_of(call, name, side) for side in found)
