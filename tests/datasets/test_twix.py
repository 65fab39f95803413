"""Siemens raw files laid out by hand, against twixtools, mapVBVD and BART, and a real scan."""

import contextlib
import io
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets import FormatError, Scan
from recon.datasets.twix import is_twix, layout_twix, read_twix
from tests.datasets.damaged import refusals

twixtools = pytest.importorskip("twixtools", reason="twixtools is not installed")

GRE = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw" / "gre.dat"
needs_gre = pytest.mark.skipif(not GRE.exists(), reason="the development data is absent")
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
PATIENT = "Nachname^Vorname"
REFERENCE, REFERENCE_AND_IMAGE, REFLECT, NOISE, PHASCOR = 22, 23, 24, 25, 21
LOOPS = ("Lin", "Ave", "Sli", "Par", "Eco", "Phs", "Rep", "Set", "Seg", "Ida", "Idb", "Idc", "Idd",
         "Ide")  # fmt: skip
Array = NDArray[Any]

PROTOCOL = {
    "sKSpace.lBaseResolution": "4",
    "sKSpace.lPhaseEncodingLines": "6",
    "sKSpace.ucDimension": "0x2",
    "sKSpace.ucTrajectory": "0x1",
    "sSliceArray.lSize": "1",
    "sSliceArray.asSlice[0].dReadoutFOV": "200.0",
    "sSliceArray.asSlice[0].dPhaseFOV": "150.0",
    "sSliceArray.asSlice[0].dThickness": "3.0",
    "sRXSPEC.alDwellTime[0]": "5000",
    "sProtConsistencyInfo.flNominalB0": "2.8936",
    "alTR[0]": "500000",
    "alTE[0]": "12500",
    "alTI[0]": "300000",
    "adFlipAngleDegree[0]": "70.0",
    "tSequenceFileName": '"%SiemensSeq%\\tse"',
    "tProtocolName": f'"{PATIENT}"',
    "tReferenceImage0": f'"{PATIENT}"',
}


def noise(*shape: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((*shape, 2)).astype(np.float32) * np.float32(1e-5)
    return values.view(np.complex64)[..., 0]


def block(samples: Array, vd: bool = True, flags: tuple[int, ...] = (), lines: int = 6,
          centre: tuple[int, int] | None = None, cut: tuple[int, int] = (0, 0),
          position: tuple[float, float, float] = (0.0, 0.0, 0.0), **counters: int) -> bytes:
    """One readout ``(coils, columns)``; counters by the names Lin, Ave, Sli, ..., Ide."""
    coils, columns = samples.shape
    loops = [counters.pop(name, 0) for name in LOOPS]
    assert not counters
    column, line = (columns // 2, lines // 2) if centre is None else centre
    mask = sum(1 << flag for flag in flags)
    quaternion = 1.0, 0.0, 0.0, 0.0
    first = (columns, coils, *loops, *cut, column, 0, 0.0, 0, line, 0)
    if not vd:
        length = coils * (128 + 8 * columns)
        return b"".join(
            struct.pack("<IiIIIQ20HfI2H8H7f2H", length, 0, 1, 0, 0, mask, *first, *[0] * 8,
                        *position, *quaternion, coil, 0) + samples[coil].tobytes()
            for coil in range(coils)
        )
    length = 192 + coils * (32 + 8 * columns)
    head = struct.pack("<IiIII2H4iQ20HfI2H7f30HI", length, 0, 1, 0, 0, *[0] * 6, mask, *first,
                       *position, *quaternion, *[0] * 31)
    channels = [struct.pack("<IiIiIIHHI", 0, 0, 1, 0, 0, 0, coil, 0, 0) for coil in range(coils)]
    return head + b"".join(c + s.tobytes() for c, s in zip(channels, samples, strict=True))


def end(vd: bool = True) -> bytes:
    if not vd:
        return block(np.zeros((1, 16), np.complex64), vd, flags=(0,))
    return struct.pack("<I", 352) + block(np.zeros((0, 0)), flags=(0,))[4:] + bytes(160)


def header(vd: bool, **changes: Any) -> bytes:
    """Texts of a measurement; keyword arguments by the last part of the key, None removes it."""
    protocol: dict[str, str] = dict(PROTOCOL)
    for name, value in changes.items():
        key = next((k for k in PROTOCOL if re.split(r"\.", k)[-1].split("[")[0] == name),
                   name.replace("__", "."))
        protocol.pop(key, None)
        if value is not None:
            protocol[key] = value
    yaps = "".join(f"{key}\t = \t{value}\n" for key, value in protocol.items())
    config = f'<XProtocol>\n{{ <ParamString."tPatientName"> {{ "{PATIENT}" }} }}\n'
    texts = b"".join(
        name + b"\0" + struct.pack("<I", len(text)) + text
        for name, text in (
            (b"Config", config.encode() + b" " * (0 if vd else 10000)),
            (b"MeasYaps", b"### ASCCONV BEGIN ###\n" + yaps.encode() + b"### ASCCONV END ###\n"),
        )
    )
    texts += bytes(-(8 + len(texts)) % 32)
    return struct.pack("<II", 8 + len(texts), 2) + texts


def measurement(blocks: list[bytes], vd: Any = True, **changes: Any) -> bytes:
    return header(vd, **changes) + b"".join(blocks) + end(vd)


def raid(*measurements: bytes) -> bytes:
    """A table and its measurements, as VD and VE write them."""
    table, body, at = struct.pack("<II", 0, len(measurements)), b"", 10240
    for i, data in enumerate(measurements):
        table += struct.pack("<IIQQ64s64s", i, i, at, len(data), PATIENT.encode(), b"protocol")
        body += data + bytes(-len(data) % 512)
        at = 10240 + len(body)
    return table.ljust(10240, b"\0") + body


def image_blocks(samples: Array, vd: bool = True, **options: Any) -> list[bytes]:
    """``(lines, coils, columns)`` as one slice."""
    return [block(s, vd, Lin=i, lines=len(samples), **options) for i, s in enumerate(samples)]


def save(path: Path, blocks: list[bytes], vd: bool = True, **changes: Any) -> Path:
    data = measurement(blocks, vd, **changes)
    path.write_bytes(raid(data) if vd else data)
    return path


def ifft2(x: Any) -> Array:
    x = np.fft.ifftshift(np.asarray(x), axes=(-2, -1))
    return np.fft.fftshift(np.fft.ifft2(x, norm="ortho"), axes=(-2, -1))


def check_equal(kspace: Tensor, want: Array, *wrong: Tensor) -> None:
    """Equal, and none of the wrong ones is."""
    assert np.array_equal(kspace.numpy(), want)
    for other in wrong:
        assert not np.array_equal(other.numpy(), want)


def by_twixtools(path: Path, remove: bool = False) -> Array:
    scans = twixtools.read_twix(str(path), verbose=False, parse_pmu=False, parse_geometry=False)
    if remove:
        image = twixtools.map_twix([scans[-1]])[-1]["image"]
        image.flags["remove_os"] = image.flags["squeeze_singletons"] = True
        return np.asarray(image[:]).transpose(1, 2, 0)
    lines = [mdb.data for mdb in scans[-1]["mdb"] if mdb.is_image_scan()]
    return np.stack(lines).transpose(1, 2, 0)


def by_mapvbvd(path: Path, remove: bool = False) -> Array:
    mapvbvd = pytest.importorskip("mapvbvd", reason="mapvbvd is not installed")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        image = mapvbvd.mapVBVD(str(path), quiet=True).image
        image.flagRemoveOS, image.squeeze = remove, True
        values = image[""]
    return np.asarray(values).transpose(1, 0, 2)


def by_bart(path: Path) -> Array:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["bart", "twixread", "-A", path, "out"], cwd=folder, check=True,
                       capture_output=True)
        header = (Path(folder) / "out.hdr").read_text()
        values = np.fromfile(Path(folder) / "out.cfl", "<c8")
    dims = [int(n) for n in header.splitlines()[1].split()]
    values = values.reshape(dims, order="F")
    return values.reshape(dims[0], dims[1], dims[3], -1, order="F")[..., 0].transpose(2, 0, 1)


# --- the real scan ---


def check_values(kspace: Tensor, stored: Array) -> None:
    """Equal to the last bit, but for the conjugation."""
    assert kspace.shape == (1, *stored.shape)
    assert np.array_equal(kspace[0].conj().resolve_conj().numpy(), stored)


@needs_gre
@pytest.mark.parametrize(
    "peer", [by_twixtools, by_mapvbvd, pytest.param(by_bart, marks=needs_bart)]
)
def test_real_scan_has_the_values_of_other_readers(
    tmp_path: Path, peer: Callable[[Path], Array]
) -> None:
    """With a base resolution of as many points as were read out, nothing is taken away."""
    data = GRE.read_bytes()
    ours = tmp_path / "gre.dat"
    ours.write_bytes(data.replace(b"lBaseResolution\t = \t160", b"lBaseResolution\t = \t320"))
    stored, kspace = peer(GRE), read_twix(ours).kspace
    assert stored.shape == (2, 320, 160)
    check_values(kspace, stored)
    for wrong in (kspace.conj().resolve_conj(), kspace.flip(1), kspace.flip(-1), 2 * kspace):
        with pytest.raises(AssertionError):
            check_values(wrong, stored)


def check_halved(kspace: Tensor, halved: Array) -> None:
    """The peers transform without a factor, we keep the norm: a factor of sqrt 2.

    They cut the image of the other sign, so their first row comes from the other edge.
    """
    ours, want = ifft2(kspace[0]), np.sqrt(2) * ifft2(halved.conj())
    assert np.abs(ours - want)[:, 1:].max() <= 1e-6 * np.abs(want).max()


@needs_gre
@pytest.mark.parametrize("peer", [by_twixtools, by_mapvbvd])
def test_real_scan_without_oversampling(peer: Callable[[Path, bool], Array]) -> None:
    halved, kspace = peer(GRE, True), read_twix(GRE).kspace
    assert kspace.shape == (1, 2, 160, 160)
    check_halved(kspace, halved)
    every_second = torch.from_numpy(np.sqrt(2) * by_twixtools(GRE)[:, ::2].conj())
    for wrong in (every_second[None], kspace / 2**0.5, kspace.conj().resolve_conj()):
        with pytest.raises(AssertionError):
            check_halved(wrong, halved)


@needs_gre
def test_real_scan_shows_a_round_phantom(capfd: pytest.CaptureFixture[str]) -> None:
    scan = read_twix(GRE)
    assert (scan.mask, scan.crop, scan.noise_covariance, scan.kind) == (None, None, None, "twix")
    rss = np.sqrt((np.abs(ifft2(scan.kspace[0])) ** 2).sum(0))
    y, x = np.mgrid[-80:80, -80:80]
    inside = np.hypot(y, x) < 78
    assert (rss[inside] ** 2).sum() > 0.97 * (rss**2).sum()
    assert np.median(rss[inside]) > 5 * np.median(rss[~inside])
    assert scan.attributes == {
        "coils": 2, "slices": 1, "encoded_x": 320, "encoded_y": 160, "recon_x": 160,
        "recon_y": 160, "fov_x_mm": 200.0, "pixel_x_mm": 1.25, "fov_y_mm": 200.0,
        "pixel_y_mm": 1.25, "slice_thickness_mm": 4.0, "field_strength_T": 2.89362001419,
        "repetition_time_ms": 10.0, "echo_time_ms": 3.0, "flip_angle_deg": 15.0,
        "sequence": "gre", "note": "twofold oversampling of the readout removed; values "
        "conjugated: Siemens' transform to the image is the FFT",
    }  # fmt: skip
    layout = layout_twix(GRE)
    assert layout.keys == {"image": {"shape": (160, 2, 320), "dtype": "complex64"}}
    assert "xxx" not in f"{scan.attributes}{layout}"  # its patient is called xxxxxxx
    assert capfd.readouterr() == ("", "")


# --- files laid out by hand ---


@pytest.mark.parametrize("vd", [True, False])
def test_files_laid_out_by_hand(tmp_path: Path, vd: bool) -> None:
    samples = noise(6, 3, 8)
    path = save(tmp_path / "meas", image_blocks(samples, vd), vd, lBaseResolution="8")
    check_values(read_twix(path).kspace, samples.transpose(1, 2, 0))  # a name without suffix
    path = path.rename(tmp_path / "meas.dat")
    assert np.array_equal(by_twixtools(path), samples.transpose(1, 2, 0))
    if shutil.which("bart"):
        assert np.array_equal(by_bart(path), samples.transpose(1, 2, 0))
    assert is_twix(path, path.read_bytes()[:512])
    scan = read_twix(save(tmp_path / "b.dat", image_blocks(samples, vd), vd))
    whole = ifft2(samples.transpose(1, 2, 0).conj())
    assert np.abs(ifft2(scan.kspace[0]) - whole[:, 2:6]).max() < 1e-6 * np.abs(whole).max()
    assert scan.attributes | {"note": ""} == {
        "coils": 3, "slices": 1, "encoded_x": 8, "encoded_y": 6, "recon_x": 4, "recon_y": 6,
        "fov_x_mm": 200.0, "pixel_x_mm": 50.0, "fov_y_mm": 150.0, "pixel_y_mm": 25.0,
        "slice_thickness_mm": 3.0, "field_strength_T": 2.8936, "repetition_time_ms": 500.0,
        "echo_time_ms": 12.5, "flip_angle_deg": 70.0, "sequence": "tse", "note": "",
    }  # fmt: skip


def check_image(kspace: Tensor, image: Array) -> None:
    assert np.abs(ifft2(kspace[0, 0]) - image.conj()).max() < 1e-5 * np.abs(image).max()


def test_the_image_is_the_fft_of_what_is_stored(tmp_path: Path) -> None:
    """Siemens' sign: the image is found by FFT, its oversampled margins cut away."""
    image = noise(8, 6)
    image[:2], image[6:] = 0, 0  # twice the field of view, the object in its middle
    axes = (-2, -1)
    stored = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(image, axes=axes), norm="ortho"),
                             axes=axes).astype(np.complex64)  # fmt: skip
    scan = read_twix(save(tmp_path / "a.dat", image_blocks(stored.T[:, None])))
    check_image(scan.kspace, image[2:6])
    with pytest.raises(AssertionError):
        check_image(scan.kspace.conj().resolve_conj(), image[2:6])  # turned by 180 degrees


@pytest.mark.parametrize("vd", [True, False])
def test_lines_lie_about_the_centre_line(tmp_path: Path, vd: bool) -> None:
    """Partial Fourier: counters start at 0, the centre is line 2 of a matrix of 8."""
    samples = noise(6, 2, 4)
    blocks = [block(samples[i], vd, Lin=i, centre=(2, 2)) for i in (5, 1, 0, 4, 2)]  # without 3
    scan = read_twix(save(tmp_path / "a.dat", blocks, vd, lPhaseEncodingLines="8"))
    want = np.zeros((2, 4, 8), np.complex64)
    for i in (0, 1, 2, 4, 5):
        want[:, :, i + 2] = samples[i].conj()
    check_equal(scan.kspace[0], want, scan.kspace[0].roll(-2, -1), scan.kspace[0].flip(-1))
    assert scan.mask is not None
    assert scan.mask.tolist() == [False, False, True, True, True, False, True, True]
    assert not np.signbit(scan.kspace.imag[..., ~scan.mask].numpy()).any()
    # The same lines about line 4 reach beyond a matrix of 6.
    blocks = [block(samples[i], vd, Lin=i, centre=(2, 4)) for i in range(6)]
    scan = read_twix(save(tmp_path / "a.dat", blocks, vd))
    assert scan.kspace.shape == (1, 2, 4, 8)
    assert scan.mask is not None
    assert scan.mask.tolist() == [True] * 6 + [False] * 2
    assert "8 columns put the centre line in the middle" in str(scan.attributes["note"])


def test_asymmetric_echoes_keep_their_oversampling(tmp_path: Path) -> None:
    samples = noise(6, 2, 12)
    path = save(tmp_path / "a.dat", image_blocks(samples, centre=(4, 3)), lBaseResolution="8")
    scan = read_twix(path)
    want = np.zeros((2, 16, 6), np.complex64)
    want[:, 4:] = samples.transpose(1, 2, 0).conj()
    check_equal(scan.kspace[0], want, scan.kspace[0].roll(-4, 1), scan.kspace[0].flip(1))
    assert scan.mask is not None
    assert scan.mask.tolist() == [[i >= 4] * 6 for i in range(16)]
    assert scan.crop == (8, 6)
    assert "12 of 16 points of the readout measured: its" in str(scan.attributes["note"])
    # Cut off by the counters instead, and no oversampling.
    samples[:, :, -1] = np.nan  # never looked at
    path = save(tmp_path / "a.dat", image_blocks(samples, cut=(2, 1)), lBaseResolution="12")
    scan = read_twix(path)
    want = samples.transpose(1, 2, 0).conj()
    want[:, :2], want[:, -1] = 0, 0
    check_equal(scan.kspace[0], want)
    assert scan.mask is not None
    assert scan.mask.tolist() == [[2 <= i < 11] * 6 for i in range(12)]
    assert scan.crop is None


def test_phase_oversampling_is_cut_from_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dat", image_blocks(noise(6, 1, 8)),
                sKSpace__dPhaseOversamplingForDialog="0.5")  # fmt: skip
    scan = read_twix(path)
    assert scan.kspace.shape == (1, 1, 4, 6)
    assert scan.crop == (4, 4)
    assert scan.attributes["pixel_y_mm"] == 150 / 4


def test_averages_are_averaged(tmp_path: Path) -> None:
    samples = noise(3, 6, 2, 4)
    blocks = [block(samples[a, i], Lin=i, Ave=a) for a in range(3) for i in range(6)]
    scan = read_twix(save(tmp_path / "a.dat", blocks))
    want = samples.mean(0).transpose(1, 2, 0).conj()

    def check(kspace: Tensor) -> None:
        assert np.abs(kspace.numpy() - want).max() < 1e-6 * np.abs(want).max()

    check(scan.kspace[0])
    last = torch.from_numpy(samples[2].transpose(1, 2, 0).conj())
    for wrong in (3 * scan.kspace[0], last):
        with pytest.raises(AssertionError):
            check(wrong)
    assert "lines are means of 3 averages" in str(scan.attributes["note"])
    scan = read_twix(save(tmp_path / "a.dat", blocks[:8]))
    check_equal(scan.kspace[0, :, :, 2:], samples[0, 2:].transpose(1, 2, 0).conj())
    assert "means of 1 to 2 averages" in str(scan.attributes["note"])


def test_slices_are_in_the_order_of_their_positions(tmp_path: Path) -> None:
    """Interleaved: the counters 0, 1, 2, 3 lie at -5, 5, 0 and 10 mm along the normal."""
    samples, depth = noise(4, 6, 2, 4), (-5.0, 5.0, 0.0, 10.0)
    blocks = [block(samples[s, i], Lin=i, Sli=s, position=(7.0, 9.0, depth[s]))
              for i in range(6) for s in range(4)]  # fmt: skip
    path = save(tmp_path / "a.dat", blocks, lSize="4")
    scan = read_twix(path)
    want = samples[[0, 2, 1, 3]].transpose(0, 2, 3, 1).conj()
    check_equal(scan.kspace, want, scan.kspace[[0, 2, 1, 3]], scan.kspace.flip(0))
    assert "in the order of their positions" in str(scan.attributes["note"])
    assert torch.equal(read_twix(path, slice(1, 3)).kspace, scan.kspace[1:3])
    assert layout_twix(path).slices == 4
    with pytest.raises(ValueError, match="chooses none of the 4"):
        read_twix(path, slice(4, 5))
    flat = [block(samples[s, i], Lin=i, Sli=s) for i in range(6) for s in range(4)]
    scan = read_twix(save(tmp_path / "a.dat", flat))
    check_equal(scan.kspace, samples.transpose(0, 2, 3, 1).conj())
    assert "no positions" in str(scan.attributes["note"])
    assert "4 slices are there, the protocol promises 1" in str(scan.attributes["note"])


def test_other_readouts_are_left_out_or_used(tmp_path: Path) -> None:
    samples = noise(6, 2, 4)
    separate = block(noise(2, 4), flags=(REFERENCE,), Lin=1)
    blocks = [
        separate,
        block(noise(2, 7), flags=(PHASCOR, REFLECT), Lin=5),
        block(samples[0], Lin=0, flags=(REFERENCE_AND_IMAGE,)),
        struct.pack("<I", 512) + block(np.zeros((0, 0)), flags=(5,))[4:] + bytes(320),  # no samples
        block(samples[1], Lin=1, flags=(REFERENCE, REFERENCE_AND_IMAGE)),
        block(samples[3], Lin=3, Seg=1),
    ]
    scan = read_twix(save(tmp_path / "a.dat", blocks))
    assert scan.mask is not None
    assert scan.mask.tolist() == [True, True, False, True, False, False]
    note = str(scan.attributes["note"])
    assert "1 lines of parallel calibration left out" in note
    assert "1 readouts with the flag PHASCOR left out" in note
    # In place: the calibration lines are part of the scan.
    blocks[0] = block(samples[2], flags=(REFERENCE,), Lin=2)
    scan = read_twix(save(tmp_path / "a.dat", blocks, sPat__ucRefScanMode="0x2"))
    check_equal(scan.kspace[0, :, :, 2], samples[2].conj())
    assert "1 lines of parallel calibration used" in str(scan.attributes["note"])


# --- noise ---


def coloured(shape: tuple[int, ...], seed: int) -> Array:
    """Noise ``(readouts, 2 coils, columns)``, the second coil half of the first times i."""
    white = noise(*shape, seed=seed)
    return np.stack([white[:, 0], 0.5j * white[:, 0] + 0.3 * white[:, 1]], 1).astype(np.complex64)


def check_covariance(scan: Scan, tolerance: float) -> None:
    """The scan is noise alone, so its own k-space shows its covariance."""
    assert scan.noise_covariance is not None
    values = scan.kspace[..., scan.mask] if scan.mask is not None else scan.kspace
    values = values.transpose(0, 1).flatten(1).to(torch.complex128)
    want = values @ values.mH / values.shape[1]
    error = (scan.noise_covariance - want).abs().max()
    assert float(error) < tolerance * float(want.abs().max())


@pytest.mark.parametrize("base", ["32", "64"])  # with and without twofold oversampling
@pytest.mark.parametrize("averages", [1, 2])
def test_noise_covariance_is_that_of_the_kspace(tmp_path: Path, base: str, averages: int) -> None:
    """Half the dwell time is twice the bandwidth, so twice the variance."""
    scan = [block(s, Lin=i % 60, Ave=i // 60, lines=60)
            for i, s in enumerate(coloured((60 * averages, 2, 64), 1))]  # fmt: skip
    adjustment = [block(s * np.float32(2**0.5), flags=(NOISE,)) for s in coloured((99, 2, 64), 2)]
    options: dict[str, Any] = {"lBaseResolution": base, "lPhaseEncodingLines": "60"}
    first = measurement(adjustment, alDwellTime="2500")
    path = tmp_path / "a.dat"
    path.write_bytes(raid(first, measurement(scan, **options)))
    read = read_twix(path)
    # Relative standard error of 3840 values is 0.016; half of them remain without oversampling.
    check_covariance(read, 0.1)
    assert layout_twix(path).keys["noise"]["shape"] == (99, 2, 64)
    assert "noise covariance times 0.5, the ratio" in str(read.attributes["note"])
    covariance = read.noise_covariance
    assert covariance is not None
    for wrong in (covariance.conj().resolve_conj(), 2 * covariance, covariance / 0.793):
        with pytest.raises(AssertionError):
            check_covariance(read._replace(noise_covariance=wrong), 0.1)


def test_noise_outside_the_field_of_view_does_not_count(tmp_path: Path) -> None:
    """A receiver's filter is flat in the middle half of its band alone, so only this is used."""
    wave = np.exp(2j * np.pi * np.arange(64) * np.array([[3 / 8], [1 / 8]])).astype(np.complex64)
    blocks = [block(wave, flags=(NOISE,)), *image_blocks(noise(6, 2, 64))]
    # Orthonormal: the power of a wave is in half as many points.
    for base, want in (("32", [[0, 0], [0, 2]]), ("64", [[1, 0], [0, 1]])):
        scan = read_twix(save(tmp_path / "a.dat", blocks, lBaseResolution=base))
        assert scan.noise_covariance is not None
        assert np.abs(scan.noise_covariance.numpy() - want).max() < 1e-5


def test_noise_of_unknown_dwell_time_or_other_coils(tmp_path: Path) -> None:
    samples, own = noise(6, 2, 4), noise(9, 2, 4, seed=3)
    adjustment = [block(s, flags=(NOISE,)) for s in own]
    scan = read_twix(save(tmp_path / "a.dat", adjustment + image_blocks(samples)))
    values = own.transpose(1, 0, 2).reshape(2, -1).conj().astype(np.complex128)
    want = values @ values.conj().T / values.shape[1]
    assert scan.noise_covariance is not None
    assert np.abs(scan.noise_covariance.numpy() - want).max() < 1e-6 * np.abs(want).max()
    assert "so its scale is not known" in str(scan.attributes["note"])
    element: Any = "sCoilSelectMeas__aRxCoilSelectData[0]__asList[0]__sCoilElementID__tElement"
    path = tmp_path / "a.dat"
    for other in (
        measurement([block(s[:1], flags=(NOISE,)) for s in own]),
        measurement([block(own[0][:, :1], flags=(NOISE,))]),
        measurement(adjustment, **{element: '"H2"'}),
    ):
        path.write_bytes(raid(other, measurement(image_blocks(samples), **{element: '"H1"'})))
        scan = read_twix(path)
        assert scan.noise_covariance is None
        assert "noise adjustment left out" in str(scan.attributes["note"])


# --- what is refused ---

SAMPLES = noise(6, 2, 8)


def changed(at: int, value: bytes, data: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def hand_made(**changes: Any) -> bytes:
    return raid(measurement(image_blocks(SAMPLES), **changes))


def with_blocks(*blocks: bytes) -> bytes:
    return raid(measurement([*image_blocks(SAMPLES), *blocks]))


def with_samples(value: complex, line: int = 2) -> bytes:
    samples = SAMPLES.copy()
    samples[line, 1, 3] = value
    return raid(measurement(image_blocks(samples)))


WHOLE = hand_made()
FIRST = 10240 + len(header(True))
STEP = len(block(SAMPLES[0]))
VB = measurement(image_blocks(SAMPLES, False), False)
VB_FIRST = len(header(False))
NOT_SIEMENS = "not Siemens raw data, or cut short within its header"

REFUSED = {
    "empty": (b"", "the file is empty"),
    "login page": (b"<!DOCTYPE html><html>log in</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "text": (b"plain text " * 50, NOT_SIEMENS),
    "zeros": (bytes(20000), NOT_SIEMENS),
    "cut in the table": (WHOLE[:2000], NOT_SIEMENS),
    "cut in the header": (WHOLE[:10300], NOT_SIEMENS),
    "cut in the samples": (WHOLE[: FIRST + 3 * STEP + 50], "measurement 1 of 1 should end at byte"),
    "half": (WHOLE[: len(WHOLE) // 2], NOT_SIEMENS),
    "no end mark": (raid(measurement(image_blocks(SAMPLES))[: -len(end())]), "no end mark after 6"),
    "VB cut in the header": (VB[: VB_FIRST - 9], NOT_SIEMENS),
    "VB cut in the samples": (VB[: VB_FIRST + 700], "no end mark after 2 blocks"),
    "VB without channels": (changed(VB_FIRST + 30, b"\0\0", VB), "block 1 is empty"),
    "VD without channels": (changed(FIRST + 50, b"\0\0", WHOLE), "block 1 is empty"),
    "without samples": (changed(FIRST + STEP + 48, b"\0\0", WHOLE), "block 2 is empty"),
    "empty sync block": (changed(FIRST, struct.pack("<I", 0), changed(FIRST + 40, b"\x20", WHOLE)),
                         "block 1 is empty"),
    "64 zeroed bytes": (changed(FIRST + 3 * STEP, bytes(64), WHOLE), "block 4 is empty"),
    "too many channels": (changed(FIRST + 50, b"\xff\xff", WHOLE), "no end mark after 1 blocks"),
    "texts too long": (changed(10255, b"\xff\xff", WHOLE), "texts of the header do not fit"),
    "header too long": (changed(10240, struct.pack("<I", len(WHOLE)), WHOLE), NOT_SIEMENS),
    "no readouts": (raid(measurement([])), "no image lines among the 0 readouts"),
    "only noise": (raid(measurement([block(SAMPLES[0], flags=(NOISE,))])), "no image lines among"),
    "NaN": (with_samples(np.nan), "kspace: slice 0 holds NaN or infinity"),
    "infinity": (with_samples(complex(0, np.inf)), "kspace: slice 0 holds NaN or infinity"),
    "noise NaN": (with_blocks(block(np.full((2, 8), np.nan, np.complex64), flags=(NOISE,))),
                  "noise adjustment: holds NaN"),
    "no base": (hand_made(lBaseResolution=None), "sKSpace.lBaseResolution: missing"),
    "base 0": (hand_made(lBaseResolution="0"), "lBaseResolution: want 1 to 65535, got 0"),
    "base huge": (hand_made(lBaseResolution="60000"), "want readouts of 60000 samples or twice"),
    "base 3": (hand_made(lBaseResolution="3"), "want readouts of 3 samples or twice"),
    "no number": (hand_made(lBaseResolution=PATIENT), "sKSpace.lBaseResolution: want a number"),
    "not finite": (hand_made(lPhaseEncodingLines="inf"), "lPhaseEncodingLines: want a number"),
    "lines 4.5": (hand_made(lPhaseEncodingLines="4.5"), "want 1 to 65535, got 4.5"),
    "lines 2": (hand_made(lPhaseEncodingLines="2"), "2 does not fit 6 lines from 3 before to 2"),
    "lines huge": (hand_made(lPhaseEncodingLines="60000"), "60000 does not fit 6 lines"),
    "oversampling": (hand_made(sKSpace__dPhaseOversamplingForDialog="-1"), "want a fraction"),
    "3-D": (hand_made(ucDimension="0x4"), "ucDimension: the scan is 3-D, want 2-D slices"),
    "radial": (hand_made(ucTrajectory="0x2"), "ucTrajectory: the trajectory is radial"),
    "spiral": (hand_made(ucTrajectory="4"), "the trajectory is spiral"),
    "multi-band": (hand_made(sSliceAcceleration__lMultiBandFactor="3"), "3 slices were excited"),
    "EPI": (with_blocks(block(SAMPLES[0], Lin=0, Ave=1, flags=(REFLECT,))), "phase correction"),
    "echoes": (with_blocks(block(SAMPLES[0], Eco=1), block(SAMPLES[0], Rep=2)),
               "holds 2 contrasts and 2 repetitions, only one image"),
    "partitions": (with_blocks(block(SAMPLES[0], Par=3)), "holds 2 partitions"),
    "phases": (with_blocks(block(SAMPLES[0], Phs=1)), "holds 2 phases"),
    "sets": (with_blocks(block(SAMPLES[0], Set=1)), "holds 2 sets"),
    "twice": (with_blocks(block(SAMPLES[0], Lin=4)), "line 4 of slice 0 was measured 2 times, told "
              "apart by no counter"),
    "segments": (with_blocks(block(SAMPLES[0], Lin=4, Seg=1)), "told apart by Seg"),
    "other samples": (with_blocks(block(SAMPLES[0][:, :6], Ave=1)), "SamplesInScan: want it alike"),
    "other channels": (with_blocks(block(SAMPLES[0][:1], Ave=1)), "UsedChannels: want it alike"),
    "other centre": (with_blocks(block(SAMPLES[0], Ave=1, centre=(3, 3))), "CenterCol: want it"),
    "broken off": (with_blocks(block(SAMPLES[0], Sli=1)), "slice 1 has 1 of 6 lines"),
    "slice missing": (with_blocks(*image_blocks(SAMPLES, Sli=2)), "slice 1 has 0 of 6 lines"),
    "echo off": (raid(measurement(image_blocks(SAMPLES, centre=(3, 3)))), "with the echo at 3"),
    "echo lost": (raid(measurement(image_blocks(SAMPLES, cut=(5, 0)))), "CutOff: leaves out the"),
    "centre lost": (raid(measurement([block(s, Lin=i, centre=(4, 9))
                                      for i, s in enumerate(SAMPLES)])),
                    "CenterLin: 9 is not among lines 0 to 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    data, match = REFUSED[name]
    path = tmp_path / "a.dat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(match)) as caught:
        read_twix(path)
    assert str(caught.value).startswith("a.dat: ")
    assert not any(private in str(caught.value) for private in (PATIENT, str(tmp_path)))
    if "NaN" not in name and name != "infinity":
        with pytest.raises(FormatError, match=re.escape(match)):
            layout_twix(path)


def test_missing_file_folder_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        read_twix(tmp_path / "a.dat")
    with pytest.raises(IsADirectoryError):
        read_twix(tmp_path)
    (tmp_path / "a.dat").write_bytes(WHOLE)
    monkeypatch.setitem(sys.modules, "twixtools", None)
    with pytest.raises(ImportError, match=re.escape('pip install "recon[twix]"')):
        read_twix(tmp_path / "a.dat")
    assert is_twix(tmp_path / "a.dat", WHOLE[:512])


def test_zeros_are_read_as_zeros(tmp_path: Path) -> None:
    scan = read_twix(save(tmp_path / "a.dat", image_blocks(np.zeros((6, 2, 8), np.complex64))))
    assert scan.mask is None
    assert not scan.kspace.any()


def test_nothing_about_the_patient_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(WHOLE)
    assert WHOLE.count(PATIENT.encode()) == 4
    told = f"{read_twix(path)._replace(kspace=torch.zeros(1))}{layout_twix(path)}"
    assert not any(part in told for part in PATIENT.split("^"))
    path.write_bytes(hand_made(tSequenceFileName=f'"%CustomerSeq%\\{PATIENT}"'))
    assert "sequence" not in read_twix(path).attributes  # no such characters in a name


def test_other_files_are_not_taken_for_siemens(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    rng = np.random.default_rng(0)
    heads = [b"\x89HDF\r\n\x1a\n", b"PK\3\4\x14\0\0\0\x08\0", b"\x93NUMPY\1\0v\0{'descr'",
             b"rawarray", struct.pack("<i", 348), bytes(128) + b"DICM", b"", b"II*\0\x08\0\0\0",
             struct.pack("<II", 0, 1), struct.pack("<II", 20000, 6) + b"Con\0",
             *(rng.bytes(600) for _ in range(300))]  # fmt: skip
    for head in heads:
        path.write_bytes(head + bytes(30000))
        assert not is_twix(path, path.read_bytes()[:512])
    path.write_bytes(struct.pack("<IIII", 0, 1, 0, 0) + struct.pack("<Q", 1 << 62) + bytes(600))
    assert not is_twix(path, path.read_bytes()[:512])


@pytest.mark.parametrize("vd", [True, False])
def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path, vd: bool) -> None:
    adjustment = [block(noise(2, 8, seed=i), vd, flags=(NOISE,)) for i in range(3)]
    data = measurement(adjustment + image_blocks(SAMPLES, vd), vd)
    whole = np.frombuffer(raid(data, data) if vd else data, np.uint8)
    # What a reader looks at: the table, the start and the protocol of each header, the blocks.
    protocol = [m.start() for m in re.finditer(b"MeasYaps", whole.tobytes())]
    starts = [10240, protocol[0] - 100, protocol[-1]] if vd else [0, protocol[0]]
    places = np.concatenate([np.arange(400), *(np.arange(s, s + 1500) for s in starts)])
    places = places[places < len(whole)]
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.choice(places, 3)] = rng.choice([0, 1, 255, 48, 57, *range(0, 256, 9)], 3)
        if rng.integers(8) == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        failed += refusals(tmp_path / "a.dat", damaged.tobytes(), read_twix, layout_twix)
    assert failed > 60
