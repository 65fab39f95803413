"""Sampling masks, to the bit, against recorded draws of fastMRI 0.3.0."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators.mri import masks

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
