"""Which files make a stack, in which order and where: against SimpleITK, highdicom and by hand."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray

from recon.datasets import FormatError
from recon.datasets.dicom import is_dicom, layout_dicom, read_dicom, source_headers
from recon.datasets.volume import Volume
from tests.datasets.dicom_files import MR, ROOT, write_series

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "upper_abdomen_dicom"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="needs shared/data of the developers")

Pair = tuple[NDArray[Any], NDArray[Any]]
# Two turns of the head: no cosine is 0 or 1, and no two are alike.
A, B = np.cos(0.3), np.sin(0.3)
C, D = np.cos(0.2), np.sin(0.2)
OBLIQUE = (A, B, 0.0, -B * C, A * C, D)


def noise(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 3000, shape)


def shuffled(data: Any, i: int) -> None:
    """Instance numbers and slice locations that say nothing of the order."""
    data.InstanceNumber = (3 * i) % 5 + 1
    data.SliceLocation = str(-i)


def by_us(folder: Path) -> Pair:
    volume = read_dicom(folder)
    assert volume.affine is not None
    return volume.values.numpy(), volume.affine.numpy()


def written_out(fault: str = "") -> Callable[[Path], Pair]:
    """A second reader, plain and for intact files only, with a fault to be found."""

    def read(folder: Path) -> Pair:
        files = [pydicom.dcmread(path) for path in folder.iterdir()]
        row, column = np.array(files[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(row, column)

        def key(data: Any) -> float:
            if fault == "sorted by InstanceNumber":
                return float(data.InstanceNumber)
            if fault == "sorted by SliceLocation":
                return float(data.SliceLocation)
            along = float(np.array(data.ImagePositionPatient, float) @ normal)
            return -along if fault == "descending" else along

        files.sort(key=key)
        slopes = [float(f.RescaleSlope) for f in files]
        if fault == "slope of the first slice":
            slopes = slopes[:1] * len(files)
        values = np.stack([f.pixel_array * s + float(f.RescaleIntercept)
                           for f, s in zip(files, slopes, strict=True)])  # fmt: skip
        first, last = (np.array(f.ImagePositionPatient, float) for f in (files[0], files[-1]))
        step = (last - first) / (len(files) - 1)
        if fault == "distance from SliceThickness":
            step = normal * float(files[0].SliceThickness)
        down, right = map(float, files[0].PixelSpacing)
        if fault == "PixelSpacing as (x, y)":
            down, right = right, down
        if fault == "cosines exchanged":
            row, column = column, row
        affine = np.eye(4)
        affine[:3] = np.stack([step, column * down, row * right, first], 1)
        if fault == "RAS":
            affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        if fault == "x flipped":
            affine = np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine
        return values, affine

    return read


def check_geometry(read: Callable[[Path], Pair], folder: Path) -> None:
    """Every voxel has its own value and its own place, in closed form."""
    stored, slopes = noise(5, 6, 4), [1.0, 0.5, 1.0, 2.0, 1.5]
    paths = write_series(folder, stored, slope=slopes, orientation=OBLIQUE, change=shuffled)
    for i, path in enumerate(paths):
        path.rename(folder / f"{'dbeac'[i]}")
    values, affine = read(folder)
    want = stored * np.array(slopes)[:, None, None] - 1024
    np.testing.assert_allclose(values, want, rtol=0, atol=1e-6 * np.abs(want).max())
    row, column = np.array(OBLIQUE[:3]), np.array(OBLIQUE[3:])
    normal = np.array([B * D, -A * D, C])  # row x column, multiplied out
    for s, r, c in np.ndindex(stored.shape):
        place = np.array([-10.25, -20.5, 30.0]) + 2.5 * s * normal + 0.75 * r * column + \
            0.5 * c * row  # fmt: skip
        np.testing.assert_allclose((affine @ [s, r, c, 1])[:3], place, rtol=0, atol=1e-6)


def test_values_and_places_in_closed_form(tmp_path: Path) -> None:
    check_geometry(by_us, tmp_path / "ours")
    check_geometry(written_out(), tmp_path / "twin")


@pytest.mark.parametrize(
    "fault",
    ["sorted by InstanceNumber", "sorted by SliceLocation", "descending", "RAS", "x flipped",
     "slope of the first slice", "distance from SliceThickness", "PixelSpacing as (x, y)",
     "cosines exchanged"],
)  # fmt: skip
def test_the_check_finds_the_faults_of_other_readers(tmp_path: Path, fault: str) -> None:
    with pytest.raises(AssertionError):
        check_geometry(written_out(fault), tmp_path / "a")


def check_simpleitk(volume: Volume, folder: Path) -> None:
    """SimpleITK orders ascending too, names axes (x, y, z), and its HU are whole numbers."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert np.array_equal(volume.values.numpy(), sitk.GetArrayFromImage(image))
    assert volume.affine is not None
    affine = volume.affine.numpy()
    directions = np.array(image.GetDirection()).reshape(3, 3)
    ours = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(ours[:, ::-1], directions, rtol=0, atol=1e-9)
    assert volume.spacing_mm is not None
    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing()[::-1], rtol=1e-9)
    np.testing.assert_allclose(affine[:3, 3], image.GetOrigin(), rtol=0, atol=1e-9)


def check_highdicom(volume: Volume, folder: Path) -> None:
    """highdicom orders along the negative normal: its array is ours, slices reversed."""
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    for data in files:  # the anonymised real series has none
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
        data.SeriesInstanceUID = data.StudyInstanceUID = ROOT
    found = highdicom.get_volume_from_series(files, dtype=np.float64)
    assert np.array_equal(volume.values.numpy(), found.array[::-1])
    assert volume.affine is not None
    turned = volume.affine.numpy().copy()
    turned[:3, 3] += turned[:3, 0] * (len(files) - 1)
    turned[:3, 0] *= -1
    np.testing.assert_allclose(turned, found.affine, rtol=0, atol=1e-6)


@needs_real
def test_a_real_series_as_simpleitk_and_highdicom_have_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    numbers = generator.permutation(20)
    for number, path in zip(numbers, sorted(REAL.iterdir()), strict=True):
        shutil.copy(path, tmp_path / f"{number}")
    volume = read_dicom(tmp_path)
    assert volume.values.shape == (20, 512, 512)
    check_simpleitk(volume, REAL)
    check_highdicom(volume, tmp_path)
    with pytest.raises(AssertionError):
        check_highdicom(volume._replace(values=volume.values.flip(0)), tmp_path)
    with pytest.raises(AssertionError):
        check_simpleitk(volume._replace(values=volume.values + 1), REAL)
    part = read_dicom(REAL, slice(4, 12, 3))
    assert torch.equal(part.values, volume.values[4:12:3])
    assert part.affine is not None and volume.affine is not None  # noqa: PT018
    for i in range(3):
        index = torch.tensor([i, 5.0, 7.0, 1.0], dtype=torch.float64)
        whole = torch.tensor([4 + 3 * i, 5.0, 7.0, 1.0], dtype=torch.float64)
        assert torch.equal(part.affine @ index, volume.affine @ whole)


@pytest.mark.parametrize(
    "turn", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1),
             (-1, 0, 0, 0, 1, 0), OBLIQUE],
)  # fmt: skip
def test_every_plane_as_simpleitk_and_highdicom_have_it(tmp_path: Path,
                                                        turn: Sequence[float]) -> None:  # fmt: skip
    write_series(tmp_path, noise(4, 6, 5), orientation=turn)
    check_simpleitk(read_dicom(tmp_path), tmp_path)
    check_highdicom(read_dicom(tmp_path), tmp_path)


def moved(**places: float) -> Callable[[Any, int], None]:
    """Slice ``z<i>`` moved along z to where it says, ``x<i>`` along x."""

    def change(data: Any, i: int) -> None:
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [places.get(f"x{i}", x), y, places.get(f"z{i}", z)]

    return change


def slanted(data: Any, i: int) -> None:
    """The patient moves at 15 degrees to the normal of the slices."""
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x, float(y) + 2.5 * i * np.tan(np.radians(15)), z]


def turned(data: Any, i: int) -> None:
    if i == 2:
        data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def smaller(data: Any, i: int) -> None:
    if i == 2:
        data.Rows = 3


def put(i: int, **values: Any) -> Callable[[Any, int], None]:
    """Elements of slice i, or of all slices if i is -1, set, or deleted if None."""

    def change(data: Any, at: int) -> None:
        for keyword, value in values.items():
            if i in (at, -1):
                if value is None:
                    del data[keyword]
                else:
                    setattr(data, keyword, value)

    return change


def repeated(keyword: str, kind: str = "CT") -> Callable[[Path], object]:
    """Every position twice, told apart by one element."""

    def make(folder: Path) -> None:
        for value in (1, 2):
            write_series(folder, noise(3, 6, 4), modality=kind, name=f"{value}_{{}}",
                         change=put(-1, **{keyword: value}))  # fmt: skip

    return make


def in_turn(folder: Path) -> None:
    """Two acquisitions, the second half a distance higher: evenly spaced by chance."""
    for value in (1, 2):
        write_series(folder, noise(3, 6, 4), name=f"{value}_{{}}", origin=(0, 0, 1.25 * value),
                     change=put(-1, AcquisitionNumber=value))  # fmt: skip


def copied(folder: Path) -> None:
    paths = write_series(folder, noise(4, 6, 4))
    shutil.copy(paths[1], folder / "again.dcm")


def without(*numbers: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        paths = write_series(folder, noise(8, 6, 4))
        for number in numbers:
            paths[number].unlink()

    return make


def series(*numbers: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for at, number in enumerate(numbers):
            write_series(folder, noise(number, 6, 4), series_number=number, name=f"{at}_{{}}",
                         change=put(-1, SeriesInstanceUID=f"{ROOT}.9.{at}"))  # fmt: skip

    return make


def changed(change: Callable[[Any, int], None], **options: Any) -> Callable[[Path], object]:
    return lambda folder: write_series(folder, noise(4, 6, 4), change=change, **options)


GEOMETRY: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (without(3), r"^scans: slices are missing: 1 between 35 and 40 mm; the others are "
                            r"2\.5 mm apart"),
    "several missing": (without(1, 4, 5), "1 between 30 and 35 mm, 2 between 37.5 and 45 mm"),
    "duplicate": (copied, r"duplicate slices at 1 positions, the first at 32\.5 mm "
                          r"\((IM_0001|again)\.dcm and (IM_0001|again)\.dcm\)"),
    "irregular": (changed(moved(z2=35.5)), r"not at equal distances: those at 32\.5 and 35\.5 mm "
                                           r"are 3 mm apart, others 2\.5 mm"),
    "drifting": (changed(lambda d, i: moved(**{f"z{i}": 30 + 2.5 * 1.05**i * i})(d, i)),
                 "not at equal distances"),
    "tilted": (changed(slanted), "tilted by 15 degrees"),
    "sideways": (changed(moved(x1=-9.0)), r"slice IM_0001\.dcm at 32\.5 mm lies 1\.25 mm beside"),
    "mixed orientation": (changed(turned), "2 stacks of slices, which differ in orientation.*"
                          r'series="3.1" \(CT, 3 slices, normal 0/0/1\); '
                          r'series="3.2" \(CT, 1 slice, normal 0/1/0\)'),
    "mixed size": (changed(smaller), r"differ in size; .*3 slices, 6 x 4.*1 slice, 3 x 4"),
    "mixed pixel size": (changed(put(1, PixelSpacing=[1, 1])), r"PixelSpacing 0\.75/0\.5.*1/1"),
    "mixed frame": (changed(put(1, FrameOfReferenceUID=ROOT)), "differ in FrameOfReferenceUID"),
    "two acquisitions": (repeated("AcquisitionNumber"), "differ in AcquisitionNumber; choose one: "
                         r'series="3\.1" \(CT, 3 slices, AcquisitionNumber 1\)'),
    "time points": (repeated("TemporalPositionIdentifier", "MR"), "TemporalPositionIdentifier 2"),
    "echoes": (repeated("EchoNumbers", "MR"), "EchoNumbers 2"),
    "energies": (repeated("KVP"), "KVP 2"),
    "two acquisitions in turn": (in_turn, "differ in AcquisitionNumber"),
    "two series": (series(3, 4), r'holds 2 stacks of slices; choose one: series="3" \(CT, 3 '
                                 r'slices\); series="4" \(CT, 4 slices\)'),
    "two of one number": (series(3, 3), r'series="3\.1" .*series="3\.2"'),
    "many series": (series(*range(1, 15)), 'series="12" .*; and 2 more'),
    "no position": (changed(put(1, ImagePositionPatient=None)),
                    r"^IM_0001\.dcm: ImagePositionPatient: missing: a series cannot be ordered"),
    "no orientation": (changed(put(1, ImageOrientationPatient=None)),
                       r"^IM_0001\.dcm: ImageOrientationPatient: missing: a series cannot"),
    "no positions": (changed(put(-1, ImagePositionPatient=None)),
                     r"^IM_000.\.dcm: ImagePositionPatient: missing: a series cannot be ordered"),
    "two coordinates": (changed(put(1, ImagePositionPatient=[1, 2])), "want three coordinates"),
    "no unit vectors": (changed(put(1, ImageOrientationPatient=[1, 0, 0, 0, 1.01, 0])),
                        r"IM_0001\.dcm: ImageOrientationPatient: want two unit vectors"),
    "not at right angles": (changed(put(1, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])),
                            "want two unit vectors at right angles"),
    "no pixel size": (changed(put(1, PixelSpacing=[0.5, 0])), "PixelSpacing: want two positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", GEOMETRY)
def test_what_is_no_stack_is_refused_and_says_why(tmp_path: Path, name: str) -> None:
    make, text = GEOMETRY[name]
    make(tmp_path / "scans")
    for use in (read_dicom, layout_dicom, source_headers):
        with pytest.raises(FormatError, match=text) as caught:
            use(tmp_path / "scans")
        assert str(tmp_path) not in str(caught.value)
        assert "Bertha" not in str(caught.value)
        assert ROOT not in str(caught.value)


def test_series_are_chosen_by_number(tmp_path: Path) -> None:
    series(3, 4)(tmp_path)
    repeated("AcquisitionNumber")(tmp_path / "twice")
    assert read_dicom(tmp_path, series="4").values.shape[0] == 4
    assert layout_dicom(tmp_path, series="3").slices == 3
    assert len(source_headers(tmp_path, series="3")) == 3
    second = source_headers(tmp_path / "twice", series="3.2")
    assert {data.AcquisitionNumber for data in second} == {2}
    assert read_dicom(tmp_path / "twice", series="3.2").spacing_mm == (2.5, 0.75, 0.5)
    for wrong in ("5", "3.1", ""):
        with pytest.raises(ValueError, match=r'no series .*; there are series="3" \(CT, 3 slices'):
            read_dicom(tmp_path, series=wrong)
    with pytest.raises(TypeError, match="want the series number as text, got 3"):
        read_dicom(tmp_path, series=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chooses none of the 3 slices"):
        read_dicom(tmp_path, slice(7, 8), series="3")


def test_acquisition_numbers_may_differ_along_a_stack(tmp_path: Path) -> None:
    """Table positions of a CT, and odd and even slices of an MR, are one stack."""
    write_series(tmp_path / "ct", noise(6, 6, 4),
                 change=lambda d, i: setattr(d, "AcquisitionNumber", i // 2))  # fmt: skip
    write_series(tmp_path / "mr", noise(6, 6, 4), modality="MR",
                 change=lambda d, i: setattr(d, "AcquisitionNumber", i % 2))  # fmt: skip
    assert len(read_dicom(tmp_path / "ct").values) == len(read_dicom(tmp_path / "mr").values) == 6


@pytest.mark.parametrize(("jitter", "noted"), [(0.002, False), (0.01, True)])
def test_positions_need_not_be_exact(tmp_path: Path, jitter: float, noted: bool) -> None:
    """2.5 mm apart: rounding to 0.01 mm is tolerated and told, to less passes in silence."""

    def change(data: Any, i: int) -> None:
        moved(**{f"z{i}": 30 + 2.5 * i + (jitter if i in (1, 2) else 0.0)})(data, i)
        data.ImageOrientationPatient = [1, 1e-4 * i, 0, 0, 1, 0]

    write_series(tmp_path, noise(4, 6, 4), change=change)
    volume = read_dicom(tmp_path)
    assert volume.spacing_mm == pytest.approx((2.5, 0.75, 0.5), rel=1e-6)
    told = str(volume.attributes.get("note", ""))
    assert ("deviate by up to 0.01 mm" in told) == noted


@pytest.mark.parametrize("named", [True, False])
def test_a_scout_in_the_series_does_not_stretch_it(tmp_path: Path, named: bool) -> None:
    """A scout of the same size a little above the last slice: 2.5 mm would become 2.71 mm."""
    write_series(tmp_path, noise(6, 6, 4))
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER" if named else "AXIAL"]
    write_series(tmp_path, noise(1, 6, 4), name="scout", origin=(-10.25, -20.5, 46),
                 change=put(0, ImageType=image_type))  # fmt: skip
    if not named:
        with pytest.raises(FormatError, match=r"not at equal distances: those at 42\.5 and 46 mm"):
            read_dicom(tmp_path)
        return
    volume = read_dicom(tmp_path)
    assert volume.spacing_mm == (2.5, 0.75, 0.5)
    assert volume.attributes["note"] == "left out: 1 x scout (LOCALIZER)"
    with pytest.raises(FormatError, match=r"scout: want a CT or MR slice, got a scout"):
        read_dicom(tmp_path / "scout")


ENHANCED_CT, SECONDARY = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7"
REPORT, DIRECTORY = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.1.3.10"
OTHERS = {
    "enhanced": (ENHANCED_CT, "Enhanced CT Image Storage (multi-frame, which is not read"),
    "capture": (SECONDARY, "Secondary Capture Image Storage"),
    "report": (REPORT, "Comprehensive SR Storage"),
    "DICOMDIR": (DIRECTORY, "DICOMDIR (an index of other files: name the folder"),
    "structures": ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set Storage"),
    "private": ("1.2.3.4.5", "object of unknown kind"),
}


def other(path: Path, uid: str) -> None:
    def change(data: Any, _: int) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid

    write_series(path.parent, noise(1, 6, 4), name=path.name, change=change)


def test_what_is_no_slice_is_left_out_and_counted(tmp_path: Path) -> None:
    write_series(tmp_path, noise(3, 6, 4))
    for name, (uid, _) in OTHERS.items():
        other(tmp_path / name, uid)
    (tmp_path / "readme.txt").write_text("plain text")
    (tmp_path / "export.xml").write_text("<?xml version='1.0'?>")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "inner").mkdir()
    volume = read_dicom(tmp_path)
    assert len(volume.values) == 3
    told = str(volume.attributes["note"])
    assert told.startswith("left out: ")
    for text in ("1 x DICOMDIR", "1 x Enhanced CT Image Storage", "1 x folder", "1 x RT Structure",
                 "1 x Secondary Capture", "1 x Comprehensive SR", "1 x object of unknown kind",
                 "3 x file that is not DICOM"):  # fmt: skip
        assert text in told
    assert "1.2.3" not in told


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_slice_is_refused_where_it_is_all(tmp_path: Path, name: str) -> None:
    uid, text = OTHERS[name]
    other(tmp_path / name, uid)
    with pytest.raises(FormatError) as caught:
        read_dicom(tmp_path / name)
    assert str(caught.value).startswith(f"{name}: want a CT or MR slice, got a {text}")
    with pytest.raises(FormatError) as caught:
        read_dicom(tmp_path)
    assert f"{tmp_path.name}: holds no CT or MR slices but 1 x {text}" in str(caught.value)


def test_projections_are_not_taken_for_slices(tmp_path: Path) -> None:
    def change(data: Any, _: int) -> None:
        data.add_new(0x70311001, "FL", 0.5)

    write_series(tmp_path, noise(3, 6, 4), change=change)
    with pytest.raises(FormatError, match=r"3 x projection \(DICOM-CT-PD\)"):
        read_dicom(tmp_path)


def test_folders_inside_a_folder_are_not_searched(tmp_path: Path) -> None:
    write_series(tmp_path / "patient" / "series", noise(3, 6, 4))
    with pytest.raises(FormatError, match=r"1 x folder .*not searched: name one of them"):
        read_dicom(tmp_path / "patient")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"^empty: an empty folder"):
        read_dicom(tmp_path / "empty")
    with pytest.raises(FileNotFoundError):
        read_dicom(tmp_path / "nowhere")


def test_one_file_is_one_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = noise(3, 6, 4)
    paths = write_series(tmp_path, stored)
    volume = read_dicom(paths[1])
    assert torch.equal(volume.values[0], torch.tensor(stored[1] - 1024.0))
    assert volume.name == "IM_0001.dcm"
    assert volume.spacing_mm == (5.0, 0.75, 0.5)
    assert volume.attributes["note"] == "one slice: its extent along the stack is SliceThickness"
    monkeypatch.chdir(tmp_path)
    assert read_dicom(".").name == tmp_path.name
    place = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
    bare = write_series(tmp_path / "b", stored[:1], change=put(0, **dict.fromkeys(place)))
    nowhere = read_dicom(bare[0])
    assert nowhere.affine is None
    assert "no ImagePositionPatient and no" in str(nowhere.attributes["note"])
    thin = write_series(tmp_path / "c", stored[:1], change=put(0, SliceThickness=None))
    assert read_dicom(thin[0]).spacing_mm == (1.0, 0.75, 0.5)


def test_stated_distance_is_compared(tmp_path: Path) -> None:
    """Every second slice missing leaves no gap; MR files often state the distance."""
    write_series(tmp_path, noise(3, 6, 4), modality="MR", spacing=(5, 0.75, 0.5),
                 change=put(-1, SpacingBetweenSlices="2.5"))  # fmt: skip
    note = str(read_dicom(tmp_path).attributes["note"])
    assert note == "positions are 5 mm apart, SpacingBetweenSlices says 2.5"


def test_headers_come_in_the_order_of_the_slices(tmp_path: Path) -> None:
    write_series(tmp_path, noise(5, 6, 4), change=shuffled)
    headers = source_headers(tmp_path)
    assert [float(data.ImagePositionPatient[2]) for data in headers] == [30, 32.5, 35, 37.5, 40]
    assert all("PixelData" not in data for data in headers)
    assert headers[0].PatientName == "Roentgen^Bertha"  # the writer's business


def test_emptied_uids_do_not_hinder(tmp_path: Path) -> None:
    """As anonymised files have them, SOP class included."""
    empty = {"SOPClassUID": "", "SeriesInstanceUID": "", "StudyInstanceUID": "",
             "SeriesNumber": None}  # fmt: skip

    def change(data: Any, i: int) -> None:
        data.file_meta.MediaStorageSOPClassUID = MR
        data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{i + 1}"
        for keyword, value in empty.items():
            data[keyword].value = value

    write_series(tmp_path, noise(3, 6, 4), modality="MR", change=change)
    volume = read_dicom(tmp_path)
    assert volume.kind == "dicom_mr"
    assert "no SeriesInstanceUID" in str(volume.attributes["note"])


def test_what_counts_as_dicom(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert not is_dicom(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("text")
    assert not is_dicom(tmp_path / "a")
    (path,) = write_series(tmp_path / "a", noise(1, 6, 4))
    assert is_dicom(tmp_path / "a")
    assert is_dicom(path, path.read_bytes()[:512])
    for head in (b"", b"\x93NUMPY\x01\0", b"PK\x03\x04" + bytes(60), b"plain text", bytes(200)):
        assert not is_dicom(tmp_path / "b", head)
