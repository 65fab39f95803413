"""Filtered back-projection in absolute units, against closed forms and scikit-image."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.metrics import psnr
from recon.operators import FanBeamCT, Identity, ParallelBeamCT, Space
from recon.operators.ct import fbp
from recon.operators.ct.fbp import FILTERS
from recon.operators.ct.planar import PlanarCT
from recon.operators.ct.redundancy import measured_once, scanned
from tests.operators.ellipses import (
    DISC,
    SHEPP_LOGAN,
    Body,
    chords,
    fan_integrals,
    integrals,
    picture,
)

N, VIEWS, FAR = 64, 150, 110.0
FAN = math.asin(N / math.sqrt(2) / FAR)  # half of it
INSIDE = picture([(1.0, 0.11, -0.07, 0.5, 0.5, 0.0)], N)[0] == 1
Method = Callable[[Tensor, PlanarCT], Tensor]


def over(turn: float, views: int = VIEWS) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * turn / views


def measured(body: Body, A: PlanarCT) -> Tensor:
    """Bin-averaged integrals in closed form, in the units of the operator."""
    g, pixel = A.geometry, A.geometry.pixel[0]
    if isinstance(A, FanBeamCT):
        y = fan_integrals(body, N, A.angles, A.geometry.source / pixel,
                          A.geometry.detector / pixel, g.bins, g.spacing / pixel, offset=g.offset,
                          curved=A.geometry.curved, fine=6)
    elif g.offset:
        at = (np.arange(g.bins * 6) + 0.5) / 6 - g.bins / 2 + g.offset
        y = torch.from_numpy(chords(body, N, A.angles.numpy()[:, None], at * g.spacing / pixel))
        y = y.float().view(1, len(A.angles), g.bins, 6).mean(-1)
    else:
        y = integrals(body, N, A.angles, g.bins)
    return y * pixel


SCANS: dict[str, Callable[[], PlanarCT]] = {
    "parallel": lambda: ParallelBeamCT(N, over(math.pi), method="gather"),
    "turned about": lambda: ParallelBeamCT(N, over(2 * math.pi) - 7, method="gather"),
    "shuffled": lambda: ParallelBeamCT(
        N, over(math.pi)[torch.randperm(VIEWS, generator=torch.Generator().manual_seed(0))],
        method="gather"),
    "off centre": lambda: ParallelBeamCT(N, over(math.pi), 100, 2.5, method="gather"),
    "half detector": lambda: ParallelBeamCT(N, over(2 * math.pi), 64, 24.0, method="gather"),
    "in millimetres": lambda: ParallelBeamCT(N, over(math.pi), pixel_size=0.3, method="gather"),
}


def fans(curved: bool) -> dict[str, Callable[[], PlanarCT]]:
    def fan(turn: float, near: float = 0.0, detectors: int | None = None, offset: float = 0.0,
            start: float = 0.0, pixel: float = 1.0) -> PlanarCT:
        return FanBeamCT(N, over(turn) + start, pixel * FAR, pixel * near, detectors, offset, pixel,
                         curved=curved, method="gather")

    full = 2 * math.pi
    made: dict[str, Callable[[], PlanarCT]] = {
        "full": lambda: fan(full, 60.0),
        "short": lambda: fan(math.pi + 2 * FAN, start=2),
        "longer": lambda: fan(1.7 * math.pi),
        "quarter": lambda: fan(full, 60.0, offset=0.25),
        "half detector": lambda: fan(full, 60.0, 72, -24.0),
        "millimetres": lambda: fan(full, 30.0, pixel=0.3),
    }
    return {f"{'curved' if curved else 'flat'} fan, {name}": A for name, A in made.items()}


SCANS |= fans(False) | fans(True)


def check_disc(method: Method, A: PlanarCT) -> None:
    """Attenuation 1 per unit comes out as 1 within 0.1 %, flat within 0.5 %."""
    x = method(measured(DISC, A), A)[0]
    assert float(x[INSIDE].mean()) == pytest.approx(1, rel=1e-3)
    assert float(x[INSIDE].std()) < 5e-3
    assert float((x - picture(DISC, N)[0]).square().mean().sqrt()) < 0.03


@pytest.mark.filterwarnings("ignore:.*covers")
@pytest.mark.parametrize("name", SCANS)
def test_a_disc_comes_out_as_its_attenuation(name: str) -> None:
    check_disc(fbp, SCANS[name]())


def changed(A: PlanarCT, **fields: Any) -> PlanarCT:
    import dataclasses

    A.geometry = dataclasses.replace(A.geometry, **fields)
    return A


@pytest.mark.filterwarnings("ignore:.*covers")
def test_wrong_geometry_and_weights_are_noticed() -> None:
    def elsewhere(**fields: Any) -> Method:
        return lambda y, A: fbp(y, changed(A, **fields))

    faults: list[tuple[Method, str]] = [
        (lambda y, A: 1.01 * fbp(y, A), "parallel"),
        (lambda y, A: fbp(y, A).flip(-1), "parallel"),
        (elsewhere(offset=0.0), "off centre"),
        (elsewhere(spacing=1.02), "parallel"),
        (elsewhere(curved=True), "flat fan, full"),
        (elsewhere(source=1.1 * FAR), "flat fan, full"),
        (lambda y, A: fbp(y, changed(A, angles=-A.angles)), "curved fan, short"),
        (lambda y, A: A.adjoint(y) * math.pi / VIEWS, "parallel"),  # unfiltered
        (lambda y, A: fbp(y, changed(A, angles=over(2 * math.pi))), "flat fan, short"),
        (lambda y, A: fbp(y[..., 20:], ParallelBeamCT(N, A.angles, 44, 34.0, method="gather")),
         "half detector"),  # the short side is missing
    ]
    for fault, name in faults:
        with pytest.raises(AssertionError):
            check_disc(fault, SCANS[name]())


def check_once(weights: Callable[[PlanarCT], Tensor], turn: float) -> None:
    """The weights of one ray, from wherever it is seen, add up to one."""
    angles = over(turn, 720)
    A = FanBeamCT(N, angles, FAR, method="gather")
    w, g = weights(A), A.geometry.fan_angles()
    length = scanned(angles, 2 * math.pi).length
    for d in (3, 20, 47, 70):
        mirrored = A.geometry.bins - 1 - d
        for v in range(0, 720, 7):
            total = float(w[v, d])
            for side in (-1, 1):
                again = (float(angles[v]) - 2 * float(g[d]) + side * math.pi) % (2 * math.pi)
                place = again / (turn / 720)
                if again < length - turn / 720:
                    low = int(place)
                    share = place - low
                    after = float(w[min(low + 1, 719), mirrored])
                    total += (1 - share) * float(w[low, mirrored]) + share * after
                    break  # both sides are one place of the turn
            assert total == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("turn", [math.pi + 2 * FAN, 1.6 * math.pi, 1.1 * math.pi])
def test_rays_are_counted_once(turn: float) -> None:
    check_once(lambda A: measured_once(A.geometry, N / 2), turn)
    mirrored = [lambda A: measured_once(A.geometry, N / 2).flip(-1),
                lambda A: torch.ones(A.range.shape[1:])]
    for wrong in mirrored:
        with pytest.raises(AssertionError):
            check_once(wrong, turn)


def test_views_stand_for_what_lies_between_them() -> None:
    half, whole = math.pi, 2 * math.pi
    even = scanned(over(half, 10), half).steps
    assert torch.allclose(even, torch.full((10,), half / 10).double())
    uneven = torch.tensor([0.0, 0.1, 1.0, 2.5], dtype=torch.float64)
    steps = scanned(uneven, half).steps
    assert torch.allclose(steps, torch.tensor([(0.1 + half - 2.5) / 2, 0.5, 1.2,
                                               (1.5 + half - 2.5) / 2]).double())
    limited = scanned(over(1.0, 20) + 3, half)  # the missing part stands for nothing
    assert not limited.closed
    assert limited.length == pytest.approx(1.0)
    assert limited.start == pytest.approx(3 - 0.025)
    assert torch.allclose(limited.steps, torch.full((20,), 0.05).double())
    assert scanned(over(whole, 9), whole).closed
    assert float(scanned(torch.tensor([0.3]).double(), half).steps) == pytest.approx(half)


@pytest.mark.parametrize("n", [65, 96])
def test_scikit_image_agrees(n: int) -> None:
    from skimage.transform import iradon

    angles, bins = over(math.pi, 40), 2 * n // 2 * 3 // 2 | 1
    x, y = picture(SHEPP_LOGAN, n), integrals(SHEPP_LOGAN, n, angles, bins)
    # its image turns about pixel n // 2, which is the middle of an odd size only
    odd = n | 1
    for ours, theirs in (("ramp", "ramp"), ("shepp-logan", "shepp-logan"), ("cosine", "cosine"),
                         ("hann", "hann"), ("hamming", "hamming")):
        peer = torch.from_numpy(iradon(y[0].T.double().numpy(),  # type: ignore[no-untyped-call]
                                       np.rad2deg(angles.numpy()), odd, filter_name=theirs,
                                       circle=False)).float()
        A = ParallelBeamCT(odd, angles, bins, method="gather")
        mine = fbp(y, A, ours)[0]  # type: ignore[arg-type]
        disc = (torch.arange(odd) - odd // 2) ** 2 + (torch.arange(odd)[:, None] - odd // 2) ** 2
        disc = disc < (n / 2 - 1) ** 2
        assert float((mine - peer)[disc].norm() / peer[disc].norm()) < 2e-3
        if n == odd:
            reached = [float(psnr(image, x[0], region=disc)) for image in (mine, peer)]
            # windows of the peer are a bin of the transform off: 0.02 dB
            assert reached[0] == pytest.approx(reached[1], abs=0.05)
        other = fbp(y, A, FILTERS[FILTERS.index(ours) - 1])[0]  # type: ignore[arg-type]
        assert float((other - peer)[disc].norm() / peer[disc].norm()) > 5e-3


def test_few_and_limited_views_keep_their_scale() -> None:
    """What is not seen is missing, and what is seen keeps its size."""
    sparse = ParallelBeamCT(N, over(math.pi, 12), method="gather")
    x = fbp(measured(DISC, sparse), sparse)[0]
    assert float(x[INSIDE].mean()) == pytest.approx(1, abs=0.02)
    errors = []
    for part in (0.9, 0.6, 0.3):
        A = ParallelBeamCT(N, over(part * math.pi, 90), method="gather")
        image = fbp(measured(DISC, A), A, "hann")[0]
        assert 0.9 * part < float(image[INSIDE].mean()) < min(1.25 * part, 1)
        errors.append(float((image - picture(DISC, N)[0]).norm()))
    assert errors == sorted(errors)


def test_linear_in_any_batch_and_differentiable() -> None:
    for A in (ParallelBeamCT((9, 8), over(math.pi, 5), method="gather"),
              FanBeamCT((9, 8), over(2 * math.pi, 6), 20.0, method="gather")):
        y = torch.randn(2, 3, *A.range.shape, generator=torch.Generator().manual_seed(0))
        x = fbp(y, A)
        assert x.shape == (2, 3, 1, 9, 8)
        assert torch.allclose(x[1, 2], fbp(y[1, 2], A), atol=1e-5)
        assert torch.allclose(fbp(1e-6 * y, A), 1e-6 * x, rtol=1e-4, atol=1e-11)
        assert fbp(y.half(), A).dtype == torch.float16
        assert torch.allclose(fbp(y.double(), A).float(), x, atol=1e-4)
        single = y[0, 0].double().requires_grad_()
        assert torch.autograd.gradcheck(lambda y, A=A: fbp(y, A), single)
        assert fbp(y[:0], A).shape == (0, 3, 1, 9, 8)


def test_oblong_pixels_show_the_same_body() -> None:
    wide = ParallelBeamCT((N, N // 2), over(math.pi), 91, pixel_size=(1.0, 2.0), method="gather")
    square = SCANS["parallel"]()
    y = measured(DISC, square)
    x = fbp(y, wide)[0]
    means = INSIDE.float().view(N, -1, 2).mean(-1) == 1
    assert float(x[means].mean()) == pytest.approx(1, rel=1e-3)


def test_smoother_filters_pass_less_noise() -> None:
    A = ParallelBeamCT(N, over(math.pi, 40), method="gather")
    noise = torch.randn(A.range.shape, generator=torch.Generator().manual_seed(0))
    spread = [float(fbp(noise, A, f).std()) for f in FILTERS]  # type: ignore[arg-type]
    assert spread == [pytest.approx(s) for s in sorted(spread, reverse=True)] or (
        spread[3] < spread[4] < spread[2] < spread[1] < spread[0])
    assert float(fbp(noise, A, cutoff=0.5).std()) < 0.5 * spread[0]


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"filter": "sharp"}, ValueError, "want filter ramp, shepp-logan, .*, got 'sharp'"),
    ({"cutoff": 0.0}, ValueError, "want a cutoff above 0 and up to 1, got 0.0"),
    ({"cutoff": math.nan}, ValueError, "want a cutoff above 0 and up to 1, got nan"),
    ({"y": torch.zeros(1, 5, 7)}, ValueError, r"want \(\*batch, 1, 5, 8\), got \(1, 5, 7\)"),
    ({"operator": Identity(Space((1, 5, 8)))}, TypeError, "ParallelBeamCT or FanBeamCT, got Iden"),
])
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    A = ParallelBeamCT(5, over(math.pi, 5), 8, method="gather")
    with pytest.raises(error, match=message):
        fbp(**{"y": torch.zeros(1, 5, 8), "operator": A, **change})


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ct.md").read_text()
    told: dict[str, Any] = {}
    for block in page.split("```python\n")[1:]:
        exec(compile(block.split("```")[0], "ct.md", "exec"), told)
    assert float(told["again"][:, 5:7, 7:9, 7:9].mean()) == pytest.approx(0.02, rel=0.1)
    middle = told["first"][:, 26:38, 29:35]  # away from the edges, which the window smooths
    assert float(middle.mean()) == pytest.approx(0.02, rel=0.03)
    error = (told["image"] - told["body"]).norm() / told["body"].norm()
    assert float(error) < 0.5 * float((told["first"] - told["body"]).norm() / told["body"].norm())
