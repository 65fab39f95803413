"""Whether a device has the Triton kernels of CT, and whether they are right there."""

import functools
import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def present(device: torch.device) -> bool:
    """Whether tensors on ``device`` take the kernels: on a GPU, where triton is installed."""
    return device.type == "cuda" and _installed()


@functools.cache
def _installed() -> bool:
    """Looked up once: every product asks."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def check_planar(device: torch.device) -> None:
    """Run the kernels of planes once in a process on ``device``; RuntimeError if they are wrong."""
    from recon.operators.ct import gather_triton
    from recon.operators.ct.gather import Gather
    from recon.operators.ct.geometry import Fan, Parallel

    shape, pixel = (9, 7), (1.2, 0.9)
    angles = torch.tensor([0.2, 1.5, 2.4], dtype=torch.float64)
    for geometry in (Parallel(angles, 17, 0.9, 0.25, pixel),
                     *(Fan(angles, 18, 1.4, -0.5, pixel, source=14.0, detector=5.0, curved=curved)
                       for curved in (False, True))):
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
            gather = Gather(geometry, shape, dtype)
            compare(f"{type(geometry).__name__}, {dtype}", tolerance,
                    (functools.partial(gather_triton.project, gather),
                     functools.partial(gather_triton.backproject, gather)),
                    (gather.project, gather.backproject),
                    _waves((math.prod(shape), 3), dtype, device),
                    _waves((len(angles) * geometry.bins, 3), dtype, device))


@functools.cache
def check_cone(device: torch.device) -> None:
    """As ``check_planar``, of the kernels of cone beams."""
    from recon.operators.ct import cone_torch, cone_triton
    from recon.operators.ct.cone_geometry import axes_of, circular_vectors, footprint, views_of

    angles = torch.tensor([0.2, 0.7], dtype=torch.float64)
    vectors = circular_vectors(angles, 20.0, 6.0, (1.5, 1.3), (0.25, -0.5), 2.0)
    for detector in ((8, 9), (1, 3)):  # wider and narrower than what a voxel can cover
        views = views_of(vectors, (6, 5, 7), (1.2, 1.0, 0.9), detector)
        axes, reach = axes_of(views), footprint(views)
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.float64, 1e-12)):
            compare(f"cone, detector {detector}, {dtype}", tolerance,
                    (functools.partial(cone_triton.project, views=views),
                     functools.partial(cone_triton.backproject, views=views, axes=axes,
                                       footprints=reach)),
                    (functools.partial(cone_torch.project, views=views, axes=axes),
                     functools.partial(cone_torch.backproject, views=views, axes=axes,
                                       footprints=reach)),
                    _waves((2, *views.volume), dtype, device),
                    _waves((2, len(angles), *detector), dtype, device))


def compare(what: str, tolerance: float, kernels: Pair, plain: Pair, x: Tensor, y: Tensor) -> None:
    """RuntimeError, in words, where the kernels fail or miss plain torch."""
    for direction, kernel, reference, of in zip(("forward", "adjoint"), kernels, plain, (x, y),
                                                strict=True):
        want = reference(of)
        try:
            got = kernel(of)
            gap = float((got - want).norm() / want.norm())
        except Exception as error:
            raise RuntimeError(
                f"the Triton kernels of CT do not run on {of.device} ({direction}, {what}): want a "
                "GPU, driver and C compiler that triton can use, or " + _INSTEAD) from error
        if not gap <= tolerance:
            raise RuntimeError(
                f"the Triton kernels of CT are wrong on {of.device}: want {direction} projections "
                f"as in plain torch to {tolerance:.0e}, got a relative difference of {gap:.1e} "
                f"({what}): please report it with the versions of torch, triton and the driver, "
                "and take " + _INSTEAD)


_INSTEAD = ('method="matrix" or "symmetry" (of ParallelBeamCT and FanBeamCT), backend="torch" (of '
            "ConeBeamCT)")


def _waves(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """No two numbers alike, the same everywhere, without drawing from anybody's generator."""
    count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return (12.9898 * count.square()).sin().view(shape).to(device, dtype)
