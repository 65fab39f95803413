"""ISMRMRD: against a reader written out plainly, the ISMRMRD libraries, closed forms, damage."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.datasets import FormatError, Scan
from recon.datasets.ismrmrd import layout_ismrmrd, read_ismrmrd
from recon.datasets.write_ismrmrd import ACQUISITION_HEAD, IMAGE_HEAD
from tests.datasets.ismrmrd_files import (
    CALIBRATION,
    CALIBRATION_AND_IMAGING,
    GENERATOR,
    MATRIX,
    NOISE,
    REVERSED,
    Line,
    check_image,
    header,
    image,
    line,
    lines_of,
    needs_tools,
    noise,
    reconstructed,
    save,
)

SHAPE = (3, 2, *MATRIX)
Read = Callable[[Path], Tensor]


def kspace_of(path: Path) -> Tensor:
    return read_ismrmrd(path).kspace


def note(scan: Scan) -> str:
    return str(scan.attributes.get("note", ""))


# Where the lines go


def written_out(path: Path, fault: str = "") -> Tensor:
    """Lines to k-space a second time, one after the other, with a fault to be found."""
    with h5py.File(path) as file:
        rows, text = file["dataset/data"][()], file["dataset/xml"][0]
    find = ElementTree.fromstring(text).findtext
    ns = "{http://www.ismrm.org/ISMRMRD}"
    size = f"{ns}encoding/{ns}encodedSpace/{ns}matrixSize/{ns}"
    limits = f"{ns}encoding/{ns}encodingLimits/{ns}kspace_encoding_step_1/{ns}center"
    height, width, centre = (int(find(n) or 0) for n in (f"{size}x", f"{size}y", limits))
    total: dict[tuple[int, int, int], tuple[Any, int]] = {}
    for position, (head, _, data) in enumerate(rows):
        flags, idx = int(head["flags"]), head["idx"]
        if flags >> (NOISE - 1) & 1 and fault != "noise among the lines":
            continue
        values = data.view(np.complex64).reshape(head["active_channels"], -1)
        if flags >> (REVERSED - 1) & 1 and fault != "never turned":
            values = values[:, ::-1]
        column = int(idx["kspace_encode_step_1"])
        if fault == "order of the file":
            column = position % width
        elif fault != "no limits":
            column += width // 2 - centre
        for j in range(values.shape[1]):
            row = j + (0 if fault == "from the top" else height // 2 - int(head["center_sample"]))
            place = (int(idx["slice"]), row % height, column % width)
            old, count = total.get(place, (0, 0))
            total[place] = (old + values[:, j], count + 1)
    slices, coils = 1 + max(s for s, _, _ in total), len(values)
    kspace = np.zeros((slices, coils, height, width), np.complex64)
    for (s, row, column), (values, count) in total.items():
        kspace[s, :, row, column] = values / (1 if fault == "sum" else count)
    return torch.from_numpy(kspace)


def scrambled(kspace: Tensor, shift: int) -> list[Line]:
    """Noise first; two averages, counters ``shift`` low, some lines reversed, all out of order."""
    spread = noise(*kspace.shape, seed=5)
    columns = range(shift, kspace.shape[-1])
    lines = []
    for average, part in enumerate((kspace + spread, kspace - spread)):
        for i, (head, samples) in enumerate(lines_of(part, columns, average=average)):
            head["idx"]["kspace_encode_step_1"] -= shift
            if i % 3 == 0:
                head["flags"] = 1 << (REVERSED - 1)
                samples = samples[:, ::-1]
            lines.append(Line(head, samples))
    order = np.random.default_rng(0).permutation(len(lines))
    ambient = line(100 * noise(kspace.shape[1], kspace.shape[2]), 0, NOISE)
    return [ambient, *(lines[i] for i in order)]


def check_scrambled(read: Read, folder: Path) -> None:
    for number, shape in enumerate([(3, 2, 12, 10), (2, 3, 9, 7)]):
        shift, kspace = 2, noise(*shape)
        kspace[..., :shift] = 0
        path = folder / f"{number}.h5"
        if not path.exists():
            xml = header(shape[2:], centre=shape[3] // 2 - shift)
            save(path, scrambled(kspace, shift), xml)
        torch.testing.assert_close(read(path), kspace, rtol=0, atol=2e-6)


def test_lines_out_of_order_land_where_they_belong(tmp_path: Path) -> None:
    check_scrambled(kspace_of, tmp_path)
    check_scrambled(written_out, tmp_path)
    scan = read_ismrmrd(tmp_path / "0.h5")
    assert scan.mask is not None
    assert scan.mask.tolist() == [False] * 2 + [True] * 8
    assert "lines were measured 2 times and averaged" in note(scan)
    assert not torch.signbit(torch.view_as_real(scan.kspace)[..., ~scan.mask, :]).any()


@pytest.mark.parametrize("fault", ["noise among the lines", "never turned", "order of the file",
                                   "no limits", "sum"])  # fmt: skip
def test_the_check_catches_wrong_readers(tmp_path: Path, fault: str) -> None:
    with pytest.raises(AssertionError):
        check_scrambled(lambda path: written_out(path, fault), tmp_path)


def check_partial_echo(read: Read, folder: Path) -> None:
    """Nine samples of twelve, the echo fourth; then the first two of them discarded."""
    kspace = noise(*SHAPE)
    kspace[..., :2, :] = 0
    kspace[..., 11, :] = 0
    path = save(folder / "echo.h5", lines_of(kspace[..., 2:11, :], center_sample=4))
    assert torch.equal(read(path), kspace)


def test_partial_echo(tmp_path: Path) -> None:
    check_partial_echo(kspace_of, tmp_path)
    scan = read_ismrmrd(tmp_path / "echo.h5")
    (tmp_path / "echo.h5").unlink()
    with pytest.raises(AssertionError):
        check_partial_echo(lambda path: written_out(path, "from the top"), tmp_path)
    want = torch.zeros(MATRIX, dtype=torch.bool)
    want[2:11] = True
    assert scan.mask is not None
    assert torch.equal(scan.mask, want)


@pytest.mark.parametrize("turned", [False, True])
def test_discarded_samples(tmp_path: Path, turned: bool) -> None:
    kspace = noise(*SHAPE)
    lines = lines_of(kspace, None, discard_pre=2, discard_post=1)
    if turned:
        lines = [Line(head, samples[:, ::-1]) for head, samples in lines]
        for head, _ in lines:
            head["flags"] = 1 << (REVERSED - 1)
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines))
    first, last = (1, 10) if turned else (2, 11)
    assert scan.mask is not None
    assert torch.equal(scan.mask.any(1).nonzero()[:, 0], torch.arange(first, last))
    assert torch.equal(scan.kspace[..., first:last, :], kspace[..., first:last, :])
    assert not scan.kspace[..., ~scan.mask].any()


def check_oversampling(cut: Callable[[Tensor, int], Tensor]) -> None:
    """A point at pixel p of n: ``exp(-2 pi i (u - n // 2)(p - n // 2) / n) / sqrt(n)``, any n."""
    for wide, size, p in ((12, 6, 4), (12, 5, 0), (9, 6, 1), (9, 5, 3), (64, 32, 30)):
        def ramp(n: int, p: int = p, size: int = size) -> Tensor:
            u = torch.arange(n, dtype=torch.float64) - n // 2
            phase = torch.exp(-2j * math.pi * u * (p - size // 2) / n) / math.sqrt(n)
            return phase[None, :, None].to(torch.complex64) * torch.ones(1, 1, 4)

        torch.testing.assert_close(cut(ramp(wide), size), ramp(size), rtol=0, atol=1e-6)


def test_oversampling_of_a_point_against_the_closed_form(tmp_path: Path) -> None:
    def through_a_file(kspace: Tensor, size: int) -> Tensor:
        path = tmp_path / f"{kspace.shape[1]}_{size}.h5"
        xml = header(kspace.shape[1:], (size, 4), encoded_fov=(kspace.shape[1], 4.0),
                     recon_fov=(size, 4.0))  # fmt: skip
        path.unlink(missing_ok=True)
        scan = read_ismrmrd(save(path, lines_of(kspace[None]), xml))
        assert scan.crop == (size, 4)
        return scan.kspace[0]

    check_oversampling(through_a_file)

    def every_second(kspace: Tensor, size: int) -> Tensor:
        return kspace[:, ::2][:, :size] * math.sqrt(kspace.shape[1] / size)

    def cut_in_kspace(kspace: Tensor, size: int) -> Tensor:
        start = kspace.shape[1] // 2 - size // 2
        return kspace[:, start : start + size]

    def fastmri_crop(kspace: Tensor, size: int) -> Tensor:
        x = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace, dim=1), dim=1,
                                              norm="ortho"), dim=1)  # fmt: skip
        start = (kspace.shape[1] - size) // 2  # one less for 12 and 5
        x = torch.fft.ifftshift(x[:, start : start + size], dim=1)
        return torch.fft.fftshift(torch.fft.fft(x, dim=1, norm="ortho"), dim=1)

    for wrong in (every_second, cut_in_kspace, fastmri_crop):
        with pytest.raises(AssertionError):
            check_oversampling(wrong)


def test_oversampling_is_left_in_partial_echoes(tmp_path: Path) -> None:
    kspace = noise(*SHAPE)
    xml = header((16, 10), (8, 10), encoded_fov=(400, 200), recon_fov=(200, 200))
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines_of(kspace, center_sample=4), xml))
    assert torch.equal(scan.kspace[..., 4:, :], kspace)
    assert scan.crop == (8, 10)
    assert "the readouts are not whole: their oversampling is left in" in note(scan)


# The size of the image


@pytest.mark.parametrize(
    ("recon", "fov", "crop", "told"),
    [
        ((12, 10), (240, 200), (12, 10), ""),
        ((12, 6), (240, 120), (12, 6), ""),
        ((12, 6), (240, 120.4), (12, 6), ""),  # header's rounding
        ((24, 20), (240, 200), (12, 10), "has 24 pixels along x, the k-space gives 12"),
        ((12, 20), (240, 100), (12, 5), "has 20 pixels along y, the k-space gives 5"),
        ((12, 5), (240, 200), (12, 10), "has 5 pixels along y, the k-space gives 10"),
        ((12, 20), (240, 400), (12, 10), "has 20 pixels along y, the k-space gives 10"),
        ((6, 8), (0, 0), (6, 8), "no field of view: y is cut to the header's 8 pixels"),
    ],
)
def test_crop_is_the_field_of_view(tmp_path: Path, recon: tuple[int, int],
                                   fov: tuple[float, float], crop: tuple[int, int],
                                   told: str) -> None:  # fmt: skip
    kspace = noise(*SHAPE)
    xml = header(MATRIX, recon, recon_fov=fov)
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines_of(kspace), xml))
    assert torch.equal(scan.kspace, kspace)
    assert scan.crop == crop
    assert told in note(scan)
    assert bool(note(scan)) == bool(told)
    assert scan.attributes["pixel_x_mm"] == 20
    assert scan.attributes["recon_y"] == recon[1]


# Which lines count


@pytest.mark.parametrize("counter", ["contrast", "phase", "repetition", "set", "average"])
def test_one_of_several_images_is_chosen(tmp_path: Path, counter: str) -> None:
    one, two = noise(*SHAPE), noise(*SHAPE, seed=1)
    path = save(tmp_path / "a.h5", lines_of(one) + lines_of(two, None, **{counter: 3}))
    assert torch.equal(read_ismrmrd(path, only={counter: 0}).kspace, one)
    assert torch.equal(read_ismrmrd(path, slice(1, 3), only={counter: 3}).kspace, two[1:])
    with pytest.raises(ValueError, match=f"only: no {counter} 1 here, there is 0, 3"):
        read_ismrmrd(path, only={counter: 1})
    with pytest.raises(ValueError, match=r"only: want contrast, phase, .* got 'slice'"):
        read_ismrmrd(path, only={"slice": 1})
    if counter == "average":
        torch.testing.assert_close(kspace_of(path), (one + two) / 2)
    else:
        with pytest.raises(FormatError, match=rf"2 values of {counter} \(0, 3\): choose one, "
                                              rf'.*only={{"{counter}": 0}}'):  # fmt: skip
            read_ismrmrd(path)


@pytest.mark.parametrize(
    ("mode", "fields", "told"),
    [
        ("embedded", {}, "6 lines of parallel calibration used as data"),
        ("interleaved", {}, "used as data"),
        ("", {}, "used as data"),
        ("separate", {}, "left out: the header calls it 'separate'"),
        ("external", {}, "left out: the header calls it 'external'"),
        ("embedded", {"encoding_space_ref": 1}, "left out: of another encoding, readout or slice"),
        ("embedded", {"contrast": 1}, "left out: of another encoding, readout or slice"),
        ("embedded", {"sample_time_us": 7.0}, "left out: of another encoding, readout or slice"),
        ("", {"kspace_encode_step_1": 4}, "left out: they repeat imaging lines"),
    ],
)
def test_calibration_lines(tmp_path: Path, mode: str, fields: dict[str, Any], told: str) -> None:
    kspace = noise(*SHAPE)
    lines = lines_of(kspace, [0, 2, 4, 6, 8])
    for at in range(len(kspace)):
        for column in (3, 5):
            values = kspace[at, ..., column]
            lines.append(line(values, column, CALIBRATION, **({"slice": at} | fields)))
        lines[5 * at + 2].head["flags"] = 1 << (CALIBRATION_AND_IMAGING - 1)
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines, header(calibration=mode, encodings=2)))
    columns = [0, 2, 3, 4, 5, 6, 8] if "used" in told else [0, 2, 4, 6, 8]
    assert told in note(scan)
    assert scan.mask is not None
    assert scan.mask.nonzero()[:, 0].tolist() == columns
    assert torch.equal(scan.kspace, torch.where(scan.mask, kspace, 0))


def test_other_acquisitions_are_counted_and_left_out(tmp_path: Path) -> None:
    kspace = noise(*SHAPE)
    others = [line(noise(1, 7), 3, flag, slice=9) for flag in (23, 23, 24, 26, 27, 28, 29, 30, 31)]
    scan = read_ismrmrd(save(tmp_path / "a.h5", others + lines_of(kspace)))
    assert torch.equal(scan.kspace, kspace)
    for told in ("2 acquisitions of navigator", "1 acquisitions of phase correction",
                 "2 acquisitions of feedback", "1 acquisitions of dummy",
                 "1 acquisitions of surface coil correction",
                 "2 acquisitions of phase stabilisation left out"):  # fmt: skip
        assert told in note(scan)


def test_groups(tmp_path: Path) -> None:
    one, two, path = noise(*SHAPE), noise(*SHAPE, seed=1), tmp_path / "a.h5"
    save(path, lines_of(one), group="dataset_2")
    save(path, lines_of(two), group="dataset_10")
    save(path, [line(noise(2, 12), 0, NOISE)], group="dataset_11")
    with h5py.File(path, "a") as file:
        file["dataset_10/csm"] = np.zeros(3)
        file["elsewhere"] = h5py.ExternalLink("/etc/other.h5", "dataset")
    scan = read_ismrmrd(path)
    assert torch.equal(scan.kspace, two)
    assert "group dataset_10 was read, not dataset_2, dataset_11; csm in dataset_10" in note(scan)
    assert torch.equal(read_ismrmrd(path, group="dataset_2").kspace, one)
    with pytest.raises(FormatError, match="no_such: no such group; the file holds dataset_10, "):
        read_ismrmrd(path, group="no_such")
    with pytest.raises(FormatError, match="no imaging lines: dataset_11 has 1 of noise"):
        read_ismrmrd(path, group="dataset_11")
    layout = layout_ismrmrd(path)
    assert (layout.kind, layout.slices) == ("ismrmrd", 3)
    assert layout.keys["dataset_2/data"] == {"shape": (30,), "dtype": "records"}


# Slices


def test_only_the_chosen_slices_are_read(tmp_path: Path) -> None:
    kspace = noise(*SHAPE)
    lines = lines_of(kspace)
    lines[25] = Line(lines[25].head, np.zeros(3, np.float32))
    path = save(tmp_path / "a.h5", lines)
    assert torch.equal(read_ismrmrd(path, slice(0, 2)).kspace, kspace[:2])
    with pytest.raises(FormatError, match="acquisition 25 holds 3 numbers, its header promises 2 "):
        read_ismrmrd(path, slice(2, 3))
    with pytest.raises(ValueError, match="chooses none of the 3 slices"):
        read_ismrmrd(path, slice(3, 4))


def test_slices_missing_or_sampled_otherwise(tmp_path: Path) -> None:
    kspace = noise(*SHAPE)
    lines = [entry for entry in lines_of(kspace) if entry.head["idx"]["slice"] != 1]
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines))
    assert torch.equal(scan.kspace, kspace[::2])
    assert "2 of 3 slices are there: 0, 2" in note(scan)
    path = save(tmp_path / "b.h5", lines_of(kspace)[:-1])
    with pytest.raises(FormatError, match=r"slice 2 was sampled otherwise than slice 0: read them"):
        read_ismrmrd(path)
    assert read_ismrmrd(path, slice(2, 3)).mask is not None


def test_slice_of_zeros(tmp_path: Path) -> None:
    kspace = noise(*SHAPE)
    kspace[1] = 0
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines_of(kspace)))
    assert torch.equal(scan.kspace, kspace)
    assert scan.mask is None  # measured, as the lines say


# Noise


COVARIANCE = torch.tensor([[2, 0.5 + 0.3j, 0], [0.5 - 0.3j, 1, -0.2j], [0, 0.2j, 0.5]])


def coloured(samples: int, scale: float = 1.0) -> Tensor:
    """Circular noise with ``E[n n^H]`` = scale * COVARIANCE."""
    return math.sqrt(scale) * torch.linalg.cholesky(COVARIANCE) @ noise(3, samples, seed=7)


def check_covariance(read: Callable[[Path], Tensor | None], folder: Path) -> None:
    """Noise at 10 us, lines at 4 us, 0.8 of the bandwidth, two averages: a factor of 25 / 16.

    The estimate's entries spread by ``sqrt(C_ii C_jj / N)``, closed form for circular noise.
    """
    path, count, factor = folder / "noise.h5", 20000, 10 / 4 / 0.8 / 2
    if not path.exists():
        ambient = coloured(count, 1 / factor)
        lines = [line(ambient[:, i : i + 4000], 0, NOISE, sample_time_us=10.0)
                 for i in range(0, count, 4000)]  # fmt: skip
        for average in (0, 1):
            lines += lines_of(noise(1, 3, *MATRIX), average=average, sample_time_us=4.0)
        xml = header(system="<relativeReceiverNoiseBandwidth>0.8</relativeReceiverNoiseBandwidth>")
        save(path, lines, xml)
    got, power = read(path), COVARIANCE.diagonal().real
    assert got is not None
    assert ((got - COVARIANCE).abs() < 5 * (torch.outer(power, power) / count).sqrt()).all()


def test_noise_covariance_within_its_statistical_error(tmp_path: Path) -> None:
    check_covariance(lambda path: read_ismrmrd(path).noise_covariance, tmp_path)
    scan = read_ismrmrd(tmp_path / "noise.h5")
    assert "noise covariance from 20000 samples, times 1.562 for dwell time" in note(scan)
    n = coloured(20000, 16 / 25).to(torch.complex128)
    assert scan.noise_covariance is not None
    torch.testing.assert_close(scan.noise_covariance, (n @ n.mH / 20000 * 25 / 16).to(n.dtype)
                               .to(torch.complex64))  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: c.conj(),
        lambda c: c / 2,  # of real and imaginary parts apart
        lambda c: c * 16 / 25,
        lambda c: c * (16 / 25) ** 2,  # ratio upside down
        lambda c: c * 0.8,
        lambda c: c * 2,
        lambda c: torch.diag(c.diagonal()),
    ],
)
def test_the_check_catches_wrong_covariances(tmp_path: Path, wrong: Callable[[Tensor], Tensor],
                                             ) -> None:  # fmt: skip
    def read(path: Path) -> Tensor:
        found = read_ismrmrd(path).noise_covariance
        assert found is not None
        return wrong(found)

    with pytest.raises(AssertionError):
        check_covariance(read, tmp_path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([line(noise(3, 8), 0, NOISE)], "left out: they have 3 channels, the imaging lines 2"),
        ([line(noise(2, 1), 0, NOISE)], "left out: 1 samples are too few for 2 channels"),
        ([line(noise(2, 8), 0, NOISE, 53)], "left out: compressed"),
        ([line(noise(2, 8), 0, NOISE, discard_pre=9)], "left out: 0 samples"),
        ([line(noise(2, 8), 0, NOISE), line(noise(2, 12), 0, slice=0, sample_time_us=4.0)],
         "left out: the imaging lines have several dwell times"),
    ],
)  # fmt: skip
def test_noise_that_is_left_out(tmp_path: Path, lines: list[Line], told: str) -> None:
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines + lines_of(noise(1, 2, *MATRIX))))
    assert scan.noise_covariance is None
    assert told in note(scan)


def test_unknown_dwell_times_are_told(tmp_path: Path) -> None:
    lines = [line(noise(2, 8), 0, NOISE, sample_time_us=0.0), *lines_of(noise(*SHAPE))]
    scan = read_ismrmrd(save(tmp_path / "a.h5", lines))
    assert "from 8 samples, dwell times not given and taken as equal" in note(scan)
    n = noise(2, 8)
    torch.testing.assert_close(scan.noise_covariance, n @ n.mH / 8)


# The ISMRMRD libraries


def test_records_are_those_of_the_package() -> None:
    hdf5 = pytest.importorskip("ismrmrd.hdf5", reason="the ISMRMRD package is not installed")
    assert hdf5.acquisition_header_dtype == ACQUISITION_HEAD
    assert hdf5.image_header_dtype == IMAGE_HEAD


def test_lines_written_by_the_package(tmp_path: Path) -> None:
    mrd = pytest.importorskip("ismrmrd", reason="the ISMRMRD package is not installed")

    def write(path: Path, lines: list[Line], xml: str) -> Path:
        with mrd.Dataset(path, "dataset", mode="w") as file:
            file.write_xml_header(xml)
            for head, samples in lines:
                acquisition = mrd.Acquisition(head.tobytes())
                acquisition.data[:] = samples
                file.append_acquisition(acquisition)
        return path

    kspace, shift = noise(*SHAPE), 2
    kspace[..., :shift] = 0
    lines = scrambled(kspace, shift)
    path = write(tmp_path / "a.h5", lines, header(centre=5 - shift))
    torch.testing.assert_close(kspace_of(path), kspace, rtol=0, atol=2e-6)
    again = save(tmp_path / "b.h5", lines, header(centre=5 - shift))
    assert torch.equal(kspace_of(path), kspace_of(again))


@needs_tools
def test_phantom_against_the_library_program(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    command = [GENERATOR, "-m", "64", "-c", "3", "-n", "0.01", "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    scan = read_ismrmrd(path)
    assert scan.kspace.shape == (1, 3, 64, 64)
    assert scan.crop == (64, 64)
    expected = reconstructed(path)

    def rss(kspace: Tensor) -> Tensor:
        return math.sqrt(128 * 64) * image(kspace)[0].abs().square().sum(0).sqrt().T

    check_image(rss(scan.kspace), expected)
    right = rss(scan.kspace)
    for wrong in (right.T, rss(scan.kspace.conj()), right.roll(1, 0), right / 2):
        with pytest.raises(AssertionError):
            check_image(wrong, expected)


@needs_tools
def test_program_with_undersampling_noise_and_repetitions(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    command = [GENERATOR, "-m", "32", "-c", "2", "-a", "2", "-w", "8", "-r", "2", "-C", "-k"]
    subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
    with pytest.raises(FormatError, match="4 values of repetition"):
        read_ismrmrd(path)
    even, odd = (read_ismrmrd(path, only={"repetition": r}) for r in (0, 1))
    assert even.mask is not None
    assert odd.mask is not None
    assert (even.mask | odd.mask).all()
    assert (even.mask & odd.mask).nonzero()[:, 0].tolist() == list(range(12, 20))
    assert "k-space coordinates of the lines not read" in note(even)
    assert "4 lines of parallel calibration used as data" in note(even)
    # its noise has a standard deviation of 0.05 in each part: 64 samples, 2 * 64 numbers
    assert even.noise_covariance is not None
    power = even.noise_covariance.diagonal().real
    assert ((power - 0.005).abs() < 5 * 0.005 / math.sqrt(64)).all()
