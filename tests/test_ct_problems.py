"""From images in HU and from projections to problems: scale, geometry, noise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon import ct
from recon.datasets import Projections, Volume
from recon.metrics import hu_to_mu
from recon.metrics.ct import MU_WATER

SIZE, PIXEL = (64, 56), 2.5


def affine(spacing: tuple[float, float, float]) -> Tensor:
    found = torch.zeros(4, 4, dtype=torch.float64)
    found[2, 0], found[1, 1], found[0, 2], found[3, 3] = *spacing, 1.0
    return found


def disc(radius: float = 18.0, offset: tuple[float, float] = (5.0, -4.0)) -> Tensor:
    """Water in air: pixels within ``radius`` of ``offset`` (right, up) from the middle, in HU."""
    rows, columns = torch.meshgrid(*(torch.arange(8 * n) for n in SIZE), indexing="ij")
    x = (columns + 0.5) / 8 - SIZE[1] / 2 - offset[0]
    y = SIZE[0] / 2 - (rows + 0.5) / 8 - offset[1]
    inside = (x.square() + y.square() < radius**2).float()
    return -1000 + 1000 * torch.nn.functional.avg_pool2d(inside[None], 8)


def volume(values: Tensor, unit: str = "HU", spacing: Any = (5.0, PIXEL, PIXEL)) -> Volume:
    place = None if spacing is None else affine(spacing)
    return Volume(values, unit, place, None, {"note": "told"}, "ct", "dicom_ct")


def chords(p: Projections, radius: float = 18.0,
           offset: tuple[float, float] = (5.0, -4.0)) -> Tensor:
    """``2 mu sqrt(r^2 - (s - s0)^2)``, averaged over each bin, in mm."""
    bins = p.values.shape[-1]
    s = (torch.arange(8 * bins) + 0.5) / 8 - bins / 2
    s0 = offset[0] * p.angles.cos() + offset[1] * p.angles.sin()
    depth = (radius**2 - (s - s0[:, None]).square()).clamp(min=0).sqrt()
    return 2 * MU_WATER * PIXEL * depth.view(len(p.angles), bins, 8).mean(-1)


def check_chords(simulate: Callable[[Volume, int], Tensor]) -> None:
    made = ct.simulated_projections(volume(disc()), 24, noise_std=0.0)
    got, want = simulate(volume(disc()), 24), chords(made)
    assert float((got - want).norm() / want.norm()) < 0.01


def test_a_disc_casts_its_chords() -> None:
    def simulate(v: Volume, n: int) -> Tensor:
        return ct.simulated_projections(v, n, noise_std=0.0).values[0].double()

    check_chords(simulate)
    faults: list[Callable[[Volume, int], Tensor]] = [
        lambda v, n: simulate(v, n) / PIXEL,  # in pixels
        lambda v, n: simulate(v, n).flip(-1),
        lambda v, n: simulate(v._replace(values=v.values.flip(-2)), n),
        lambda v, n: simulate(v._replace(values=v.values + 20), n),
    ]
    for fault in faults:
        with pytest.raises(AssertionError):
            check_chords(fault)


def test_the_operator_is_near_the_simulation_and_not_equal() -> None:
    made = ct.simulated_projections(volume(disc()), 24, noise_std=0.0)
    assert made.reference is not None
    case = ct.problem(made, 0, ct.operator_of(made))
    again = case.operator(made.reference[0][None])
    gap = float((again - case.y).norm() / case.y.norm())
    assert 1e-4 < gap < 0.02
    assert torch.equal(made.reference, hu_to_mu(disc()))
    assert made.attributes["note"] == "told; projections were simulated: 24 views, noise 0"


def check_alone(operator_of: Callable[[Projections], Any]) -> None:
    """What is done to one operator of some projections leaves another as it was."""
    made = ct.simulated_projections(volume(disc()), 12, noise_std=0.0)
    one, other = operator_of(made), operator_of(made)
    x = torch.rand(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    want = other(x)
    one.load_state_dict(operator_of(made._replace(angles=made.angles + 0.3)).state_dict())
    assert not torch.allclose(one(x), want, rtol=0.1)
    operator_of(made).double()
    assert torch.equal(other(x), want)
    assert all(weights.dtype != torch.float64 for weights in other.buffers())


def test_operators_are_alone_and_share_their_weights() -> None:
    check_alone(ct.operator_of)
    kept: dict[Any, Any] = {}
    with pytest.raises(AssertionError):
        check_alone(lambda p: kept.setdefault(float(p.angles[0]), ct.operator_of(p)))
    made = ct.simulated_projections(volume(disc()), 12, noise_std=0.0)
    places = [[weights.data_ptr() for weights in ct.operator_of(made).buffers()] for _ in range(2)]
    assert places[0] == places[1]


def test_noise_is_of_the_slice_and_is_found_again() -> None:
    stack = disc().expand(3, *SIZE).clone()
    made = ct.simulated_projections(volume(stack), 60, noise_std=0.03, seed=5)
    alone = ct.simulated_projections(volume(stack[1:2]), 60, noise_std=0.03, seed=6)
    clean = ct.simulated_projections(volume(stack[:1]), 60, noise_std=0.0)
    assert torch.equal(made.values[1], alone.values[0])
    assert not torch.allclose(made.values[0], made.values[1])
    n = made.values - clean.values
    assert float(n.std()) == pytest.approx(0.03, rel=0.02)
    # the disc's edge bends too: an upper estimate
    assert 0.03 * 0.95 < ct.estimate_noise_std(made.values[0]) < 0.03 * 1.15
    white = 7e-6 * torch.randn(200, 513, generator=torch.Generator().manual_seed(0))
    assert ct.estimate_noise_std(white) == pytest.approx(7e-6, rel=0.02)
    assert ct.estimate_noise_std(torch.zeros(4, 9)) == 0.0


def test_views_are_spread_over_the_turn() -> None:
    made = ct.simulated_projections(volume(disc()), 60, noise_std=0.0)
    some = ct.chosen_views(made, 8)
    assert torch.equal(some.angles, made.angles[[0, 7, 15, 22, 30, 37, 45, 52]])
    assert torch.equal(some.values, made.values[:, [0, 7, 15, 22, 30, 37, 45, 52]])
    assert ct.chosen_views(made, None) is made
    with pytest.raises(ValueError, match="ct has 60 views: want 1 to 60 of them, got 61"):
        ct.chosen_views(made, 61)


@pytest.mark.parametrize(("made", "said"), [
    (lambda: ct.simulated_projections(volume(disc(), "arbitrary"), 9), "say so with --unit HU"),
    (lambda: ct.simulated_projections(volume(disc(), spacing=(5, 2, 3)), 9), "2 x 3 mm: want squa"),
    (lambda: ct.simulated_projections(volume(disc(), spacing=None), 9), "unknown size"),
    (lambda: ct.simulated_projections(volume(disc()), 0), "views wants at least 1, got 0"),
])
def test_refusals(made: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def test_tv_recovers_the_disc_from_simulated_views() -> None:
    from recon import reconstruct

    made = ct.simulated_projections(volume(disc()), 30, noise_std=0.005)
    case = ct.problem(made, 0, ct.operator_of(made))
    assert case.reference is not None
    found = reconstruct(case.y, case.operator, None, "tv", weight=1e-3).mean[0]
    error = (found - case.reference[0]).square().mean().sqrt() / MU_WATER
    assert float(error) < 0.06
    assert math.isclose(float(found[25:35, 28:38].mean()), MU_WATER, rel_tol=0.02)
