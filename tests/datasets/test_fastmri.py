"""fastMRI's HDF5 layout: values, masks, headers, and every damaged file users have met."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError
from recon.datasets.fastmri import fully_sampled
from recon.datasets.write import write_submission

SHAPE = (3, 2, 12, 10)
HEADER = "ismrmrd_header"
SIGNALLING = np.uint64(0x7FF0000000000001).view(np.float64)  # a NaN that numpy warns of when cast


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-5 * torch.randn(*shape, dtype=torch.complex64, generator=generator)


def header(encoded: tuple[int, int] = (12, 10), recon: tuple[int, int] = (6, 6), centre: int = 5,
           last: int = 9, prefix: str = "") -> str:  # fmt: skip
    xmlns = f'xmlns{":" if prefix else ""}{prefix}="http://www.ismrm.org/ISMRMRD"'
    p = f"{prefix}:" if prefix else ""
    sizes = "".join(
        f"<{p}{name}><{p}matrixSize><{p}x>{x}</{p}x><{p}y>{y}</{p}y><{p}z>1</{p}z></{p}matrixSize>"
        f"</{p}{name}>"
        for name, (x, y) in (("encodedSpace", encoded), ("reconSpace", recon))
    )
    step = "kspace_encoding_step_1"
    return (
        f"<{p}ismrmrdHeader {xmlns}><{p}encoding>{sizes}<{p}encodingLimits><{p}{step}>"
        f"<{p}maximum>{last}</{p}maximum><{p}center>{centre}</{p}center>"
        f"</{p}{step}></{p}encodingLimits></{p}encoding></{p}ismrmrdHeader>"
    )


def save(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def column_mask(width: int = 10) -> Tensor:
    mask = torch.zeros(width, dtype=torch.bool)
    mask[[1, 4, 5, 6, 8]] = True
    return mask


# Round trips


def test_training_file_round_trip(tmp_path: Path) -> None:
    kspace, path = noise(*SHAPE), tmp_path / "file1000000.h5"
    datasets.write_fastmri(path, kspace, recon_size=(6, 4))
    scan = datasets.open(path)
    assert torch.equal(scan.kspace, kspace)
    assert scan.mask is None
    assert (scan.kind, scan.name, scan.crop) == ("fastmri_multicoil", path.name, (6, 4))
    assert scan.attributes["acquisition"] == "AXT2"
    assert (scan.attributes["encoded_x"], scan.attributes["encoded_y"]) == (12, 10)
    assert scan.attributes["pixel_x_mm"] == pytest.approx(220 / 6)
    assert scan.reference is not None
    assert scan.attributes["max"] == pytest.approx(float(scan.reference.max()))
    assert "note" not in scan.attributes
    with h5py.File(path) as file:  # the published layout
        assert set(file) == {"kspace", "reconstruction_rss", HEADER}
        assert file["kspace"].dtype == np.complex64
        assert file["reconstruction_rss"].dtype == np.float32
        assert set(file.attrs) == {"acquisition", "max", "norm", "patient_id"}


def test_target_of_a_point_lies_where_fastmri_puts_it(tmp_path: Path) -> None:
    """Constant k-space is a point at n // 2; cutting 6 to 3 from (6 - 3) // 2 leaves it at 2."""
    kspace = torch.ones(1, 4, 6, 6, dtype=torch.complex64)
    datasets.write_fastmri(tmp_path / "a.h5", kspace, recon_size=(3, 3))
    reference = datasets.open(tmp_path / "a.h5").reference
    assert reference is not None
    want = torch.zeros(3, 3)
    want[2, 2] = 6 * 2  # sqrt(36 pixels) of the orthonormal transform, sqrt(4 coils)
    torch.testing.assert_close(reference[0], want)
    image = torch.zeros(6, 6)
    image[3, 3] = 12
    bart_rule = image[6 // 2 - 3 // 2 :, 6 // 2 - 3 // 2 :][:3, :3]  # the planted fault
    assert not torch.equal(bart_rule, want)


def test_test_file_round_trip(tmp_path: Path) -> None:
    mask = column_mask()
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE), mask=mask)
    scan = datasets.open(tmp_path / "a.h5")
    assert scan.mask is not None
    assert torch.equal(scan.mask, mask)
    assert scan.reference is None
    assert torch.equal(scan.kspace, torch.where(mask, noise(*SHAPE), 0))
    assert (scan.attributes["acceleration"], scan.attributes["num_low_frequency"]) == (2, 3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"kspace", "mask", HEADER}


def test_single_coil_has_one_coil_and_its_own_target(tmp_path: Path) -> None:
    datasets.write_fastmri(tmp_path / "a.h5", noise(3, 12, 10))
    scan = datasets.open(tmp_path / "a.h5")
    assert torch.equal(scan.kspace, noise(3, 12, 10)[:, None])
    assert scan.kind == "fastmri_singlecoil"
    with h5py.File(tmp_path / "a.h5") as file:
        assert "reconstruction_esc" in file
    path = save(tmp_path / "b.h5", kspace=noise(3, 12, 10), reconstruction_rss=np.ones((3, 6, 6)))
    scan = datasets.open(path)
    assert scan.reference is not None
    assert "reconstruction_rss, of all coils" in str(scan.attributes["note"])


@pytest.mark.parametrize("chosen", [slice(1, 2), slice(None, None, 2), slice(-1, None)])
def test_slices(tmp_path: Path, chosen: slice) -> None:
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE))
    whole, part = datasets.open(tmp_path / "a.h5"), datasets.open(tmp_path / "a.h5", chosen)
    assert torch.equal(part.kspace, whole.kspace[chosen])
    assert whole.reference is not None
    assert part.reference is not None
    assert torch.equal(part.reference, whole.reference[chosen])


def test_slices_not_asked_for_are_not_read(tmp_path: Path) -> None:
    """A damaged compressed slice stops only those who read it."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("kspace", data=noise(*SHAPE), chunks=(1, 2, 12, 10),
                                   compression="gzip")  # fmt: skip
        offset = data.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\0" * 40
    path.write_bytes(content)
    assert torch.equal(datasets.open(path, slice(0, 2)).kspace, noise(*SHAPE)[:2])
    assert datasets.describe(path)["slices"] == 3
    with pytest.raises(FormatError, match=r"a\.h5: kspace: cannot be read, the file is damaged"):
        datasets.open(path)


@pytest.mark.parametrize(
    ("chosen", "error", "match"),
    [
        (2, TypeError, "want slice"),
        (slice(9, None), ValueError, "none of the 3 slices"),
        (slice(None, None, -1), ValueError, "positive step"),
    ],
)
def test_bad_slices(tmp_path: Path, chosen: Any, error: type[Exception], match: str) -> None:
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE))
    with pytest.raises(error, match=match):
        datasets.open(tmp_path / "a.h5", chosen)


# Masks


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(10,), (1, 10), (1, 1, 10, 1)])
def test_masks_of_any_dtype_and_layout(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    mask = column_mask()
    kspace = torch.where(mask, noise(*SHAPE), 0)
    path = save(tmp_path / "a.h5", kspace=kspace, mask=mask.numpy().astype(dtype).reshape(shape))
    scan = datasets.open(path)
    assert scan.mask is not None
    assert torch.equal(scan.mask, mask)


def test_float_mask_within_tolerance_is_rounded(tmp_path: Path) -> None:
    mask = column_mask()
    rough = mask.numpy() * 0.9996 + ~mask.numpy() * 0.0004
    scan = datasets.open(save(tmp_path / "a.h5", kspace=noise(*SHAPE), mask=rough))
    assert scan.mask is not None
    assert torch.equal(scan.mask, mask)
    assert not np.array_equal(rough != 0, mask)  # the planted fault: `!= 0` samples everything


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.full(10, 0.99), r"a\.h5: mask: want zeros and ones, got 0\.99"),
        (np.full(10, np.nan), "want zeros and ones, got nan"),
        (np.ones(8), "has 8 columns but the k-space has 12 rows and 10 columns"),
        (np.ones((10, 12)), r"has shape \(10, 12\)"),
        (np.ones((12, 1)), r"has shape \(12, 1\)"),
        (np.zeros(10), "samples nothing"),
        (np.ones(10, np.complex64), "got values of complex64"),
    ],
)
def test_bad_masks(tmp_path: Path, mask: Any, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        datasets.open(save(tmp_path / "a.h5", kspace=noise(*SHAPE), mask=mask))


def test_two_dimensional_mask(tmp_path: Path) -> None:
    mask = torch.rand(12, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    scan = datasets.open(save(tmp_path / "a.h5", kspace=noise(*SHAPE), mask=mask))
    assert scan.mask is not None
    assert torch.equal(scan.mask, mask)
    assert torch.equal(scan.kspace, torch.where(mask, noise(*SHAPE), 0))
    assert "set to zero" in str(scan.attributes["note"])


def test_unsampled_zeros_carry_no_sign(tmp_path: Path) -> None:
    kspace = noise(*SHAPE) * column_mask()  # by multiplication: leaves the signs
    assert bool(torch.signbit(kspace.real[..., 0]).any())
    for arrays in ({"mask": column_mask()}, {}):
        scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace, **arrays))
        assert not bool(torch.signbit(torch.view_as_real(scan.kspace)[..., 0, :]).any())


def test_zero_columns_without_a_mask_become_one(tmp_path: Path) -> None:
    kspace = torch.where(column_mask(), noise(*SHAPE), 0)
    kspace[:, 0, :, 4] = 0  # one coil alone is no missing column
    scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace))
    assert scan.mask is not None
    assert torch.equal(scan.mask, column_mask())
    assert "5 of 10 columns are not zero" in str(scan.attributes["note"])
    of_every_coil = (kspace != 0).all(0).all(0).all(0)  # the planted fault
    assert not torch.equal(of_every_coil, column_mask())


@pytest.mark.parametrize("sampled", [(1, 3, 4, 5, 6, 8), (3, 4, 5, 6), (2, 7)])
def test_training_data_already_masked_are_reported(
    tmp_path: Path, sampled: tuple[int, ...]
) -> None:
    """SNU challenge: of columns 2 to 7, which were acquired, how many are there?"""
    kspace = torch.zeros(SHAPE, dtype=torch.complex64)
    kspace[..., sampled] = noise(*SHAPE)[..., sampled]
    path = save(tmp_path / "a.h5", kspace=kspace, **{HEADER: header(centre=3, last=5)})
    scan, about = datasets.open(path), datasets.describe(path)
    inside = sum(2 <= column <= 7 for column in sampled)
    centre = 0 if 5 not in sampled else 4
    assert not fully_sampled(scan)
    note = str(scan.attributes["note"])
    assert f"{len(sampled)} of 10 columns are not zero" in note
    assert (f"{inside / 6:.3g} of what was acquired is there, {centre} columns about the centre"
            in note)  # fmt: skip
    assert about["acs_width"] == centre
    of_the_whole_width = len(sampled) / 10  # the planted fault: padding counts as missing
    assert f"{of_the_whole_width:.3g} of what was acquired" not in note


def test_padding_alone_is_no_undersampling(tmp_path: Path) -> None:
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE), padding=(1, 8))
    scan = datasets.open(tmp_path / "a.h5")
    assert scan.mask is not None
    assert scan.mask.nonzero().flatten().tolist() == list(range(1, 8))
    assert "the others are padding" in str(scan.attributes["note"])
    assert "of what was acquired" not in str(scan.attributes["note"])
    assert fully_sampled(scan)
    cropped = {**scan.attributes, "encoded_y": 20}  # its header speaks of other columns
    assert not fully_sampled(scan._replace(attributes=cropped))
    assert not fully_sampled(scan._replace(attributes={}))
    assert fully_sampled(scan._replace(mask=None))


def test_points_without_a_mask_become_one(tmp_path: Path) -> None:
    """Undersampled in both directions, no column is empty: by columns nothing would be missing."""
    points = torch.rand(12, 10, generator=torch.Generator().manual_seed(2)) < 0.6
    kspace = torch.where(points, noise(*SHAPE), 0)
    assert bool((kspace != 0).any(-2).all())  # the planted fault: a mask of columns is full
    scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace))
    assert scan.mask is not None
    assert torch.equal(scan.mask, points)
    assert f"{int(points.sum())} of 120 points are not zero" in str(scan.attributes["note"])


def test_slices_undersampled_each_in_its_way(tmp_path: Path) -> None:
    """Taken together no column is empty, and zeros would pass for measurements."""
    masks = (torch.arange(10) + torch.arange(3).view(3, 1, 1, 1)) % 3 != 0
    kspace = torch.where(masks, noise(*SHAPE), 0)
    assert bool((kspace != 0).flatten(0, 2).any(0).all())  # the planted fault: all slices at once
    path = save(tmp_path / "a.h5", kspace=kspace)
    with pytest.raises(FormatError, match="kspace: slices have zeros at different points"):
        datasets.open(path)
    for i in range(3):
        mask = datasets.open(path, slice(i, i + 1)).mask
        assert mask is not None
        assert torch.equal(mask, masks[i].flatten())
    kspace = torch.where(masks[:1], noise(*SHAPE), 0)
    kspace[1] = 0  # an empty slice says nothing of columns
    mask = datasets.open(save(tmp_path / "b.h5", kspace=kspace)).mask
    assert mask is not None
    assert torch.equal(mask, masks[0].flatten())


def test_zero_rows_are_readout_padding(tmp_path: Path) -> None:
    """GE without oversampling, padded along the readout: a band limit, not missing data."""
    kspace = noise(*SHAPE)
    kspace[:, :, :2] = kspace[:, :, -2:] = 0
    scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace))
    assert scan.mask is None
    assert "4 of 12 rows are zero" in str(scan.attributes["note"])
    scan = datasets.open(save(tmp_path / "b.h5", kspace=torch.where(column_mask(), kspace, 0)))
    assert scan.mask is not None
    assert torch.equal(scan.mask, column_mask())


def test_empty_columns_in_the_mask_are_reported(tmp_path: Path) -> None:
    """The mask of another k-space, or of none: zeros would count as measurements unsaid."""
    kspace = torch.where(column_mask(), noise(*SHAPE), 0)
    scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace, mask=np.ones(10)))
    assert "5 columns sampled by the mask hold nothing but zeros" in str(scan.attributes["note"])
    scan = datasets.open(save(tmp_path / "b.h5", kspace=kspace, mask=column_mask()))
    assert "hold nothing" not in str(scan.attributes["note"])


def test_padded_columns_leave_the_mask(tmp_path: Path) -> None:
    """centre 3, maximum 5 of 10 columns: acquired are 10 // 2 - 3 = 2 up to 2 + 5 = 7."""
    kspace = noise(*SHAPE)
    kspace[..., :2] = kspace[..., 8:] = 0
    arrays = {"kspace": kspace, "mask": np.ones(10), HEADER: header(centre=3, last=5)}
    scan = datasets.open(save(tmp_path / "a.h5", **arrays))
    assert scan.mask is not None
    assert scan.mask.nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert (scan.attributes["padding_left"], scan.attributes["padding_right"]) == (2, 8)
    # Zero inside the acquired range stays sampled; signal outside is believed.
    kspace[..., 3] = 0
    kspace[..., 0] = 1e-6
    scan = datasets.open(save(tmp_path / "b.h5", **arrays))
    assert scan.mask is not None
    assert scan.mask.nonzero().flatten().tolist() == [0, 2, 3, 4, 5, 6, 7]
    # A header of another width says nothing about these columns.
    arrays[HEADER] = header(encoded=(12, 20), centre=3, last=5)
    scan = datasets.open(save(tmp_path / "c.h5", **arrays))
    assert scan.mask is not None
    assert bool(scan.mask.all())


@pytest.mark.parametrize("single", [False, True])
def test_writer_padding_is_read_back(tmp_path: Path, single: bool) -> None:
    """Single-coil files too, where fastMRI's own reader clears the whole mask."""
    kspace, mask = noise(*SHAPE), torch.ones(10, dtype=torch.bool)
    kspace = kspace[:, 0] if single else kspace
    datasets.write_fastmri(tmp_path / "a.h5", kspace, mask=mask, padding=(1, 8))
    scan = datasets.open(tmp_path / "a.h5")
    assert scan.mask is not None
    assert scan.mask.nonzero().flatten().tolist() == list(range(1, 8))


# Header and crop


@pytest.mark.parametrize(
    "raw",
    [
        header(),
        header(prefix="ns0"),
        np.bytes_(header().encode()),
        np.void(header().encode()),
        np.array([header().encode()], dtype="S"),
    ],
)
def test_header_in_every_storage(tmp_path: Path, raw: Any) -> None:
    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), **{HEADER: raw})
    scan = datasets.open(path)
    assert scan.crop == (6, 6)
    assert "note" not in scan.attributes


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ismrmrdHeader>&b;</ismrmrdHeader>'


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (BOMB, r"a\.h5: ismrmrd_header: .*DOCTYPE"),
        (('<?xml version="1.0" encoding="utf-16"?>' + BOMB).encode("utf-16"), "DOCTYPE"),
        (b"<ismrmrdHeader><", "not a readable XML header"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "not a readable XML header"),
        (b"<a>" + b" " * (1 << 20) + b"</a>", "too large"),
        (np.array([b"<a/>", b"<a/>"]), r"want one XML text, got shape \(2,\)"),
        (7, "want XML text"),
        (header(centre=-3), "encodingLimits/kspace_encoding_step_1/center: want a number"),
        (header().replace("<x>12</x>", "<x>1e999</x>"), "encodedSpace/matrixSize/x: want a number"),
        (header().replace("<x>12</x>", "<x>12.5</x>"), "matrixSize/x: want a whole number, got 12"),
        (header().replace("<x>12</x>", "<x/>"), "matrixSize/x: want a number, got None"),
    ],
)
def test_bad_headers(raw: Any, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        datasets.parse_header("folder/a.h5", raw)


M4RAW = (
    '<ns0:ismrmrdHeader xmlns:ns0="http://www.ismrm.org/ISMRMRD">'
    "<ns0:measurementInformation><ns0:repetitionInformation>2</ns0:repetitionInformation>"
    "</ns0:measurementInformation><ns0:sequenceParameters><ns0:echo_spacing>N/A</ns0:echo_spacing>"
    "</ns0:sequenceParameters><ns0:encoding><ns0:encodedSpace><ns0:matrixSize><ns0:x>12</ns0:x>"
    "<ns0:y>10</ns0:y></ns0:matrixSize></ns0:encodedSpace></ns0:encoding></ns0:ismrmrdHeader>"
)


def test_m4raw_header(tmp_path: Path) -> None:
    """Unknown elements and missing ones, which ISMRMRD's own schema refuses."""
    assert datasets.parse_header("a.h5", M4RAW) == datasets.Header((12, 10, 1))
    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), **{HEADER: M4RAW})
    assert datasets.open(path).crop is None


def test_the_first_encoding_counts() -> None:
    """fastMRI's reader takes the first match in the document; so do we, in an encoding only."""
    space = "<encodedSpace><matrixSize><x>{}</x><y>10</y></matrixSize></encodedSpace>"
    two = "".join(f"<encoding>{space.format(x)}</encoding>" for x in (12, 99))
    text = f"<ismrmrdHeader>{space.format(7)}{two}</ismrmrdHeader>"
    assert datasets.parse_header("a.h5", text).encoded_size == (12, 10, 1)


@pytest.mark.parametrize("width", [10, 11])
@pytest.mark.parametrize(("centre", "last"), [(5, 9), (3, 5), (2, 7), (5, 10), (0, 4)])
def test_padding_by_hand(tmp_path: Path, width: int, centre: int, last: int) -> None:
    """Column ``centre`` of the acquired ones lies at ``width // 2``, odd widths too."""
    left = 5 - centre
    text = header(encoded=(12, width), centre=centre, last=last)
    assert datasets.parse_header("a.h5", text).padding == (left, left + last + 1)
    path = save(tmp_path / "a.h5", kspace=noise(3, 2, 12, width), **{HEADER: text})
    attributes = datasets.open(path).attributes
    assert (attributes["padding_left"], attributes["padding_right"]) == (left, left + last + 1)


def test_a_header_of_more_slices_than_the_file(tmp_path: Path) -> None:
    """The brain release is a part of what was scanned: the array says how many slices."""
    limits = "<encodingLimits><slice><minimum>0</minimum><maximum>31</maximum></slice>"
    text = header().replace("<encodingLimits>", limits)
    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), **{HEADER: text})
    assert len(datasets.open(path).kspace) == datasets.describe(path)["slices"] == 3


def test_half_the_readout_is_not_swapped(tmp_path: Path) -> None:
    """Oversampling removed from a square encoding: W equals the readout, and the phase encoding."""
    text = header(encoded=(12, 12))
    path = save(tmp_path / "a.h5", kspace=noise(3, 2, 6, 12), **{HEADER: text})
    assert "k-space is 6 x 12, the header says 12 x 12" in str(datasets.open(path).attributes)


def test_pixels_are_those_of_the_kspace(tmp_path: Path) -> None:
    """The scanner interpolated 12 x 10 to 24 x 20 pixels; the k-space still gives 12 x 10."""
    fov = "<fieldOfView_mm><x>{}</x><y>{}</y><z>5</z></fieldOfView_mm></{}>"
    text = header(recon=(24, 20))
    for space in ("encodedSpace", "reconSpace"):
        text = text.replace(f"</{space}>", fov.format(240, 220, space))
    scan = datasets.open(save(tmp_path / "a.h5", kspace=noise(*SHAPE), **{HEADER: text}))
    assert (scan.attributes["pixel_x_mm"], scan.attributes["pixel_y_mm"]) == (20.0, 22.0)
    assert "pixels along x are 20 mm by the encoded space, 10 mm" in str(scan.attributes["note"])
    assert scan.crop == (10, 10)


def test_swapped_axes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", kspace=noise(3, 2, 10, 12), **{HEADER: header()})
    with pytest.raises(FormatError, match=r"kspace: last axes \(10, 12\) are swapped"):
        datasets.open(path)


def test_crop_rules(tmp_path: Path) -> None:
    def crop(name: str, **arrays: Any) -> tuple[int, int] | None:
        return datasets.open(save(tmp_path / name, kspace=noise(*SHAPE), **arrays)).crop

    assert crop("none.h5") is None
    assert crop("narrow.h5", **{HEADER: header(recon=(12, 11))}) == (10, 10)  # FLAIR 203
    assert crop("none.h5", **{HEADER: header(recon=(0, 0))}) is None
    assert crop("ge.h5", **{HEADER: header(recon=(12, 10))}) == (12, 10)  # not oversampled
    assert crop("short.h5", **{HEADER: header(recon=(20, 9))}) == (12, 9)
    target = np.ones((3, 7, 5), np.float32)
    assert crop("target.h5", reconstruction_rss=target, **{HEADER: header()}) == (7, 5)


# Values


@pytest.mark.parametrize("dtype", [np.complex128, ">c8", ">c16"])
def test_other_precisions_are_cast(tmp_path: Path, dtype: Any) -> None:
    kspace = noise(*SHAPE).numpy().astype(dtype)
    scan = datasets.open(save(tmp_path / "a.h5", kspace=kspace))
    assert scan.kspace.dtype == torch.complex64
    np.testing.assert_allclose(scan.kspace.numpy(), kspace, rtol=1e-6)
    assert ("cast to complex64" in str(scan.attributes["note"])) == (dtype != ">c8")


@pytest.mark.parametrize(
    ("kspace", "match"),
    [
        (np.zeros((3, 12, 10), [("real", "i2"), ("imag", "i2")]), r"records \('real', 'imag'\)"),
        (np.zeros((3, 12, 10), [("real", "f4"), ("gain", "f4")]), r"records \('real', 'gain'\)"),
        (np.zeros((3, 12, 10, 2), np.float32), "real and imaginary parts in the last axis"),
        (np.zeros((3, 2, 12, 10, 2), np.float64), "real and imaginary parts in the last axis"),
        (np.ones((4, 20, 18, 24), np.float32), "got float32 of shape .* \\(Calgary-Campinas\\)"),
        (np.ones((3, 12, 10), np.float64), "want complex values, got float64"),
        (h5py.Empty("f4"), r"want complex values, got float32 of shape \(\)"),
        (np.zeros((2, 3, 2, 12, 10), np.complex64), "5-d k-space .*averages in fastMRI prostate"),
        (np.zeros((12, 10), np.complex64), r"want \(slices, coils, H, W\)"),
        (np.zeros((0, 2, 12, 10), np.complex64), "holds nothing"),
        (np.zeros((3, 12, 10), np.int16), "want complex64 values, got int16"),
        (np.full((3, 12, 10), 1e300 + 0j), "slice 0 holds NaN or infinity"),
    ],
)
def test_bad_kspace(tmp_path: Path, kspace: Any, match: str) -> None:
    with pytest.raises(FormatError, match=r"a\.h5: kspace: .*" + match):
        datasets.open(save(tmp_path / "a.h5", kspace=kspace))


def records(names: tuple[str, str], dtype: str, swapped: bool) -> Any:
    """Complex noise as a compound dataset; ``swapped`` stores the imaginary part first."""
    values = noise(*SHAPE).numpy()
    fields = [(name, dtype) for name in (reversed(names) if swapped else names)]
    array = np.empty(SHAPE, fields)
    array[names[0]], array[names[1]] = values.real, values.imag
    return array


def by_position(array: Any) -> Any:
    """The planted fault: the first field taken as the real part."""
    first, second = array.dtype.names
    return array[first] + 1j * array[second]


@pytest.mark.parametrize("names", [("real", "imag"), ("r", "i")])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8"])
@pytest.mark.parametrize("swapped", [False, True])
def test_records_of_real_and_imaginary_part(
    tmp_path: Path, names: tuple[str, str], dtype: str, swapped: bool
) -> None:
    array = records(names, dtype, swapped)
    scan = datasets.open(save(tmp_path / "a.h5", kspace=array))
    assert torch.equal(scan.kspace, noise(*SHAPE))
    assert ("cast to complex64" in str(scan.attributes["note"])) == (dtype == "<f8")
    if swapped:
        assert not np.array_equal(by_position(array), noise(*SHAPE))


@pytest.mark.parametrize("value", [complex(float("nan"), 0), complex(0, float("-inf"))])
def test_the_first_bad_slice_is_named_by_its_number_in_the_file(
    tmp_path: Path, value: complex
) -> None:
    kspace = noise(6, 2, 12, 10)
    kspace[3, 1, 2, 2] = kspace[5, 0, 0, 0] = torch.tensor(value)
    path = save(tmp_path / "a.h5", kspace=kspace)
    for chosen in (None, slice(1, None, 2), slice(3, 4)):
        with pytest.raises(FormatError, match="kspace: slice 3 holds NaN"):
            datasets.open(path, chosen)
    assert len(datasets.open(path, slice(0, 3)).kspace) == 3


@pytest.mark.parametrize(("key", "array"), [
    ("kspace", np.full(SHAPE, SIGNALLING, np.complex128)),
    ("kspace", np.full(SHAPE, SIGNALLING, np.complex128).view([("r", "f8"), ("i", "f8")])),
    ("mask", np.full(10, SIGNALLING)),
    ("reconstruction_rss", np.full((3, 6, 6), SIGNALLING)),
])  # fmt: skip
def test_signalling_nan_is_refused_without_a_warning(tmp_path: Path, key: str, array: Any) -> None:
    path = save(tmp_path / "a.h5", **{"kspace": noise(*SHAPE), key: array})
    with pytest.raises(FormatError, match=f"{key}: (slice 0 holds NaN|want zeros and ones, got n)"):
        datasets.open(path)


def test_all_zero_kspace_is_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", kspace=np.zeros(SHAPE, np.complex64))
    scan = datasets.open(path)
    assert scan.mask is None
    assert "all k-space read is zero" in str(scan.attributes["note"])
    about = datasets.describe(path)
    assert (about["sampling"], about["value_range"]) == ("unknown", (0.0, 0.0))


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        (np.ones((2, 6, 6)), r"reconstruction_rss: want \(3, h, w\), got \(2, 6, 6\)"),
        (np.ones((3, 6, 6), np.complex64), "reconstruction_rss: want real values"),
        (np.full((3, 6, 6), np.nan), "reconstruction_rss: slice 0 holds NaN"),
    ],
)
def test_bad_references(tmp_path: Path, reference: Any, match: str) -> None:
    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), reconstruction_rss=reference)
    with pytest.raises(FormatError, match=match):
        datasets.open(path)


def test_reference_of_other_precision_is_cast(tmp_path: Path) -> None:
    reference = np.random.default_rng(0).random((3, 6, 6))
    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), reconstruction_rss=reference)
    scan = datasets.open(path)
    assert scan.reference is not None
    assert np.array_equal(scan.reference, reference.astype(np.float32))
    assert "reconstruction_rss was float64, cast to float32" in str(scan.attributes["note"])
    with h5py.File(path, "r+") as file:  # the word is the readers'
        file.attrs["note"] = "coil 3 was off"
    note = str(datasets.open(path).attributes["note"])
    assert "coil 3" not in note
    assert "left out, as they may name a patient: note" in note


def test_attributes_that_may_name_a_patient_are_left_out(tmp_path: Path) -> None:
    secrets = {"patient_id": "DOE1", "PatientName": "DOE2", "StudyInstanceUID": "1.2.DOE3"}
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE),
                           attributes={**secrets, "acquisition": "AXT1", "max": 2.5})  # fmt: skip
    for found in (datasets.open(tmp_path / "a.h5"), datasets.describe(tmp_path / "a.h5")):
        assert "DOE" not in repr(found)
    attributes = datasets.open(tmp_path / "a.h5").attributes
    assert (attributes["acquisition"], attributes["max"]) == ("AXT1", 2.5)
    assert attributes["note"] == ("left out, as they may name a patient: PatientName, "
                                  "StudyInstanceUID")  # fmt: skip
    assert "patient_id" not in attributes  # in every file of fastMRI: no news


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({HEADER: header(encoded=(10, 12))}, "are swapped"),
        ({HEADER: BOMB}, "DOCTYPE"),
        ({"mask": np.ones(9)}, "mask: has 9 columns"),
        ({"reconstruction_rss": np.ones((2, 6, 6))}, r"reconstruction_rss: want \(3, h, w\)"),
    ],
)
def test_faults_show_before_kspace_is_read(
    tmp_path: Path, arrays: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``layout_fastmri`` finds what :class:`Slices` must know before a night's work."""

    def reading(*_: object) -> None:
        raise AssertionError("k-space was read")

    path = save(tmp_path / "a.h5", kspace=noise(*SHAPE), **arrays)
    monkeypatch.setattr("recon.datasets.fastmri.to_complex64", reading)
    with pytest.raises(FormatError, match=match):
        datasets.describe(path)


# Submissions


def check_submission(path: Path, name: str, want: Tensor) -> None:
    """One array of float32 with the slices in order, nothing besides."""
    assert path.name == name
    with h5py.File(path) as file:
        assert list(file) == ["reconstruction"]
        assert not file.attrs
        data = file["reconstruction"]
        assert data.dtype == np.float32
        assert not data.attrs
        assert data.shape == tuple(want.shape)
        assert np.array_equal(data, want)


def reversed_slices(folder: Path, name: str, x: Tensor, **options: Any) -> Path:
    return write_submission(folder, name, x.flip(0), **options)


def with_attributes(folder: Path, name: str, x: Tensor) -> Path:
    datasets.write_hdf5(folder / name, x, attributes={"sampler": "dds"})
    return folder / name


def double(folder: Path, name: str, x: Tensor) -> Path:
    save(folder / name, reconstruction=x.double())
    return folder / name


def test_submission(tmp_path: Path) -> None:
    image = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    write = write_submission
    check_submission(write(tmp_path, "file1000000.h5", image.double()), "file1000000.h5", image)
    check_submission(write(tmp_path, "scan.v1.cfl", image, v2=True), "scan.v1_v2.h5", image)
    check_submission(write(tmp_path, "a_v2.h5", image, v2=True), "a_v2.h5", image)
    faults: list[Callable[..., Path]] = [reversed_slices, with_attributes, double]
    for number, fault in enumerate(faults):
        with pytest.raises(AssertionError):
            check_submission(fault(tmp_path, f"{number}.h5", image), f"{number}.h5", image)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("../a.h5", 1.0, "a file without folders"),
        ("..", 1.0, "a file without folders"),
        ("", 1.0, "a file without folders"),
        ("a.h5", float("nan"), "slice 2 holds NaN or infinity"),
        ("a.h5", 1j, r"want real.*\.abs\(\)"),
    ],
)
def test_bad_submissions(tmp_path: Path, name: str, value: complex, match: str) -> None:
    images = torch.ones(3, 5, 4, dtype=torch.complex64 if value == 1j else torch.float32)
    images[2, 0, 0] = torch.tensor(value)
    with pytest.raises(ValueError, match=match):
        write_submission(tmp_path, name, images)
    with pytest.raises(ValueError, match=r"want \(slices, h, w\), got \(5, 4\)"):
        write_submission(tmp_path, "a.h5", torch.ones(5, 4))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.h5").write_text("precious")
    with pytest.raises(FileExistsError):
        write_submission(tmp_path, "a.h5", torch.ones(1, 5, 4))
    assert (tmp_path / "a.h5").read_text() == "precious"
