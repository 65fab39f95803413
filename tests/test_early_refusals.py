"""What cannot be written is refused before the first slice is sampled, not after the last."""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recon import datasets, samplers
from recon.datasets.deidentify import OURS, refuse_identity
from recon.files import Settings, _renamed, reconstruct_file
from recon.outputs import FORMATS, description_of, refuse_result, write_result
from recon.outputs import Origin as From
from recon.reconstruct import Reconstruction
from recon.simulate import multicoil_kspace
from tests.datasets.dicom_files import write_series

SHEARED = torch.tensor([[0, 0.5, 2, 0], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]]).double()
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs ``recon reconstruct``, which must fail without sampling, saying or leaving anything."""

    def sampling(*_: object, **__: object) -> None:
        raise AssertionError("a slice was sampled")

    monkeypatch.setattr("recon.files.reconstruct", sampling)

    def run(files: Sequence[Path], error: type[Exception], **settings: Any) -> str:
        out = tmp_path / "out"
        said: list[str] = []
        with pytest.raises(error) as told:
            reconstruct_file(files, out, Settings(sampler="tv", **settings), say=said.append)
        assert not said
        assert not out.exists()
        return str(told.value)

    return run


def series(folder: Path, **about: str) -> Path:
    def change(data: Any, _: int) -> None:
        for keyword, value in about.items():
            setattr(data, keyword, value)

    values = np.random.default_rng(0).integers(0, 1500, (3, 24, 24))
    write_series(folder, values, spacing=(3.0, 2.0, 2.0), change=change)
    return folder


def raw(folder: Path) -> Path:
    kspace = multicoil_kspace(torch.ones(16, 16), coils=2,
                              generator=torch.Generator().manual_seed(0))
    np.save(folder / "k.npy", kspace.numpy())
    return folder / "k.npy"


def test_images_in_hu_are_no_magnitudes(tmp_path: Path, refused: Refused) -> None:
    """The k-space of |HU| was simulated and sampled, and then its result was no HU."""
    text = refused([series(tmp_path / "ct")], ValueError, mask="equispaced")
    assert text.startswith("ct is in HU")
    assert "pass --views N" in text


@pytest.mark.parametrize("place", [0, 1])
def test_text_in_the_pixels(tmp_path: Path, refused: Refused, place: int) -> None:
    files = [series(tmp_path / "a"), series(tmp_path / "b")]
    series(files[place], BurnedInAnnotation="YES")
    text = refused(files, ValueError, views=9, format="dicom", deidentify=True)
    assert text.startswith(f"case_{place + 1:04}: deidentify: BurnedInAnnotation is YES")


def test_nifti_without_its_library(tmp_path: Path, refused: Refused,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    text = refused([raw(tmp_path)], ImportError, format="nifti")
    assert 'pip install "recon[nifti]"' in text


@pytest.mark.parametrize(("kind", "said"), [("dicom", "not perpendicular"),
                                            ("ismrmrd", "rows and columns at right angles")])
def test_places_that_a_format_cannot_say(tmp_path: Path, refused: Refused, kind: str,
                                         said: str) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    datasets.write_nifti(tmp_path / "a.nii", torch.rand(2, 16, 16), SHEARED)
    text = refused([tmp_path / "a.nii"], ValueError, mask="equispaced", format=kind)
    assert text.startswith("a.nii: ")
    assert said in text


NAMED = ("DOE", "JANE", "Jane", "doe_")


def test_deidentified_messages_say_no_file_name(tmp_path: Path, refused: Refused) -> None:
    """Folders, and files in them, are often called by the patient."""
    gap = series(tmp_path / "DOE_JANE")
    (gap / "IM_0002.dcm").unlink()
    (gap / "IM_0001.dcm").rename(gap / "Jane-1.dcm")
    write_series(gap, np.ones((1, 24, 24)), origin=(0, 0, 90), series_number=3, name="{}.dcm")
    twice = series(tmp_path / "JANE")
    (twice / "doe_2.dcm").write_bytes((twice / "IM_0002.dcm").read_bytes()[:900])
    cases: tuple[tuple[Path, type[Exception]], ...] = (
        (gap, ValueError), (twice, ValueError), (tmp_path / "JANE.DOE", OSError),
        (tmp_path / "DOE.nii", OSError))  # the last two are not there
    for path, error in cases:
        with pytest.raises((ValueError, OSError)) as plain:
            datasets.open(path)
        assert any(name in str(plain.value) for name in NAMED)  # the planted fault: as it comes
        for files, label in (([path], "case_0001"), ([series(tmp_path / "ok"), path],
                                                     "case_0002")):
            text = refused(files, error, views=9, format="dicom", deidentify=True)
            assert label in text
            assert not any(name in text for name in NAMED)


def test_deidentification_is_for_dicom(tmp_path: Path, refused: Refused) -> None:
    text = refused([series(tmp_path / "ct")], ValueError, views=9, deidentify=True)
    assert "but the file's name" in text


def test_what_is_refused_early_is_what_writing_refuses(tmp_path: Path) -> None:
    """And the other way round: where nothing is said early, writing takes it."""
    headers = datasets.source_headers(series(tmp_path / "ct"))
    burnt = datasets.source_headers(series(tmp_path / "burnt", BurnedInAnnotation="YES"))
    straight = torch.eye(4).double()[:, [2, 1, 0, 3]]
    whole = Reconstruction(torch.rand(1, 3, 1, 24, 24))
    outcomes = set()
    for n, origin in enumerate((From(), From(affine=straight), From(affine=SHEARED),
                                From("HU", straight, headers), From("HU", straight, headers[1:]),
                                From("HU", straight, burnt), From("HU", straight, None, "CT"))):
        for kind in FORMATS:
            for hidden in (False, True) if kind == "dicom" else (False,):
                common: dict[str, Any] = {"description": "recon tv, 1 draw(s)",
                                          "deidentify": hidden}
                early = _error(functools.partial(refuse_result, kind, origin, (3, 24, 24),
                                                 **common))
                late = _error(functools.partial(write_result, tmp_path / f"{n}{hidden}", kind,
                                                whole, origin, overwrite=False, **common))
                assert early == late, (kind, origin, early, late)
                outcomes.add((kind, early is None))
    assert {("dicom", True), ("dicom", False), ("ismrmrd", False), ("nifti", True)} <= outcomes


def _error(call: Callable[[], object]) -> str | None:
    try:
        call()
    except (ValueError, ImportError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["Dra^Jane", "Draw^Con", "Recon^Tv", "Eco^Raw", "Standard^Hu"])
def test_our_own_words_name_nobody(tmp_path: Path, name: str) -> None:
    header = datasets.source_headers(series(tmp_path, PatientName=name, PatientID="100"))[0]
    names = [n for n in samplers.__all__ if isinstance(getattr(samplers, n), samplers.Sampler)]
    assert len(names) > 10
    for sampler in names:
        text = description_of(sampler, 100)
        for said in (text, f"Standard deviation: {text}", f"Standard deviation in HU: {text}"):
            assert OURS.fullmatch(said)
            refuse_identity(said, header)


@pytest.mark.parametrize(("text", "named"), [
    ("all draws of the posterior", False),  # patients Dra and 4711
    ("econometric, 24711 steps", False),
    ("of Dra, 3 draws", True),
    ("scan_dra2", True),
    ("case4711", True),
    ("4711_b", True),
    ("recon tv, 1 draw(s) of Dra", True),
])
def test_names_are_whole_words(tmp_path: Path, text: str, named: bool) -> None:
    header = datasets.source_headers(series(tmp_path, PatientName="Dra^Con^^Dr",
                                            PatientID="4711"))[0]
    assert (_error(lambda: refuse_identity(text, header)) is not None) == named
    planted = any(part in text.casefold() for part in ("dra", "con", "4711"))  # parts of words
    assert planted


@pytest.mark.parametrize(("name", "text"), [
    ("Müller^Hans", "Müllers Schulter"), ("Smith^John", "Smiths shoulder"),
    ("DOE^JANE", "JaneDoe knee"), ("田中一郎", "田中一郎さんの再構成")])
def test_longer_names_count_inside_words(tmp_path: Path, name: str, text: str) -> None:
    """And where a script has no spaces between words."""
    header = datasets.source_headers(series(tmp_path, PatientName="Dra"))[0]
    header.PatientName = name
    assert _error(lambda: refuse_identity(text, header)) is not None
    assert not re.search(rf"\b{name.split('^')[0].casefold()}\b", text.casefold())  # whole words


def test_numbers_stay_where_files_are_called_by_numbers(tmp_path: Path) -> None:
    folder = series(tmp_path / "DOE_JANE")
    for number, path in enumerate(sorted(folder.iterdir()), 1):
        path.rename(folder / str(number))
    said = _renamed("DOE_JANE: slices are missing: 1 between 35 and 40 mm, 2.5 mm apart", folder,
                    "case_0001")
    assert said == "case_0001: slices are missing: 1 between 35 and 40 mm, 2.5 mm apart"
    assert _renamed("2: PixelData: cut", folder, "case_0001") == "case_0001: PixelData: cut"


def test_a_link_is_followed_before_its_parent_is_asked_for(tmp_path: Path) -> None:
    """As the system does; by the letters alone another file has the same path."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "real" / "deep")
    for folder, value in (("real", 1.0), ("here", 9.0)):
        np.save(tmp_path / folder / "k.npy",
                multicoil_kspace(torch.full((16, 16), value), coils=2).numpy())
    reconstruct_file([tmp_path / "here" / "link" / ".." / "k.npy"], tmp_path / "out",
                     Settings(sampler="tv", mask="equispaced_fraction", acceleration=2,
                              center_fraction=0.4), say=lambda _: None)
    with h5py.File(tmp_path / "out" / "k_recon.h5") as file:
        assert float(file["reconstruction"][:].max()) < 9
