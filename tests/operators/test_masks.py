"""Sampling masks, to the bit, against fastMRI 0.3.0, InverseBench's rule and brute force."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from recon.operators.mri import masks
from recon.operators.mri.poisson_disc import PoissonDisc, variable_density

KNEE, BRAIN = "file1000000.h5", "file_brain_AXT2_200_2000110.h5"
KINDS = ["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"]


def kind(name: str) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = getattr(masks, name)
    return function


def digest(mask: Tensor) -> str:
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:12]


@pytest.mark.parametrize(("name", "fraction", "acceleration", "n", "seed", "total", "sha"), [
    ("random", 0.08, 4, 368, KNEE, 88, "71c14e5b469d"),
    ("random", 0.08, 4, 372, KNEE, 89, "bc30ee7fa438"),
    ("random", 0.08, 4, 320, KNEE, 76, "8ff1ecea0d09"),
    ("random", 0.08, 4, 45, KNEE, 13, "70e610019a88"),
    ("random", 0.04, 8, 368, KNEE, 46, "7a0e8db1247d"),
    ("random", [0.08, 0.04], [4, 8], 368, KNEE, 45, "7217abecfe31"),
    ("equispaced", 0.08, 4, 368, KNEE, 114, "d305d1286176"),
    ("equispaced", 0.04, 8, 368, KNEE, 59, "88ae4206973b"),
    ("equispaced_fraction", 0.08, 4, 368, KNEE, 93, "de0a463db2bf"),
    ("equispaced_fraction", 0.08, 4, 320, KNEE, 80, "cb4dab6137f0"),
    ("equispaced_fraction", 0.04, 8, 320, KNEE, 40, "86a824d15519"),
    ("equispaced_fraction", 0.08, 4, 320, BRAIN, 80, "8660cb9b5a8d"),
    ("equispaced_fraction", 0.08, 4, 396, BRAIN, 100, "7699f2bb348d"),
    ("magic", 0.08, 4, 368, KNEE, 114, "42576b9cf4bf"),
    ("magic_fraction", 0.08, 4, 368, KNEE, 86, "b7f7d0a25015"),
    ("magic_fraction", 0.04, 8, 372, KNEE, 45, "31fa38e6f00a"),
])
def test_recorded_draws(name: str, fraction: float, acceleration: int, n: int, seed: str,
                        total: int, sha: str) -> None:
    mask = kind(name)(n, center_fraction=fraction, acceleration=acceleration, seed=seed)
    assert mask.dtype == torch.bool
    assert mask.shape == (n,)
    assert (int(mask.sum()), digest(mask)) == (total, sha)


CASES = list(itertools.product(
    KINDS, [(0.08, 4), (0.04, 8), ([0.08, 0.04], [4, 8])], [320, 368, 372, 45, 161]))
FASTMRI = {"random": "RandomMaskFunc", "equispaced": "EquiSpacedMaskFunc",
           "equispaced_fraction": "EquispacedMaskFractionFunc", "magic": "MagicMaskFunc",
           "magic_fraction": "MagicMaskFractionFunc"}


def test_75_recorded_draws() -> None:
    all_masks = [kind(name)(n, fraction, a, KNEE) for name, (fraction, a), n in CASES]
    assert len(all_masks) == 75
    assert digest(torch.cat(all_masks)) == "4c17e9e2b525"


def check_against_fastmri(draw: Callable[..., Tensor]) -> None:
    subsample = pytest.importorskip("fastmri.data.subsample", reason="needs fastmri 0.3.0")
    for name, (fraction, a), n in CASES:
        pairs = [x if isinstance(x, list) else [x] for x in (fraction, a)]
        theirs, _ = getattr(subsample, FASTMRI[name])(*pairs)(
            (1, 8, n, 2), seed=tuple(map(ord, KNEE)))
        ours = draw(name, n, fraction, a)
        assert torch.equal(ours, theirs.reshape(-1) != 0), (name, fraction, n)


def test_fastmri_itself() -> None:
    check_against_fastmri(lambda name, n, fraction, a: kind(name)(n, fraction, a, KNEE))
    with pytest.raises(AssertionError):  # the name of another file
        check_against_fastmri(lambda name, n, fraction, a: kind(name)(n, fraction, a, BRAIN))
    with pytest.raises(AssertionError):  # the centre one column to the left
        check_against_fastmri(lambda name, *case: kind(name)(*case, KNEE).roll(-1))


def test_integer_seeds() -> None:
    mask = masks.equispaced_fraction(372, seed=0)
    assert mask.nonzero().flatten()[:6].tolist() == [4, 9, 15, 20, 26, 31]
    mask = masks.random(368, [0.08, 0.04], [4, 8], seed=42, allow_any_combination=True)
    assert (int(mask.sum()), digest(mask)) == (52, "952ee5f821b6")


@pytest.mark.parametrize("name", KINDS)
def test_seed_is_the_base_name(name: str) -> None:
    draw = kind(name)
    mask = draw(368, seed=KNEE)
    assert torch.equal(mask, draw(368, seed=f"some/folder/{KNEE}"))
    assert torch.equal(mask, draw(368, seed=Path("/elsewhere") / KNEE))
    others = [draw(368, seed=f"{i}.h5") for i in range(8)]
    assert not all(torch.equal(mask, other) for other in others)


def test_an_integer_is_not_a_one_letter_name() -> None:
    # numpy seeds by array for names: RandomState((65,)) and RandomState(65) differ
    assert not torch.equal(masks.random(368, seed=65), masks.random(368, seed="A"))


def test_no_seed_is_a_new_mask_and_leaves_numpy_alone() -> None:
    before = np.random.get_state(legacy=False)
    assert not torch.equal(masks.random(368), masks.random(368))
    masks.random(368, seed=KNEE)
    after = np.random.get_state(legacy=False)
    np.testing.assert_equal(before, after)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("n", [45, 161, 320, 396])
def test_centre_is_sampled(name: str, n: int) -> None:
    mask = kind(name)(n, 0.08, 4, seed=3)
    centre = round(0.08 * n)
    start = (n - centre + 1) // 2
    assert mask[start:start + centre].all()
    assert mask[n // 2]  # the zero frequency of fft2c


@pytest.mark.parametrize("name", ["random", "equispaced_fraction", "magic_fraction"])
@pytest.mark.parametrize("acceleration", [4, 8])
def test_acceleration_is_met(name: str, acceleration: int) -> None:
    fraction = 0.32 / acceleration
    totals = [int(kind(name)(368, fraction, acceleration, seed=s).sum()) for s in range(40)]
    # magic_fraction rounds its step; random varies from draw to draw but not on average
    assert np.mean(totals) == pytest.approx(368 / acceleration, rel=0.12)


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("random", {"n_columns": 0}, "random mask: want n_columns >= 1, got 0"),
    ("random", {"center_fraction": 0.3}, "centre takes 96 of 320 columns, acceleration 4 allows"),
    ("equispaced_fraction", {"center_fraction": 0.25}, "center_fraction \\* acceleration < 1"),
    ("equispaced_fraction", {"center_fraction": 0.3}, "center_fraction \\* acceleration < 1"),
    ("magic_fraction", {"center_fraction": 0.25}, "center_fraction \\* acceleration < 1"),
    ("random", {"acceleration": 0.5}, "finite acceleration >= 1, got 0.5"),
    ("random", {"acceleration": float("inf")}, "finite acceleration >= 1, got inf"),
    ("random", {"acceleration": float("nan")}, "finite acceleration >= 1, got nan"),
    ("random", {"center_fraction": float("nan")}, "0 <= center_fraction < 1, got nan"),
    ("random", {"center_fraction": -0.1}, "0 <= center_fraction < 1, got -0.1"),
    ("random", {"center_fraction": [0.08, 0.04]}, "2 center_fraction but 1 acceleration"),
    ("random", {"center_fraction": [], "acceleration": []}, "at least one center_fraction"),
    ("random", {"seed": -1}, "0 <= seed < 2\\*\\*32, got -1"),
    ("random", {"seed": ""}, "want a file name as seed, got ''"),
    ("equispaced", {"acceleration": 4.5}, "use equispaced_fraction"),
    ("magic", {"acceleration": 4.5}, "use magic_fraction"),
    ("equispaced_fraction", {"n_columns": 1}, "sampled none of 1 columns"),
])
def test_refusals(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(name)(**{"n_columns": 320, "seed": 1, **settings})


INVERSEBENCH = [(320, 4, 0), (320, 8, 0), (320, 6, 3), (368, 6.5, 7), (45, 2, 1), (161, 4, 12345),
                (320, 1, 5)]  # fmt: skip


def by_the_rule(n: int, a: float, seed: int) -> set[int]:
    """The rule as the paper's code states it, with numpy's global stream."""
    share = 0.08 if 1 < a <= 6 else 0.04
    centre = int(np.floor(share * n))
    calibration = list(range((n - centre) // 2, (n + centre) // 2))
    others = np.setdiff1d(np.arange(n), calibration)
    before = np.random.get_state(legacy=False)
    np.random.seed(seed)
    chosen = np.random.choice(others, size=int(np.floor(n / a)) - centre, replace=False)
    np.random.set_state(before)
    return {*calibration, *chosen.tolist()}


def check_inversebench(draw: Callable[[int, float, int], Tensor]) -> None:
    for n, a, seed in INVERSEBENCH:
        mask = draw(n, a, seed)
        assert mask.shape == (n,)
        assert mask.dtype == torch.bool
        assert set(mask.nonzero().flatten().tolist()) == by_the_rule(n, a, seed)
        assert int(mask.sum()) == int(n / a)


def test_inversebench_by_its_rule() -> None:
    check_inversebench(masks.inversebench)


def test_inversebench_recorded() -> None:
    recorded = [digest(masks.inversebench(*case)) for case in INVERSEBENCH[:2]]
    assert recorded == ["93485bec9a6f", "85c467564bfc"]


@pytest.mark.parametrize("wrong", [
    lambda n, a, seed: masks.random(n, 0.08, a, seed),
    lambda n, a, seed: masks.inversebench(n, a, seed + 1),
    lambda n, a, seed: masks.inversebench(n, a, seed).flip(0),
])
def test_the_check_of_inversebench_catches(wrong: Callable[[int, float, int], Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_inversebench(wrong)


def outside(n: int, side: int) -> NDArray[np.float64]:
    start = (n - side + 1) // 2
    steps = np.array([max(start - i, i - (start + side - 1), 0) for i in range(n)], float)
    return steps / steps.max()


def drawn(shape: tuple[int, int], a: float, side: int, seed: int = 0) -> PoissonDisc:
    sites = np.hypot(outside(shape[0], side)[:, None], outside(shape[1], side)) > 0
    points = round(shape[0] * shape[1] / a) - side**2
    return variable_density(shape, points, (side, side), sites, RandomState(seed))


def on_the_grid(squared: float) -> int:
    """The largest square of a distance between grid points that is not above this one."""
    n = int(squared + 1e-9)
    while not any(round((n - i * i) ** 0.5) ** 2 == n - i * i for i in range(int(n**0.5) + 1)):
        n -= 1
    return n


def check_distances(result: PoissonDisc, side: int) -> None:
    """Every pair of points outside the calibration, one by one."""
    height, width = result.mask.shape
    rho = np.hypot(outside(height, side)[:, None], outside(width, side))
    at = np.argwhere(result.mask & (rho > 0))
    wanted = np.array([on_the_grid(result.distance[tuple(p)] ** 2) for p in at])
    assert wanted.max() >= 4  # else a mask of neighbours would pass
    for p, least in zip(at, wanted, strict=True):
        squared = ((at - p) ** 2).sum(1)
        limit = np.maximum(wanted, least)
        assert ((squared >= limit) | (squared == 0)).all()


def check_density(result: PoissonDisc, side: int) -> None:
    """Fuller near the centre, ring by ring, and never by less than a twentieth."""
    height, width = result.mask.shape
    rho = np.hypot(outside(height, side)[:, None], outside(width, side))
    edges = np.linspace(0, 1, 7)
    share = [result.mask[(rho > a) & (rho <= b)].mean() for a, b in itertools.pairwise(edges)]
    assert all(b < 0.95 * a for a, b in itertools.pairwise(share)), share


@pytest.mark.parametrize(("shape", "a", "side"), [
    ((128, 96), 4, 16), ((96, 128), 8, 12), ((101, 75), 12, 8), ((128, 128), 6, 0)])
def test_distances_and_density(shape: tuple[int, int], a: float, side: int) -> None:
    result = drawn(shape, a, side)
    check_distances(result, side)
    check_density(result, side)
    larger = result._replace(distance=1 + 1.3 * (result.distance - 1))
    with pytest.raises(AssertionError):  # the distance told is the one kept, not a lower bound
        check_distances(larger, side)


@pytest.mark.parametrize("wrong", ["random", "shifted", "one more"])
def test_the_check_of_distances_catches(wrong: str) -> None:
    result = drawn((128, 96), 4, 16)
    mask = result.mask.copy()
    if wrong == "random":
        mask = RandomState(0).uniform(size=mask.shape) < 0.25
    if wrong == "shifted":  # the right points with the distances of other places
        mask = np.roll(mask, 20, axis=0)
    if wrong == "one more":
        row, column = np.argwhere(mask)[-1]
        mask[row, column - 1] = True
    with pytest.raises(AssertionError):
        check_distances(result._replace(mask=mask), 16)


def test_the_check_of_density_catches_a_uniform_mask() -> None:
    result = drawn((128, 128), 4, 16)
    mask = RandomState(0).uniform(size=(128, 128)) < 0.25
    with pytest.raises(AssertionError):
        check_density(result._replace(mask=mask), 16)


@pytest.mark.parametrize(("shape", "acceleration", "calibration"), [
    ((320, 320), 4, 24), ((128, 96), 8, (24, 12)), ((101, 75), 12, 8), ((64, 64), 1.5, 0),
    ((16, 16), 3, 4), ((64, 96), 2, (64, 2)), ((40, 30), 1200 / 64, 8)])
def test_poisson_disc(shape: tuple[int, int], acceleration: float, calibration: Any) -> None:
    mask = masks.poisson_disc(shape, acceleration, calibration, seed=1)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert int(mask.sum()) == round(shape[0] * shape[1] / acceleration)
    sides = (calibration,) * 2 if isinstance(calibration, int) else calibration
    top, left = ((n - side + 1) // 2 for n, side in zip(shape, sides, strict=True))
    assert mask[top:top + sides[0], left:left + sides[1]].all()


def test_poisson_disc_by_seed() -> None:
    mask = masks.poisson_disc((64, 48), 4, 8, seed=KNEE)
    assert torch.equal(mask, masks.poisson_disc((64, 48), 4, (8, 8), seed=f"folder/{KNEE}"))
    assert digest(mask) == "1c6351fbfa4e"
    assert not torch.equal(mask, masks.poisson_disc((64, 48), 4, 8, seed=BRAIN))
    assert not torch.equal(masks.poisson_disc((64, 48), 4, 8), masks.poisson_disc((64, 48), 4, 8))


def test_poisson_disc_ellipse() -> None:
    row, column = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
    corner = ((row - 32) / 32) ** 2 + ((column - 24) / 24) ** 2 > 1
    whole = masks.poisson_disc((64, 48), 3, 8, seed=0, ellipse=False)
    cut = masks.poisson_disc((64, 48), 3, 8, seed=0)
    assert whole[corner].any()
    assert not cut[corner].any()
    assert whole.sum() == cut.sum()


@pytest.mark.parametrize(("settings", "message"), [
    ({"shape": (0, 8)}, "poisson_disc mask: want shape .H, W. of at least 1, got .0, 8."),
    ({"acceleration": 0.5}, "finite acceleration >= 1, got 0.5"),
    ({"acceleration": 200}, "asks for 20 of 4096 points, but the calibration takes 64"),
    ({"acceleration": 1.1}, "room for 3[0-9]+ more: change acceleration, calibration or ellipse"),
    ({"acceleration": 1e9, "calibration": 0}, "asks for 0 of 4096 points"),
    ({"calibration": (8, 65)}, "calibration <= \\(64, 64\\), got \\(8, 65\\)"),
    ({"calibration": -1}, "want 0 <= calibration"),
    ({"seed": -1}, "0 <= seed < 2\\*\\*32, got -1"),
])
def test_refusals_of_poisson_disc(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.poisson_disc(**{"shape": (64, 64), "calibration": 8, "seed": 0, **settings})


@pytest.mark.parametrize(("n", "acceleration", "message"), [
    (0, 4, "inversebench mask: want n_columns >= 1, got 0"),
    (320, 0.9, "finite acceleration >= 1"),
    (320, 50, "the centre takes 12 of 320 columns, acceleration 50 allows 6 in all: lower"),
    (3, 4, "takes 0 of 3 columns, acceleration 4 allows 0"),
])
def test_refusals_of_inversebench(n: int, acceleration: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.inversebench(n, acceleration, 0)
