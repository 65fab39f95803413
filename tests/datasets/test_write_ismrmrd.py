"""Writing ISMRMRD: read back by ourselves, by the ISMRMRD package and by its programs."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.datasets import FormatError
from recon.datasets.ismrmrd import read_ismrmrd
from recon.datasets.ismrmrd_acquisitions import is_ismrmrd
from recon.datasets.write_ismrmrd import write_ismrmrd, write_ismrmrd_images
from tests.datasets.ismrmrd_files import (
    MATRIX,
    check_image,
    image,
    needs_tools,
    noise,
    reconstructed,
)

SHAPE = (3, 2, *MATRIX)
FOV = (60.0, 80.0, 4.0)


def test_package_reads_our_lines(tmp_path: Path) -> None:
    mrd = pytest.importorskip("ismrmrd", reason="the ISMRMRD package is not installed")
    kspace, ambient = noise(*SHAPE), noise(2, 40)
    mask = torch.arange(10) > 1
    write_ismrmrd(tmp_path / "a.h5", kspace, mask=mask, noise=ambient, recon_size=(6, 10))
    with mrd.Dataset(tmp_path / "a.h5", mode="r") as file:
        encoding = mrd.xsd.CreateFromDocument(file.read_xml_header()).encoding[0]
        count = file.number_of_acquisitions()
        read = [file.read_acquisition(i) for i in range(count)]
    assert (encoding.encodedSpace.matrixSize.x, encoding.reconSpace.matrixSize.x) == (12, 6)
    assert encoding.encodedSpace.fieldOfView_mm.x == 440
    assert encoding.encodingLimits.kspace_encoding_step_1.center == 5
    assert encoding.encodingLimits.slice.maximum == 2
    assert count == 1 + 3 * 8
    assert read[0].is_flag_set(mrd.ACQ_IS_NOISE_MEASUREMENT)
    assert np.array_equal(read[0].data, ambient)
    assert [a.is_flag_set(mrd.ACQ_LAST_IN_MEASUREMENT) for a in read] == [False] * 24 + [True]
    for number, found in enumerate(read[1:]):
        at, column = number // 8, 2 + number % 8
        assert (found.idx.slice, found.idx.kspace_encode_step_1) == (at, column)
        assert found.center_sample == 6
        assert list(found.position) == [0, 0, 5 * (at - 1)]
        assert list(found.channel_mask) == [3] + [0] * 15
        assert found.is_flag_set(mrd.ACQ_FIRST_IN_SLICE) == (column == 2)
        assert found.is_flag_set(mrd.ACQ_LAST_IN_SLICE) == (column == 9)
        assert np.array_equal(found.data, kspace[at, ..., column])


@needs_tools
def test_program_reconstructs_what_we_write(tmp_path: Path) -> None:
    kspace = noise(1, 3, 24, 16)
    write_ismrmrd(tmp_path / "a.h5", kspace, recon_size=(12, 16))
    expected = reconstructed(tmp_path / "a.h5")
    rss = math.sqrt(24 * 16) * image(kspace)[0, :, 6:18].abs().square().sum(0).sqrt().T
    check_image(rss, expected)
    ours = image(read_ismrmrd(tmp_path / "a.h5").kspace)[0].abs().square().sum(0).sqrt().T
    check_image(math.sqrt(24 * 16) * ours, expected)


@pytest.mark.parametrize("size", [(12, 10), (9, 7), (8, 8)])
@pytest.mark.parametrize("undersampled", [False, True])
def test_round_trip(tmp_path: Path, size: tuple[int, int], undersampled: bool) -> None:
    kspace, ambient = noise(2, 3, *size), noise(3, 40000, seed=3)
    mask = torch.arange(size[1]) % 3 != 1 if undersampled else None
    write_ismrmrd(tmp_path / "a.h5", kspace, mask=mask, noise=ambient,
                  recon_size=(size[0], size[1] - 2), field_of_view_mm=(180, 90, 3))  # fmt: skip
    scan = read_ismrmrd(tmp_path / "a.h5")
    if mask is None:
        assert scan.mask is None
        assert torch.equal(scan.kspace, kspace)
    else:
        assert scan.mask is not None
        assert torch.equal(scan.mask, mask)
        assert torch.equal(scan.kspace, torch.where(mask, kspace, 0))
    assert (scan.kind, scan.name) == ("ismrmrd", "a.h5")
    assert scan.crop == (size[0], size[1] - 2)
    assert scan.attributes["note"] == "noise covariance from 40000 samples"
    assert scan.attributes["pixel_x_mm"] == pytest.approx(180 / size[0])
    assert scan.attributes["pixel_y_mm"] == pytest.approx(90 / (size[1] - 2))
    torch.testing.assert_close(scan.noise_covariance, ambient @ ambient.mH / 40000)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kspace": torch.zeros(*SHAPE)}, r"want complex \(slices, coils, H, W\), got float32"),
        ({"kspace": noise(2, 12, 10)}, "want complex"),
        ({"kspace": noise(1, 2, 12, 10) * math.nan}, "slice 0 holds NaN or infinity"),
        ({"mask": torch.ones(9, dtype=torch.bool)}, r"want a bool mask \(10,\)"),
        ({"mask": torch.zeros(10, dtype=torch.bool)}, "samples nothing"),
        ({"noise": noise(3, 5)}, r"noise: want finite complex \(2, samples\), got complex64"),
        ({"noise": noise(2, 5).real}, r"noise: want finite complex \(2, samples\), got float32"),
        ({"noise": noise(2, 5) * math.nan}, "noise: want finite complex"),
        ({"recon_size": (13, 10)}, "want a recon_size within"),
        ({"field_of_view_mm": (0.0, 1.0, 1.0)}, "want three lengths in mm"),
    ],
)
def test_bad_arguments_of_the_writer(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    kspace = change.pop("kspace", None)
    with pytest.raises(ValueError, match=match):
        write_ismrmrd(tmp_path / "a.h5", noise(*SHAPE) if kspace is None else kspace, **change)
    assert not list(tmp_path.iterdir())


def test_writers_replace_only_when_told(tmp_path: Path) -> None:
    raw, images = tmp_path / "a.h5", tmp_path / "b.h5"
    write_ismrmrd(raw, noise(*SHAPE))
    write_ismrmrd_images(images, noise(3, 6, 8), field_of_view_mm=FOV)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write_ismrmrd(raw, noise(*SHAPE))
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write_ismrmrd_images(images, noise(3, 6, 8), field_of_view_mm=FOV)
    write_ismrmrd(raw, noise(*SHAPE), overwrite=True)
    write_ismrmrd_images(images, noise(3, 6, 8), field_of_view_mm=FOV, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


# Images


@pytest.mark.parametrize(
    ("images", "dtype", "kind"),
    [
        (noise(3, 6, 8).abs(), np.float32, 1),
        (noise(3, 6, 8).real, np.float32, 3),
        (noise(3, 6, 8), np.complex64, 5),
        (noise(3, 6, 8).real.double().numpy(), np.float32, 3),
    ],
)
def test_package_reads_our_images(tmp_path: Path, images: Any, dtype: type, kind: int) -> None:
    mrd = pytest.importorskip("ismrmrd", reason="the ISMRMRD package is not installed")
    write_ismrmrd_images(tmp_path / "a.h5", images, field_of_view_mm=FOV)
    with mrd.Dataset(tmp_path / "a.h5", mode="r") as file:
        assert file.number_of_images("image_0") == 3
        mrd.xsd.CreateFromDocument(file.read_xml_header())
        read = [file.read_image("image_0", i) for i in range(3)]
    for at, found in enumerate(read):
        assert found.data.dtype == dtype
        assert found.data.shape == (1, 1, 8, 6)  # channel, z, y, x
        assert np.array_equal(found.data[0, 0].T, np.asarray(images[at], dtype))
        assert list(found.matrix_size) == [6, 8, 1]
        assert list(found.field_of_view) == [60, 80, 4]
        assert list(found.position) == [0, 0, 4 * (at - 1)]
        assert [list(d) for d in (found.read_dir, found.phase_dir, found.slice_dir)] == \
            np.eye(3).tolist()  # fmt: skip
        assert (found.image_type, found.image_series_index) == (kind, 0)
        assert (found.image_index, found.slice) == (at + 1, at)


def check_geometry(heads: Any, affine: Tensor, shape: tuple[int, ...]) -> None:
    """A pixel lies at ``position + (x - (h - 1) / 2) dx read_dir + (y - ...) dy phase_dir``."""
    count, h, w = shape
    for at in range(count):
        head = heads[at]
        dx, dy, _ = head["field_of_view"] / (h, w, 1)
        for x, y in ((0, 0), (h - 1, 0), (2, w - 1)):
            where = (head["position"] + (x - (h - 1) / 2) * dx * head["read_dir"]
                     + (y - (w - 1) / 2) * dy * head["phase_dir"])  # fmt: skip
            want = affine @ torch.tensor([at, x, y, 1], dtype=torch.float64)
            np.testing.assert_allclose(where, want[:3], atol=1e-4)
        np.testing.assert_allclose(head["slice_dir"] @ head["read_dir"], 0, atol=1e-6)


def test_geometry_of_an_oblique_stack(tmp_path: Path) -> None:
    turn, _ = torch.linalg.qr(noise(3, 3).real.double())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn * torch.tensor([4.0, 1.5, 0.8], dtype=torch.float64)
    affine[:3, 3] = torch.tensor([-30.0, 12.0, 55.0])
    images = noise(3, 6, 8).abs()
    write_ismrmrd_images(tmp_path / "a.h5", images, affine=affine)
    with h5py.File(tmp_path / "a.h5") as file:
        heads = file["dataset/image_0/header"][()]
    check_geometry(heads, affine, (3, 6, 8))
    np.testing.assert_allclose(heads["field_of_view"], [[9, 6.4, 4]] * 3, rtol=1e-6)
    np.testing.assert_allclose(heads["slice_dir"] @ turn[:, 0].numpy(), 1, rtol=1e-6)
    for fault in ("read_dir", "position"):
        wrong = heads.copy()
        wrong[fault] = heads["phase_dir"] if fault == "read_dir" else heads[fault] + 0.4
        with pytest.raises(AssertionError):
            check_geometry(wrong, affine, (3, 6, 8))


@pytest.mark.parametrize(
    ("images", "change", "match"),
    [
        (noise(3, 6, 8), {}, "want one of affine and field_of_view_mm"),
        (noise(3, 6, 8), {"affine": torch.eye(4), "field_of_view_mm": FOV}, "want one of affine"),
        (noise(6, 8), {"field_of_view_mm": FOV}, r"want \(slices, h, w\)"),
        (noise(3, 6, 8) * math.inf, {"field_of_view_mm": FOV}, "slice 0 holds NaN or infinity"),
        (noise(3, 6, 8), {"affine": torch.zeros(4, 4)}, "want rows and columns at right angles"),
        (noise(3, 6, 8), {"affine": torch.ones(4, 4)}, "want rows and columns at right angles"),
        (noise(3, 6, 8), {"affine": torch.eye(3)}, r"want a finite affine \(4, 4\)"),
        (noise(3, 6, 8), {"field_of_view_mm": (1, math.nan, 1)}, "want three lengths in mm"),
    ],
)
def test_bad_images(tmp_path: Path, images: Tensor, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write_ismrmrd_images(tmp_path / "a.h5", images, **change)
    assert not list(tmp_path.iterdir())


def test_images_are_no_raw_data(tmp_path: Path) -> None:
    write_ismrmrd_images(tmp_path / "a.h5", noise(3, 6, 8), field_of_view_mm=FOV)
    with h5py.File(tmp_path / "a.h5") as file:
        assert is_ismrmrd(file)
    with pytest.raises(FormatError, match=r"no acquisitions \(`data`\) but image_0, xml: recon"):
        read_ismrmrd(tmp_path / "a.h5")
