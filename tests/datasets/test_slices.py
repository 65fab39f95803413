"""All slices of a folder: the order, what is left out, and the same samples from every worker."""

import gc
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from recon import datasets
from recon.datasets import FormatError, Scan
from recon.datasets.slices import Slices, new_data
from tests.datasets.dicom_files import write_series

HANDLES = Path("/proc/self/fd")
needs_handles = pytest.mark.skipif(not HANDLES.exists(), reason="/proc/self/fd is not there")
ignores_few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")

KNEES = {"file1000002.h5": ("CORPDFS_FBK", 10), "file1000000.h5": ("CORPD_FBK", 8),
         "file1000001.h5": ("CORPD_FBK", 12)}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-5 * torch.randn(*shape, dtype=torch.complex64, generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 2, 3 and 4 slices, of different widths, in disorder, with what lies about."""
    for seed, (name, (acquisition, width)) in enumerate(KNEES.items()):
        datasets.write_fastmri(tmp_path / name, noise(2 + seed, 2, 16, width, seed=seed),
                               attributes={"acquisition": acquisition})  # fmt: skip
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "notes.txt").write_text("to do")
    (tmp_path / "older").mkdir()
    # another program's unfinished file is whole HDF5, and not to be read
    (tmp_path / ".0123.part").write_bytes((tmp_path / "file1000000.h5").read_bytes())
    return tmp_path


def scan(sample: Any) -> Scan:
    assert isinstance(sample, Scan)
    return sample


def same(a: Any, b: Any) -> bool:
    """Whether two samples are equal in every field, bit by bit."""
    return all(torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
               for x, y in zip(a, b, strict=True))  # fmt: skip


def check_samples(found: list[Any], folder: Path) -> None:
    """Every slice of every file, by name and then by number, as the files have them."""
    want = [datasets.open(path, slice(i, i + 1)) for path in sorted(folder.glob("file*.h5"))
            for i in range(datasets.describe(path)["slices"])]  # fmt: skip
    assert len(want) == 9
    assert len(found) == len(want)
    assert all(same(a, b) for a, b in zip(found, want, strict=True))


def test_samples_in_order(folder: Path) -> None:
    slices = Slices(folder)
    check_samples([slices[i] for i in range(len(slices))], folder)
    assert [(path.name, i) for path, i in slices.entries] == [
        *(("file1000000.h5", i) for i in range(3)),
        *(("file1000001.h5", i) for i in range(4)),
        *(("file1000002.h5", i) for i in range(2)),
    ]
    assert same(slices[-1], slices[8])
    assert same(slices[3], slices[np.int64(3)])  # type: ignore[index]
    with pytest.raises(IndexError):
        slices[9]
    samples = [slices[i] for i in range(9)]
    check_samples(samples, folder)
    faults: list[list[Any]] = [
              samples[:-1], samples[::-1],
              [scan(s)._replace(kspace=scan(s).kspace.conj()) for s in samples],
              [scan(s)._replace(name=str(folder / scan(s).name)) for s in samples]]  # fmt: skip
    for fault in faults:
        with pytest.raises(AssertionError):
            check_samples(fault, folder)


def test_what_is_left_out_is_listed(folder: Path) -> None:
    assert Slices(folder, skip_bad=True).bad == []
    assert Slices(folder).left_out == [
        (".0123.part", "a hidden file"),
        (".DS_Store", "a hidden file"),
        ("notes.txt", Slices(folder).left_out[2][1]),
        ("older", "a folder without DICOM files: want a file of it, or a folder that is one "
         "series of images"),
    ]
    assert "of no known kind" in Slices(folder).left_out[2][1]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def without_kspace(path: Path) -> None:
    datasets.write_hdf5(path, torch.ones(1, 3, 3), overwrite=True)


def swapped(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        kspace = file["kspace"][()].swapaxes(-1, -2)
        del file["kspace"]
        file["kspace"] = kspace


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (cut_short, "not a whole HDF5 file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("<!DOCTYPE html><html>log in"), "a web page"),
        (without_kspace, "no k-space or images in it, but reconstruction"),
        (swapped, "are swapped"),
    ],
)
def test_damaged_files_stop_it_or_are_listed(folder: Path, damage: Any, match: str) -> None:
    damage(folder / "file1000001.h5")
    told = rf"^file1000001\.h5: .*{match}.*; skip_bad=True"
    with pytest.raises(FormatError, match=told) as caught:
        Slices(folder)
    assert str(folder) not in str(caught.value)
    slices = Slices(folder, skip_bad=True)
    assert {path.name for path, _ in slices.entries} == {"file1000000.h5", "file1000002.h5"}
    ((name, reason),) = slices.bad
    assert name == "file1000001.h5"
    assert match in reason
    assert str(folder) not in reason
    assert name not in dict(slices.left_out)


def series_with_a_gap(folder: Path) -> None:
    paths = write_series(folder / "patient", np.ones((4, 6, 4), int))
    paths[1].unlink()


def series_cut_short(folder: Path) -> None:
    (path, *_) = write_series(folder / "patient", np.ones((2, 6, 4), int))
    path.write_bytes(path.read_bytes()[:200])


def index_of_files(folder: Path) -> None:
    """What a hospital's disc has at its top, the slices being further down."""
    def change(data: Any, _: int) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"

    write_series(folder / "disc", np.ones((1, 6, 4), int), name="DICOMDIR", change=change)


def half_an_mrd_file(folder: Path) -> None:
    whole = (folder / "file1000001.h5").read_bytes()
    (folder / "raw.mrd").write_bytes(whole[: len(whole) // 2])


def nrrd_without_its_name(folder: Path) -> None:
    (folder / "image").write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4")


@pytest.mark.parametrize(("damage", "name", "match"), [
    (series_with_a_gap, "patient", "slices are missing"),
    (series_cut_short, "patient", ""),
    (index_of_files, "disc", "DICOMDIR .an index of other files"),
    (half_an_mrd_file, "raw.mrd", "not a whole HDF5 file"),
    (nrrd_without_its_name, "image", ""),
])
def test_no_volume_drops_out_unseen(folder: Path, damage: Any, name: str, match: str) -> None:
    """Folders of slices and files without a known ending are data too: not the wrong ones."""
    damage(folder)
    with pytest.raises(FormatError, match=rf"^{name}: .*{match}.*; skip_bad=True"):
        Slices(folder)
    slices = Slices(folder, skip_bad=True)
    assert [bad for bad, _ in slices.bad] == [name]
    assert len(slices) == 9


def test_what_lies_beside_data_stops_nothing(folder: Path) -> None:
    """Reports and segmentations, tables, archives: they are left out, and said to be."""
    def report(data: Any, _: int) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"

    def scout(data: Any, _: int) -> None:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def projection(data: Any, _: int) -> None:
        data.add_new(0x70310010, "LO", "Rays")
        data.add_new(0x70311001, "FL", 0.5)

    def spectrum(data: Any, _: int) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.2"

    write_series(folder / "projections", np.ones((2, 6, 4), int), change=projection)
    write_series(folder / "spectra", np.ones((1, 6, 4), int), modality="MR", change=spectrum)
    write_series(folder / "reports", np.ones((1, 6, 4), int), change=report)
    write_series(folder / "scouts", np.ones((1, 6, 4), int), change=scout)
    (folder / "patients.xlsx").write_bytes(b"PK\x03\x04" + bytes(60))
    (folder / "climate.nc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(60))
    slices = Slices(folder)
    assert len(slices) == 9
    assert {"projections", "spectra", "reports", "scouts", "patients.xlsx",
            "climate.nc"} <= dict(slices.left_out).keys()


def test_data_that_came_later(folder: Path) -> None:
    slices = Slices(folder)
    known = {path.name for path, _ in slices.entries}
    assert new_data(folder, known) == []
    (folder / "more.txt").write_text("to do")
    (folder / "._file1.h5").write_bytes(b"")
    (folder / "newer").mkdir()
    assert new_data(folder, known) == []
    (folder / "file2.h5").write_bytes((folder / "file1000000.h5").read_bytes())
    series_with_a_gap(folder)
    assert new_data(folder, known) == ["file2.h5", "patient"]
    assert new_data(folder / "patient", {"patient"}) == []


def test_a_damaged_slice_is_an_error_that_names_the_file(folder: Path) -> None:
    """It lies beyond what the headers tell."""
    path = folder / "file1000003.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("kspace", data=noise(2, 2, 16, 8), chunks=(1, 2, 16, 8),
                                   compression="gzip")  # fmt: skip
        offset = data.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\0" * 40
    path.write_bytes(content)
    slices = Slices([path])
    assert scan(slices[0]).kspace.shape == (1, 2, 16, 8)
    with pytest.raises(FormatError, match=r"file1000003\.h5: kspace: cannot be read"):
        slices[1]


def test_missing_files_and_nothing_to_read(folder: Path, tmp_path_factory: Any) -> None:
    with pytest.raises(FormatError, match=r"^gone\.h5: cannot be read \(FileNotFoundError\)"):
        Slices(folder / "gone.h5")
    assert Slices([folder / "gone.h5", folder / "file1000000.h5"], skip_bad=True).bad == [
        ("gone.h5", "cannot be read (FileNotFoundError)")]  # fmt: skip
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="want files to read, found none"):
        Slices(empty)
    (empty / "notes.txt").write_text("to do")
    with pytest.raises(ValueError, match=r"1 are left out, the first being notes\.txt: of no k"):
        Slices(empty)
    with pytest.raises(FormatError, match=r"^notes\.txt: of no known kind"):
        Slices([empty / "notes.txt"])  # asked for by name: not a stray


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_are_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.h5")
    assert ("pipe.h5", "not an ordinary file") in Slices(folder).left_out


def test_files_in_the_order_given(folder: Path) -> None:
    names = ["file1000002.h5", "file1000000.h5"]
    slices = Slices([folder / name for name in names])
    assert [path.name for path, _ in slices.entries] == [names[0]] * 2 + [names[1]] * 3
    assert len(Slices(folder / names[0])) == 2


def test_every_kind_that_open_reads(tmp_path: Path) -> None:
    kspace = noise(2, 3, 8, 6)
    datasets.write_fastmri(tmp_path / "a.h5", kspace)
    datasets.write_cfl(tmp_path / "b.v1", datasets.to_bart_axes(kspace))
    datasets.write_npz(tmp_path / "c.npz", {"kspace": kspace})
    np.save(tmp_path / "d.npy", kspace.numpy())
    slices = Slices(tmp_path)
    assert [(path.name, i) for path, i in slices.entries] == [
        (name, i) for name in ("a.h5", "b.v1.hdr", "c.npz", "d.npy") for i in range(2)
    ]
    for i in range(len(slices)):
        assert torch.equal(scan(slices[i]).kspace, kspace[i % 2 : i % 2 + 1])
    (tmp_path / "b.v1.hdr").unlink()  # half a pair is damage, not a stray file
    with pytest.raises(FormatError, match=r"b\.v1\.cfl: cannot be read"):
        Slices(tmp_path)


# Acquisitions: fastmri.evaluate compares the attribute with the text asked for


def by_prefix(folder: Path, acquisition: str) -> set[str]:
    """The planted fault: ``CORPD`` would choose the fat-suppressed knees too."""
    return {p.name for p in folder.glob("*.h5") if KNEES[p.name][0].startswith(acquisition[:5])}


@pytest.mark.parametrize("acquisition", ["CORPD_FBK", "CORPDFS_FBK"])
def test_acquisition_as_fastmri_evaluate_has_it(folder: Path, acquisition: str) -> None:
    slices = Slices(folder, acquisition=acquisition)
    chosen = {path.name for path, _ in slices.entries}
    want = set()
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            if file.attrs["acquisition"] == acquisition:
                want.add(path.name)
    assert chosen == want
    assert by_prefix(folder, acquisition) != want
    others = {name: f"acquisition: {KNEES[name][0]}" for name in set(KNEES) - want}
    assert others.items() <= dict(slices.left_out).items()


def test_acquisition_that_is_not_there(folder: Path) -> None:
    with h5py.File(folder / "file1000002.h5", "r+") as file:
        del file.attrs["acquisition"]
    with pytest.raises(ValueError, match="of acquisition AXT2 to read, found the acquisitions "
                                         "CORPD_FBK, none"):  # fmt: skip
        Slices(folder, acquisition="AXT2")
    assert len(Slices(folder, acquisition="CORPD_FBK")) == 7


def test_headers_are_enough_to_list_fastmri(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a slice of each of fastMRI's 4469 brain files would take 150 GB."""

    def reading(*_: object) -> None:
        raise AssertionError("k-space was read")

    monkeypatch.setattr("recon.datasets.fastmri.to_complex64", reading)
    assert len(Slices(folder)) == 9


# Workers


class Caching(Slices):
    """Planted fault: files stay open from one sample to the next."""

    def __getitem__(self, index: int) -> Any:
        path, _ = self.entries[index]
        self.__dict__.setdefault("files", []).append(h5py.File(path))
        return super().__getitem__(index)


class Random(Slices):
    """Planted fault: the sample depends on the process that reads it."""

    def __getitem__(self, index: int) -> Any:
        sample = scan(super().__getitem__(index))
        return sample._replace(kspace=sample.kspace * torch.rand(1))


def handles() -> int:
    gc.collect()
    return len(list(HANDLES.iterdir()))


def check_no_handles(slices: Slices, before: int) -> None:
    for _ in range(2):
        for i in range(len(slices)):
            slices[i]
        assert handles() <= before


def check_workers(slices: Slices) -> None:
    """Two epochs of two workers give what reading here gives, and leave no handle open."""
    here = [slices[i] for i in range(len(slices))]
    loader = DataLoader(slices, collate_fn=list, num_workers=2)
    counts = []
    for _ in range(2):
        there = [sample for (sample,) in loader]
        assert all(same(a, b) for a, b in zip(there, here, strict=True))
        del there
        counts.append(handles())
    assert counts[1] <= counts[0]


@needs_handles
def test_no_handle_stays_open(folder: Path) -> None:
    slices = Slices(folder)
    check_no_handles(slices, handles())
    with pytest.raises(AssertionError):
        check_no_handles(Caching(folder), handles())


@needs_handles
@ignores_few_cores
def test_two_workers_give_the_same_samples(folder: Path) -> None:
    check_workers(Slices(folder))
    with pytest.raises(AssertionError):
        check_workers(Random(folder))


@ignores_few_cores
def test_spawned_worker_and_lists(folder: Path) -> None:
    """Sizes differ, so samples come in lists; nothing but paths and numbers goes to the worker."""
    slices = Slices(folder)
    loader = DataLoader(slices, batch_size=4, collate_fn=list, num_workers=1,
                        multiprocessing_context="spawn")  # fmt: skip
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 4, 1]
    check_samples([sample for batch in batches for sample in batch], folder)
