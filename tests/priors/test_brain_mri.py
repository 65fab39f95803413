"""The shipped prior on the shipped slice, of a person it was not trained on."""

import math

import pytest
import torch
from torch import Tensor

from recon import priors
from recon.demo import shipped_slice

# BM3D 4.0.3 with the true sigma, real and imaginary part alone, on exactly these images; it is not
# a dependency (non-commercial licence)
BM3D = {0.05: 31.90, 0.1: 28.15, 0.2: 24.55, 0.4: 21.28}


def image() -> Tensor:
    magnitude = shipped_slice()
    rows, columns = (torch.linspace(-1, 1, n) for n in magnitude.shape)
    phase = 0.4 + 0.9 * rows[:, None] - 0.5 * columns
    return torch.polar(magnitude, phase)[None, None]


def noisy(x0: Tensor, sigma: float) -> Tensor:
    n = torch.complex(*torch.randn(2, *x0.shape, generator=torch.Generator().manual_seed(0)))
    return x0 + sigma * n


def psnr(prior: priors.Prior, told: float = 1.0) -> dict[float, float]:
    """Per real number, peak one; the prior is told ``told`` times the true noise."""
    x0, found = image(), {}
    for sigma in BM3D:
        error = prior(noisy(x0, sigma), told * sigma) - x0
        found[sigma] = -10 * math.log10(float(error.abs().square().mean() / 2))
    return found


def check(found: dict[float, float]) -> None:
    gains = [found[sigma] - BM3D[sigma] for sigma in BM3D]
    assert sum(gains) / len(gains) >= 0.5, found


def test_it_denoises_better_than_bm3d() -> None:
    prior = priors.load("brain-mri")
    check(psnr(prior))
    with pytest.raises(AssertionError):
        check(psnr(prior, told=2.0))  # the wrong scale of sigma must not pass


def test_its_card_says_on_whom_it_was_trained() -> None:
    card = priors.card("brain-mri")
    assert card["people"] == 2
    assert card["steps"] > 0
    assert card["licence"]
