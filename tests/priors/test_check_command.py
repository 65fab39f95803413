"""``recon check prior``: tables in words, images of every kind, exit codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.io import imsave


def test_the_shipped_prior(recon: Callable[..., Any]) -> None:
    ran = recon("check", "prior", "brain-mri")
    assert ran.code == 0, ran.out + ran.err
    assert "images: the packaged MR slice" in ran.out
    assert "nothing wrong found" in ran.out
    assert ran.out.count("ok  ") == 12


def test_images_of_files(recon: Callable[..., Any], tmp_path: Path) -> None:
    from recon.demo import shipped_slice

    slice_ = shipped_slice().numpy()[24:88, 16:80]
    np.save(tmp_path / "a.npy", slice_)
    ran = recon("check", "prior", "brain-mri", "--images", tmp_path / "a.npy")
    assert ran.code == 0, ran.out + ran.err
    (tmp_path / "pictures").mkdir()
    imsave(tmp_path / "pictures" / "0.png", (200 * np.clip(slice_, 0, 1)).astype(np.uint8),
           check_contrast=False)
    ran = recon("check", "prior", "brain-mri", "--images", tmp_path / "pictures")
    assert ran.code == 0, ran.out + ran.err
    noise = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "noise.npy", noise)
    ran = recon("check", "prior", "brain-mri", "--images", tmp_path / "noise.npy")
    assert ran.code == 1
    assert "FAIL noise: at noise" in ran.out
    assert "does not know such images" in ran.out


def test_refusals(recon: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "rgb.npy", np.zeros((2, 3, 32, 32), np.float32))
    np.save(tmp_path / "one.npy", np.ones((32, 32), np.float32))
    torch.save({"strange": torch.zeros(3)}, tmp_path / "x.pt")
    for arguments, told in [
        (("nothing",), "no prior 'nothing': want one of brain-mri"),
        (("brain-mri", "--images", tmp_path / "none"), "none: No such file or directory"),
        (("brain-mri", "--images", tmp_path / "rgb.npy"), "rgb.npy has images (2, 3, 32, 32)"),
        (("brain-mri", "--value-range", "0"),
         "--value-range wants normalised or LOW,HIGH, two numbers of which the first is the "
         "smaller, got '0'"),
        (("brain-mri", "--noise", "normalised"), "--noise wants linear, flow or LOW,HIGH, two"),
        (("brain-mri", "--noise", "0,50"), "--noise wants levels > 0, got '0,50'"),
        *((("brain-mri", "--images", tmp_path / "one.npy", "--image-range", ends),
           f"--image-range wants LOW,HIGH, two numbers of which the first is the smaller, got "
           f"'{ends}'") for ends in ("normalised", "1,1", "1,0", "0,nan", "0,inf", "0,1,2")),
        (("brain-mri", "--value-range", "0,1"), "says all about itself: leave value_range= out"),
        ((tmp_path / "x.pt", "--value-range", "-1,1", "--noise", "0.01,50"),
         "x.pt holds weights but not what they mean"),
    ]:
        ran = recon("check", "prior", *arguments)
        assert ran.code == 2, arguments
        assert told in ran.err
        assert ran.err.count("\n") == 1
