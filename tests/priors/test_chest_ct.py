"""The shipped CT prior on a slice of a person it was not trained on, and on a made-up body."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from recon import datasets, metrics, priors, reconstruct
from recon.operators.ct import ParallelBeamCT

CT = Path(__file__).parents[3] / "shared" / "data" / "ct" / "upper_abdomen_dicom"
# BM3D 4.0.3 with the true sigma on exactly these images; it is not a dependency (non-commercial
# licence)
BM3D = {0.05: 35.57, 0.1: 31.77, 0.2: 28.45, 0.4: 25.39}


def image() -> Tensor:
    """The upper abdomen at 2 mm, water 0.57, ``(1, 160, 192)``."""
    hu = datasets.open(CT, slice(10, 11)).values
    fine = 0.57 * (1 + hu / 1000).clamp(0, 3)
    return avg_pool2d(fine[None], 2)[0, :, 40:200, 32:224]


def psnr(denoise: priors.Prior, x0: Tensor, told: float = 1.0) -> dict[float, float]:
    """Peak one; the prior is told ``told`` times the true noise."""
    found = {}
    for sigma in BM3D:
        n = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        error = denoise(x0 + sigma * n, told * sigma) - x0
        found[sigma] = -10 * math.log10(float(error.square().mean()))
    return found


@pytest.mark.skipif(not CT.is_dir(), reason="the shared CT volumes are not here")
def test_it_denoises_better_than_bm3d() -> None:
    prior, x0 = priors.load("chest-ct"), image()

    def check(found: dict[float, float]) -> None:
        gains = [found[sigma] - BM3D[sigma] for sigma in BM3D]
        assert sum(gains) / len(gains) >= 0.5, found

    check(psnr(prior, x0))
    with pytest.raises(AssertionError):
        check(psnr(prior, x0, told=2.0))  # the wrong scale of sigma must not pass


def body() -> Tensor:
    """Attenuation of a made-up body in 1/mm, ``(1, 64, 64)``."""
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, 64)] * 2, indexing="ij")
    hu = torch.where((u / 0.85).square() + (v / 0.65).square() < 1, 40.0, -1000.0)
    for side in (-0.42, 0.42):
        hu[((u - side) / 0.3).square() + (v / 0.45).square() < 1] = -800.0
    hu[u.square() + (v - 0.45).square() < 0.015] = 700.0
    return metrics.hu_to_mu(hu)[None]


def test_reconstruct_finds_its_scale() -> None:
    truth = body()
    angles = torch.arange(20) * (math.pi / 20)
    A = ParallelBeamCT((64, 64), angles, 95, 0.0, 6.0, 6.0)
    y = A(truth)
    y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    prior = priors.load("chest-ct")
    scores: dict[float | None, float] = {}
    for scale in (None, 10.0):
        found = reconstruct(y, A, prior, "dds", noise_std=0.01, steps=15, scale=scale)
        scores[scale] = float(metrics.psnr(found.mean[0], truth[0]))
    plain = max(float(metrics.psnr(A.solve_cg(A.adjoint(y), 0.0, max_iter=n).x[0], truth[0]))
                for n in (5, 10, 20))
    assert scores[None] > plain + 2
    assert scores[10.0] < scores[None] - 3  # a prior of another unit is of no use


def test_its_card_says_on_whom_it_was_trained() -> None:
    card = priors.card("chest-ct")
    assert card["trained_on"]["subjects"] == 3
    assert card["trained_on"]["names"] == ["abdomen_pelvis.nii.gz", "lung1.nii.gz",
                                           "thorax_cta.nii.gz"]
    assert card["held_out"]["names"] == ["upper_abdomen_dicom"]
    assert "-1000 to 2000" in card["units"]
    assert "Apache-2.0" in card["note"]
    prior = priors.load("chest-ct")
    assert (prior.channels, prior.is_complex, prior.normalised) == (1, False, True)
    folder = Path(priors.__file__).parent / "pretrained"
    assert (folder / "chest-ct.safetensors").stat().st_size <= 12e6
