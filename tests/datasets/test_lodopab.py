"""LoDoPaB-CT: its geometry against ODL and analytic sinograms, its files against bad ones."""

import functools
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets import FormatError, Projections
from recon.datasets.lodopab import is_lodopab, layout_lodopab, read_lodopab, write_lodopab
from recon.operators import ParallelBeamCT
from tests.datasets.damaged import refusals

MU_MAX = 81.35858  # 1 / m
SIGNALLING = np.uint64(0x7FF0000000000001).view(np.float64)  # a NaN numpy warns of when cast
EVERY = 125  # views of the 1000 that are compared
# x, y, radius in m, and value: no flip, turn or transposition leaves these two where they are
PLACES = ((0.06, 0.02, 0.03, 0.3), (-0.02, -0.07, 0.02, 0.6))
Profile = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Shape(NamedTuple):
    """Of unit radius and height."""

    value: Profile
    """At this squared distance from the middle."""
    chord: Profile
    """Its integral along a line at this distance from the middle."""
    error: float
    """What its pixels may cost, in parts of the norm of the sinogram."""


SHAPES = {
    "disc": Shape(lambda q: (q <= 1).astype(float),
                  lambda t: 2 * np.sqrt(np.maximum(1 - t**2, 0)), 0.01),
    "mound": Shape(lambda q: np.exp(-4 * q),
                   lambda t: math.sqrt(math.pi / 4) * np.exp(-4 * t**2), 0.002),
}  # fmt: skip


def geometry() -> Any:
    """As LoDoPaB's own code makes it, with ODL."""
    import odl
    from odl.applications import tomo

    space = odl.uniform_discr([-0.13, -0.13], [0.13, 0.13], (362, 362), dtype="float32")
    return tomo.parallel_beam_geometry(space, num_angles=1000, det_shape=(513,))


def sinogram(shape: Shape, views: slice = slice(None)) -> NDArray[np.float64]:
    """Integrals in m along ODL's lines, each a point of the detector and a direction."""
    geom = geometry()
    angles, shifts = geom.angles[views], geom.det_partition.grid.coord_vectors[0]
    found = np.zeros((len(angles), len(shifts)))
    for i, angle in enumerate(angles):
        along = np.asarray(geom.det_to_src(angle, shifts[0])).ravel()
        points = np.stack([np.asarray(geom.det_point_position(angle, s)).ravel() for s in shifts])
        for x, y, radius, value in PLACES:
            apart = (x - points[:, 0]) * along[1] - (y - points[:, 1]) * along[0]
            found[i] += shape.chord(apart / radius) * radius * value
    return found


def image(shape: Shape) -> NDArray[np.float32]:
    """Axis 0 is x, axis 1 is y, in LoDoPaB's order; each pixel the mean over 8 x 8 points."""
    at = (np.arange(8 * 362) + 0.5) * (0.26 / (8 * 362)) - 0.13
    fine = np.zeros((len(at), len(at)))
    for x, y, radius, value in PLACES:
        fine += value * shape.value(((at[:, None] - x) ** 2 + (at - y) ** 2) / radius**2)
    return fine.reshape(362, 8, 362, 8).mean((1, 3)).astype(np.float32)


def pair(folder: Path, values: Any = None, images: Any = None, name: str = "test_000") -> Path:
    """A pair of files as LoDoPaB's script writes it, not by our writer."""
    path = folder / f"observation_{name}.hdf5"
    for kind, array in (("observation", values), ("ground_truth", images)):
        if array is not None:
            with h5py.File(folder / f"{kind}_{name}.hdf5", "w") as file:
                file.create_dataset("data", data=array, maxshape=(128, *array.shape[1:]),
                                    chunks=True)  # fmt: skip
    return path


def scanned(folder: Path, shape: Shape) -> Projections:
    values = np.zeros((1, 1000, 513), np.float32)
    values[0, ::EVERY] = sinogram(shape, slice(None, None, EVERY))
    return read_lodopab(pair(folder, values, image(shape)[None]))


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Projections:
    return scanned(tmp_path_factory.mktemp("mounds"), SHAPES["mound"])


projector = functools.cache(ParallelBeamCT)


def check_projections(p: Projections, error: float) -> None:
    """The operator that the fields describe, applied to the reference, gives the values."""
    assert p.reference is not None
    operator = projector(p.size, tuple(p.angles[::EVERY].tolist()), p.values.shape[-1],
                         p.detector_offset, p.pixel_mm, p.bin_mm)  # fmt: skip
    wanted = p.values[:1, ::EVERY]
    found = operator(p.reference[:1])
    assert float((found - wanted).norm() / wanted.norm()) < error


def turned(p: Projections, quarters: int, transposed: bool) -> Projections:
    assert p.reference is not None
    x = p.reference.transpose(1, 2) if transposed else p.reference
    return p._replace(reference=x.rot90(quarters, (1, 2)))


@pytest.mark.parametrize("name", SHAPES)
def test_the_operator_of_the_reference_gives_the_values(tmp_path: Path, name: str) -> None:
    """And of the eight arrangements of the image only the right one."""
    scan = scanned(tmp_path, SHAPES[name])
    check_projections(scan, SHAPES[name].error)
    for quarters, transposed in itertools.product(range(4), (False, True)):
        if (quarters, transposed) != (0, False):
            with pytest.raises(AssertionError):
                check_projections(turned(scan, quarters, transposed), 0.4)
    assert scan.reference is not None
    assert (scan.unit, scan.kind, scan.size) == ("0.08135858/mm", "lodopab", (362, 362))
    # upright: y runs down, so what is at (0.06, 0.02) lies right of the middle and below it
    row, column = (round(180.5 + 362 * place / 0.26) for place in (0.02, 0.06))
    assert float(scan.reference[0, row, column]) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("wrong", [
    lambda p: p._replace(values=p.values / 1000),
    lambda p: p._replace(values=p.values.flip(2)),
    lambda p: p._replace(angles=-p.angles),
    lambda p: p._replace(angles=p.angles + math.pi / 2000),
    lambda p: p._replace(detector_offset=0.1),
    lambda p: p._replace(bin_mm=p.pixel_mm),
    lambda p: p._replace(pixel_mm=260 / 360),
])
def test_the_check_of_the_geometry_catches(scan: Projections,
                                           wrong: Callable[[Projections], Projections]) -> None:
    with pytest.raises(AssertionError):
        check_projections(wrong(scan), SHAPES["mound"].error)


def check_angles_and_bins(p: Projections) -> None:
    geom = geometry()
    np.testing.assert_allclose(-p.angles, geom.angles, rtol=0, atol=1e-12)
    bins = p.values.shape[-1]
    centres = (np.arange(bins) - (bins - 1) / 2 + p.detector_offset) * p.bin_mm / 1000
    np.testing.assert_allclose(centres, geom.det_partition.grid.coord_vectors[0], rtol=0,
                               atol=1e-12)  # fmt: skip
    assert centres[0] == pytest.approx(-0.18348939, abs=1e-8)
    side = p.size[0] * p.pixel_mm / 1000
    assert side == pytest.approx(0.26, abs=1e-15)


def test_angles_and_bins_are_those_of_odl(scan: Projections) -> None:
    check_angles_and_bins(scan)
    for wrong in (scan._replace(angles=scan.angles + math.pi / 2000),
                  scan._replace(bin_mm=scan.bin_mm * (1 + 1e-9)),
                  scan._replace(detector_offset=0.5)):  # fmt: skip
        with pytest.raises(AssertionError):
            check_angles_and_bins(wrong)


def simulated(rng: np.random.Generator, lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """The paper's measurement of line integrals in m, of images in units of mu_max."""
    counts = rng.poisson(4096 * np.exp(-MU_MAX * lines))
    return -np.log(np.maximum(0.1, counts) / 4096) / MU_MAX


def check_noise(p: Projections, clean: NDArray[np.float64]) -> None:
    """Values over the attributes' standard deviation have variance 1 where many photons came."""
    mu_max, photons = float(p.attributes["mu_max_per_mm"]), float(p.attributes["photons"])
    std = np.sqrt(np.exp(mu_max * clean) / photons) / mu_max
    many = photons * np.exp(-mu_max * clean) > 200
    score = ((p.values[0, ::EVERY].numpy() - clean) / std)[many]
    assert np.square(score).mean() == pytest.approx(1, abs=0.1)  # 4 standard deviations: 0.09
    assert many.sum() > 3900


def test_noise_and_saturation_in_the_attributes(tmp_path: Path) -> None:
    clean = sinogram(SHAPES["disc"], slice(None, None, EVERY))
    values = np.zeros((1, 1000, 513), np.float32)
    values[0, ::EVERY] = simulated(np.random.default_rng(0), clean)
    values[0, 1] = simulated(np.random.default_rng(0), np.full(513, 0.2))
    p = read_lodopab(pair(tmp_path, values))
    check_noise(p, 1000 * clean)
    for wrong in ({"photons": 8192}, {"mu_max_per_mm": 1.1 * MU_MAX / 1000}):
        with pytest.raises(AssertionError):
            check_noise(p._replace(attributes={**p.attributes, **wrong}), 1000 * clean)
    assert p.attributes["saturation"] == pytest.approx(130.54, abs=0.005)
    assert float(p.values.max()) == pytest.approx(float(p.attributes["saturation"]), rel=1e-6)
    assert {key: p.attributes[key] for key in ("part", "first_sample", "mu_water_per_mm")} == {
        "part": "test", "first_sample": 0, "mu_water_per_mm": 0.02}  # fmt: skip
    assert float(p.attributes["mu_max_per_mm"]) == pytest.approx(MU_MAX / 1000, rel=1e-12)


def test_hu_of_the_reference(scan: Projections) -> None:
    """What the script made of HU, undone with the attributes."""
    hu = torch.tensor([-1000.0, 0.0, 50.0, 3071.0], dtype=torch.float64)
    stored = (hu * (20 - 0.02) / 1000 + 20) / MU_MAX
    mu_max, water, air = (float(scan.attributes[f"mu_{key}_per_mm"])
                          for key in ("max", "water", "air"))  # fmt: skip
    torch.testing.assert_close(1000 * (stored * mu_max - water) / (water - air), hu)


def rows(n: int) -> NDArray[np.float32]:
    """Images told apart by their first pixel, x = 0 and y = 1 by the next."""
    found = np.zeros((n, 362, 362), np.float32)
    found[:, 0, 0] = (1 + np.arange(n)) / 200
    found[:, 0, 1] = 0.9
    return found


def sparse(folder: Path, kind: str, name: str, n: int, images: Any = None) -> None:
    """A file of full size, chunks never written being zero, as the script's last file."""
    size = (1000, 513) if kind == "observation" else (362, 362)
    with h5py.File(folder / f"{kind}_{name}.hdf5", "w") as file:
        data = file.create_dataset("data", (n, *size), "f4", chunks=(1, *size))
        if images is not None:
            data[: len(images)] = images


@pytest.mark.parametrize(("name", "count"), [
    ("train_279", 108), ("validation_027", 66), ("test_027", 97), ("test_026", 128)])
@pytest.mark.parametrize("resized", [True, False])
def test_padding_of_the_last_file_is_not_served(tmp_path: Path, name: str, count: int,
                                                resized: bool) -> None:  # fmt: skip
    sparse(tmp_path, "observation", name, count if resized else 128)
    sparse(tmp_path, "ground_truth", name, 128, rows(count))
    path = tmp_path / f"observation_{name}.hdf5"
    assert layout_lodopab(path).slices == count
    p = read_lodopab(path, slice(count - 2, None))
    assert p.reference is not None
    assert p.reference.shape == (2, 362, 362)
    assert p.reference[:, 0, 0].tolist() == pytest.approx([(count - 1) / 200, count / 200])
    assert p.reference[:, 1, 0].tolist() == pytest.approx([0.9, 0.9])  # y = 1 is the second row
    padding = 0 if resized else 128 - count
    assert str(p.attributes.get("note", "")) == (
        f"{padding} rows behind the last sample are padding and were left out" if padding else "")
    assert p.attributes["first_sample"] == 128 * int(name[-3:])
    with pytest.raises(ValueError, match=f"chooses none of the {count} slices"):
        read_lodopab(path, slice(count, None))


def test_without_its_images(tmp_path: Path) -> None:
    sparse(tmp_path, "observation", "test_000", 3)
    p = read_lodopab(tmp_path / "observation_test_000.hdf5")
    assert p.reference is None
    assert p.attributes["note"] == ("holds 3 of the 128 samples of this file; no "
                                    "ground_truth_test_000.hdf5 beside it, so there is no "
                                    "reference")  # fmt: skip
    (tmp_path / "observation_test_000.hdf5").rename(tmp_path / "mine.hdf5")
    p = read_lodopab(tmp_path / "mine.hdf5")
    assert p.values.shape == (3, 1000, 513)
    assert "not named as in LoDoPaB" in str(p.attributes["note"])
    assert "part" not in p.attributes


def test_only_the_chosen_slices_are_read(tmp_path: Path) -> None:
    path = pair(tmp_path, np.full((3, 1000, 513), np.nan, "f4"), rows(3))
    with h5py.File(path, "r+") as file:
        file["data"][1] = 0.01
    p = read_lodopab(path, slice(1, 2))
    assert bool((p.values == 10).all())
    assert p.reference is not None
    assert float(p.reference[0, 0, 0]) == pytest.approx(2 / 200)
    with pytest.raises(FormatError, match="data: slice 2 holds NaN or infinity"):
        read_lodopab(path, slice(2, 3))


def test_double_precision_is_cast_and_told(tmp_path: Path) -> None:
    path = pair(tmp_path, np.full((1, 1000, 513), 0.01), rows(1).astype("f8"))
    note = str(read_lodopab(path).attributes["note"])
    assert "observation_test_000.hdf5 was float64, cast to float32" in note
    assert "ground_truth_test_000.hdf5 was float64, cast to float32" in note


def save(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    with h5py.File(path) as file:
        array = file["data"][()]
    save(path, data=change(array))


def put(array: Any, value: float) -> Any:
    array[1, 5, 7] = value
    return array


def linked(path: Path) -> None:
    other = path.with_name("other.hdf5")
    shutil.move(path, other)
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(other), "data")


O, G = "observation_test_000.hdf5", "ground_truth_test_000.hdf5"
DAMAGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("empty", O, lambda p: p.write_bytes(b""), "the file is empty"),
    ("web page", O, lambda p: p.write_text("<!DOCTYPE html>"), "a web page"),
    ("LFS pointer", O, lambda p: p.write_text("version https://git-lfs"), "git lfs pull"),
    ("text", O, lambda p: p.write_text("plain text"), "not a whole HDF5 file"),
    ("cut short", O, cut_short, "not a whole HDF5 file.*truncated"),
    ("images cut short", G, cut_short, "not a whole HDF5 file.*truncated"),
    ("no data", O, lambda p: save(p, other=1), "data: no such key.*holds other"),
    ("group", O, lambda p: save(p, **{"data/inner": 1}), "data: want an array, got a group"),
    ("elsewhere", O, linked, "data: its values lie in other files"),
    ("null", O, lambda p: save(p, data=h5py.Empty("f4")), r"want \(n, 1000, 513\)"),
    ("images for sinograms", O, lambda p: shutil.copy(p.with_name(G), p),
     "data: holds images, not sinograms: pass the file of the same name with observation"),
    ("bins", O, lambda p: rewritten(p, lambda x: x[..., :512]),
     r"want \(n, 1000, 513\) of float32, got \(2, 1000, 512\) of float32"),
    ("axes", O, lambda p: rewritten(p, lambda x: x.swapaxes(1, 2)), r"got \(2, 513, 1000\)"),
    ("one sinogram", O, lambda p: rewritten(p, lambda x: x[0]), r"got \(1000, 513\) of float32"),
    ("no sinogram", O, lambda p: rewritten(p, lambda x: x[:0]), r"got \(0, 1000, 513\)"),
    ("whole numbers", O, lambda p: rewritten(p, lambda x: x.astype(int)), "of int64"),
    ("complex", O, lambda p: rewritten(p, lambda x: x.astype("c8")), "of complex64"),
    ("records", O, lambda p: save(p, data=np.zeros((2, 1000, 513), [("a", "f4")])), "got .* of"),
    ("NaN", O, lambda p: rewritten(p, lambda x: put(x, np.nan)), "data: slice 1 holds NaN"),
    ("infinity", O, lambda p: rewritten(p, lambda x: put(x, np.inf)), "data: slice 1 holds NaN"),
    ("signalling NaN", O, lambda p: rewritten(p, lambda x: put(x.astype("f8"), SIGNALLING)),
     "data: slice 1 holds NaN"),
    ("not over mu_max", O, lambda p: rewritten(p, lambda x: put(x, 10.6)),
     r"slice 1 holds values from 0 to 10.6, want -log\(counts / 4096\) / 81.35858, at most 0.130"),
    ("counts", O, lambda p: rewritten(p, lambda x: put(x, -0.02)), "values from -0.02 to 0, want"),
    ("another dose", O, lambda p: rewritten(p, lambda x: put(x, math.log(1e6) / MU_MAX)),
     "slice 1 holds values from 0 to 0.1698"),
    ("too many rows", O, lambda p: sparse(p.parent, "observation", "test_000", 129),
     "data: holds 129 rows, want no more than 128"),
    ("fewer images", G, lambda p: rewritten(p, lambda x: x[:1]),
     "data: holds 1 images for 2 sinograms"),
    ("image of zeros", G, lambda p: rewritten(p, lambda x: x * np.array([1, 0])[:, None, None]),
     "data: slice 1 is all zeros, like rows never written"),
    ("HU", G, lambda p: rewritten(p, lambda x: 4096 * x - 1024),
     "data: slice 0 holds values from -1024 to 2662, want 0 to 1"),
    ("image size", G, lambda p: rewritten(p, lambda x: x[:, :320, :320]),
     r"want \(n, 362, 362\) of float32, got \(2, 320, 320\)"),
    ("image NaN", G, lambda p: rewritten(p, lambda x: put(x, np.nan)), "data: slice 1 holds NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "told"), [d[1:] for d in DAMAGES],
                         ids=[d[0] for d in DAMAGES])  # fmt: skip
def test_damaged_files(tmp_path: Path, name: str, damage: Callable[[Path], object],
                       told: str) -> None:  # fmt: skip
    path = pair(tmp_path, np.zeros((2, 1000, 513), "f4"), rows(2))
    damage(tmp_path / name)
    with pytest.raises(FormatError, match=f"^{name}: .*{told}") as caught:
        read_lodopab(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_number_there_is_not(tmp_path: Path) -> None:
    sparse(tmp_path, "observation", "test_028", 1)
    for use in (read_lodopab, layout_lodopab):
        with pytest.raises(FormatError, match="part test ends with file 027"):
            use(tmp_path / "observation_test_028.hdf5")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_lodopab(tmp_path / O)
    with pytest.raises(IsADirectoryError):
        read_lodopab(tmp_path)


def test_corrupted_chunk_shows_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / O
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (2, 1000, 513), "f4", chunks=(1, 1000, 513),
                                   compression="gzip")  # fmt: skip
        data[:] = 0.01
        chunk = data.id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 20)
        raw.write(b"\xff" * 64)
    assert bool((read_lodopab(path, slice(0, 1)).values == 10).all())
    with pytest.raises(FormatError, match="data: cannot be read, the file is damaged"):
        read_lodopab(path, slice(1, 2))


def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path) -> None:
    sparse(tmp_path, "observation", "test_000", 2, None)
    path = tmp_path / O
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=6)] = rng.integers(256, size=6)
        failed += refusals(path, damaged.tobytes(), lambda p: read_lodopab(p, slice(0, 1)),
                           layout_lodopab)
    assert failed > 60


def test_recognition(tmp_path: Path) -> None:
    sparse(tmp_path, "observation", "test_000", 2)
    sparse(tmp_path, "ground_truth", "test_000", 2)
    save(tmp_path / "fastmri.h5", kspace=np.zeros((2, 1000, 513)))
    save(tmp_path / "other.h5", data=np.zeros((2, 1000, 512)))
    save(tmp_path / "group.h5", **{"data/inner": 1})
    save(tmp_path / "null.h5", data=h5py.Empty("f4"))
    found = {}
    for path in tmp_path.iterdir():
        with h5py.File(path) as file:
            found[path.name] = is_lodopab(file)
    assert found == {O: True, G: True, "fastmri.h5": False, "other.h5": False,
                     "group.h5": False, "null.h5": False}  # fmt: skip
    assert layout_lodopab(tmp_path / O) == (
        "lodopab", 2, {"data": {"shape": (2, 1000, 513), "dtype": "float32"}})


def test_written_files_are_read_again(tmp_path: Path, scan: Projections) -> None:
    assert scan.reference is not None
    path = write_lodopab(tmp_path, scan.values, scan.reference, part="validation", number=27)
    assert path.name == "observation_validation_027.hdf5"
    again = read_lodopab(path)
    assert again.reference is not None
    assert torch.equal(again.reference, scan.reference)
    torch.testing.assert_close(again.values, scan.values, rtol=2e-7, atol=0)
    with h5py.File(tmp_path / "ground_truth_validation_027.hdf5") as file:
        assert (file["data"][0] == image(SHAPES["mound"])).all()
    assert again.attributes["first_sample"] == 27 * 128
    with pytest.raises(FileExistsError):
        write_lodopab(tmp_path, scan.values, scan.reference, part="validation", number=27)


@pytest.mark.parametrize(("values", "reference", "settings", "told"), [
    (torch.zeros(1, 1000, 512), torch.ones(1, 362, 362), {}, "want values .n, 1000, 513."),
    (torch.zeros(2, 1000, 513), torch.ones(1, 362, 362), {}, "and reference .n, 362, 362."),
    (torch.zeros(0, 1000, 513), torch.ones(0, 362, 362), {}, "n from 1 to 128"),
    (torch.zeros(1, 1000, 513), torch.full((1, 362, 362), 1.1), {}, "reference from 0 to 1"),
    (torch.zeros(1, 1000, 513), torch.zeros(1, 362, 362), {}, "no image of zeros alone"),
    (torch.full((1, 1000, 513), torch.nan), torch.ones(1, 362, 362), {}, "finite values"),
    (torch.zeros(1), torch.ones(1), {"part": "challenge"}, "got 'challenge' and 0"),
    (torch.zeros(1), torch.ones(1), {"number": 28}, "got 'test' and 28"),
    (torch.zeros(1), torch.ones(1), {"number": -1}, "got 'test' and -1"),
])
def test_refusals_of_the_writer(tmp_path: Path, values: Tensor, reference: Tensor,
                                settings: dict[str, Any], told: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=told):
        write_lodopab(tmp_path, values, reference, **settings)
    assert list(tmp_path.iterdir()) == []
