"""CT of a plane against the projectors of ODL (with scikit-image) and, where installed, ASTRA."""

import importlib.util
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.operators import FanBeamCT, ParallelBeamCT
from recon.operators.ct.planar import PlanarCT
from tests.operators.ellipses import SHEPP_LOGAN, picture

# astra-toolbox is licensed under the GPL and heavy: not among what the tests install
HAS_ASTRA = importlib.util.find_spec("astra") is not None
astra_only = pytest.mark.skipif(not HAS_ASTRA, reason="astra-toolbox is not installed")


def turn(views: int, over: float = math.pi) -> Tensor:
    """ODL's angles: the middles of equal parts."""
    return (torch.arange(views, dtype=torch.float64) + 0.5) * over / views


def apart(got: Tensor, want: NDArray[Any]) -> float:
    peer = torch.from_numpy(np.ascontiguousarray(want)).double()
    return float((got.double() - peer).norm() / peer.norm())


def odl_of(A: PlanarCT, kind: str) -> tuple[Any, Any]:
    """ODL's transform of LoDoPaB's kind of geometry, and its space."""
    import odl
    from odl.applications import tomo

    g, n = A.geometry, A.domain.shape[1]
    half, edge = n * g.pixel[0] / 2, g.bins * g.spacing / 2
    space = odl.uniform_discr([-half] * 2, [half] * 2, (n, n), dtype="float32")
    views = odl.uniform_partition(0, math.pi, len(A.angles))
    geometry = tomo.Parallel2dGeometry(views, odl.uniform_partition(-edge, edge, g.bins))
    return tomo.RayTransform(space, geometry, impl=kind), space


def by_odl(A: PlanarCT, x: Tensor, kind: str) -> NDArray[Any]:
    transform, space = odl_of(A, kind)
    # its axis 0 is x and its axis 1 y, both increasing
    element = space.element(np.ascontiguousarray(x[0].numpy()[::-1].T))
    return np.asarray(transform(element).asarray())


def lodopab(n: int, views: int, **changed: float) -> ParallelBeamCT:
    """Its image of 0.26 m and 513 bins over the diagonal, in other numbers of pixels and views."""
    settings: dict[str, Any] = {"pixel_size": 0.26 / n,
                                "detector_spacing": 0.26 * math.sqrt(2) / 513} | changed
    return ParallelBeamCT(n, turn(views), 513, method="gather", **settings)


@pytest.mark.filterwarnings("ignore:The 'skimage' backend may be too slow")
def test_odl_on_the_geometry_of_lodopab() -> None:
    n = 361  # scikit-image turns an odd image about its middle
    x = picture(SHEPP_LOGAN, n, 3)
    A = lodopab(n, 8)
    want = by_odl(A, x, "skimage")
    assert apart(A(x)[0], want) < 1.2e-2
    for fault in ({"detector_offset": 1.0}, {"pixel_size": 0.264 / n}):
        assert apart(lodopab(n, 8, **fault)(x)[0], want) > 1.8e-2
    assert apart(A(x.flip(-1))[0], want) > 1.8e-2


@astra_only
def test_odl_with_astra_on_the_geometry_of_lodopab() -> None:
    x = picture(SHEPP_LOGAN, 362, 3)
    A = lodopab(362, 20)
    want = by_odl(A, x, "astra_cpu")
    assert apart(A(x)[0], want) < 1e-3
    assert apart(lodopab(362, 20, detector_offset=0.05)(x)[0], want) > 1e-3


@astra_only
def test_every_weight_is_that_of_astra() -> None:
    import astra

    def gap(A: ParallelBeamCT) -> float:
        n, views = 32, turn(9)
        volume = astra.create_vol_geom(n, n)
        detector = astra.create_proj_geom("parallel", 1.1, 45, views.numpy())
        projector = astra.create_projector("linear", detector, volume)
        matrix = astra.matrix.get(astra.projector.matrix(projector)).toarray()
        eye = torch.eye(n * n, dtype=torch.float64).view(-1, 1, n, n)
        return apart(A(eye).flatten(1).T, matrix)

    assert gap(ParallelBeamCT(32, turn(9), 45, detector_spacing=1.1)) < 1e-3
    assert gap(ParallelBeamCT(32, turn(9), 45, 0.01, detector_spacing=1.1)) > 1e-3


@astra_only
def test_fans_are_those_of_astra() -> None:
    import astra

    n, views = 128, turn(24, 2 * math.pi)
    x = picture(SHEPP_LOGAN, n, 4)
    volume = astra.create_vol_geom(n, n)
    detector = astra.create_proj_geom("fanflat", 1.5, 220, views.numpy(), 250.0, 120.0)
    peer = astra.OpTomo(astra.create_projector("line_fanflat", detector, volume))
    want = peer.FP(x[0].numpy())

    def fan(source: float, offset: float = 0.0, sign: int = 1) -> FanBeamCT:
        return FanBeamCT(n, sign * views, source, 370.0 - source, 220, offset,
                         detector_spacing=1.5, method="gather")

    assert apart(fan(250.0)(x)[0], want) < 2e-2  # lengths in pixels against interpolation
    for other in (fan(250.0, 0.5), fan(250.0, sign=-1), fan(230.0)):
        assert apart(other(x)[0], want) > 3e-2
