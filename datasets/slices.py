"""All slices of a folder as one PyTorch dataset, read one by one."""

import operator
from collections.abc import Container, Iterable
from os import PathLike
from pathlib import Path

from torch.utils.data import Dataset

from recon.datasets.dicom import is_dicom
from recon.datasets.dicom_series import is_series
from recon.datasets.errors import FormatError, StrPath
from recon.datasets.fastmri import acquisition_of, layout_fastmri
from recon.datasets.open import describe, open, recognise  # noqa: A004
from recon.datasets.projections import Projections
from recon.datasets.scan import Scan
from recon.datasets.volume import Volume

# A file so named is data: where it cannot be read it is damaged, not in the wrong folder.
DATA = (".h5", ".hdf5", ".hdr", ".cfl", ".npz", ".npy", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".dcm",
        ".ra", ".dat", ".mrd", ".ima")
# Files without such a name that are data by their first bytes; a zip or HDF5 file may be anything.
BY_CONTENTS = ("ismrmrd", "lodopab", "twix", "ra", "npy", "nifti", "nrrd", "dicom")


class Slices(Dataset[Scan | Volume | Projections]):
    """Slice ``i`` of all files, each read by ``datasets.open`` when asked for.

    ``source`` is a folder, whose files are taken in the order of their names, or files in the
    order given. ``acquisition`` takes only files whose attribute is that text, as
    ``fastmri.evaluate`` compares it. Nothing is kept open or cached, so worker processes may be
    forked or spawned.

    Sizes differ within a folder, so samples do not stack: ``DataLoader(slices, batch_size=8,
    collate_fn=list)`` gives lists of them, unchanged. (``batch_size=None`` gives them one by one,
    but PyTorch then turns the tuple ``crop`` into a list.)

    Files are checked here as far as their headers tell (HDF5), or by their middle slice; damage
    within a slice shows when it is read.

    Raises
    ------
    FormatError
        A data file or a series of images cannot be read, unless ``skip_bad``.
    ValueError
        Nothing is left to read.
    """

    entries: list[tuple[Path, int]]
    """For each sample its file, and the number of the slice there."""
    left_out: list[tuple[str, str]]
    """Name and reason of what in the folder is not data, or of another acquisition."""
    bad: list[tuple[str, str]]
    """Name and reason of data that ``skip_bad`` left out."""

    def __init__(self, source: StrPath | Iterable[StrPath], *, acquisition: str | None = None,
                 skip_bad: bool = False) -> None:  # fmt: skip
        self.entries, self.left_out, self.bad = [], [], []
        acquisitions: set[str] = set()
        paths, by_name = _listed(source)
        for path in paths:
            expected = by_name or _is_data(path)
            try:
                if not expected and _hidden(path):
                    raise FormatError.about(path, "a hidden file")
                count, found = _contents(path)
            except (FormatError, OSError) as error:
                why = _why(path, error)
                if expected and not skip_bad:
                    raise FormatError(f"{path.name}: {why}; skip_bad=True leaves such files out "
                                      "and lists them") from error  # fmt: skip
                (self.bad if expected else self.left_out).append((path.name, why))
                continue
            if acquisition is not None and found != acquisition:
                acquisitions.add(found)
                self.left_out.append((path.name, f"acquisition: {found}"))
                continue
            self.entries += [(path, number) for number in range(count)]
        if not self.entries:
            others = [*self.bad, *self.left_out]
            problem = f"found none, {len(others)} are left out" if others else "found none"
            if acquisitions:
                problem = f"found the acquisitions {', '.join(sorted(acquisitions))}"
            elif others:
                problem += f", the first being {': '.join(others[0])}"
            wanted = "" if acquisition is None else f" of acquisition {acquisition}"
            where = Path(source).name if isinstance(source, str | PathLike) else "Slices"
            raise ValueError(f"{where}: want files{wanted} to read, {problem}")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Scan | Volume | Projections:
        path, number = self.entries[operator.index(index)]
        return open(path, slice(number, number + 1))


def new_data(folder: Path, known: Container[str]) -> list[str]:
    """Names of data that ``Slices(folder)`` would take, or refuse, beside those known already."""
    return [path.name for path in _listed(folder)[0] if path.name not in known and _is_data(path)]


def _listed(source: StrPath | Iterable[StrPath]) -> tuple[list[Path], bool]:
    """Files in order, and whether they were asked for by name: all must be readable then."""
    if not isinstance(source, str | PathLike):
        return [Path(path) for path in source], True
    folder = Path(source)
    if not folder.is_dir() or _is_one(folder):
        return [folder], True
    inside = {path.name: path for path in sorted(folder.iterdir(), key=lambda path: path.name)}
    return [path for name, path in inside.items() if _speaker(name) not in inside], False


def _is_data(path: Path) -> bool:
    """Whether something in a folder is to be read, and so damaged where it cannot be."""
    if _hidden(path):
        return False
    try:
        if path.is_dir():
            return is_dicom(path) and is_series(path)
        named = path.name.lower().endswith(DATA)
        return path.is_file() and (named or recognise(path) in BY_CONTENTS)
    except (FormatError, OSError):
        return False


def _speaker(name: str) -> str | None:
    """The file that a name belongs to, if it is the silent one of a pair."""
    if name.endswith(".cfl"):
        return name.removesuffix(".cfl") + ".hdr"
    if name.startswith("ground_truth_"):
        return name.replace("ground_truth_", "observation_", 1)
    return None


def _hidden(path: Path) -> bool:
    """What macOS leaves beside scan.h5 is ._scan.h5, and what is being written has a dot too."""
    return path.name.startswith(".")


def _is_one(folder: Path) -> bool:
    """Whether a folder as a whole is of a known kind, as series of images are."""
    try:
        recognise(folder)
    except (FormatError, OSError):
        return False
    return True


def _contents(path: Path) -> tuple[int, str]:
    """How many slices a file holds, and its acquisition."""
    if not (path.is_file() or path.is_dir()) and path.exists():
        raise FormatError.about(path, "not an ordinary file")  # a pipe would never end
    if recognise(path) == "hdf5":  # reading a slice of each of thousands of files takes long
        layout = layout_fastmri(path)
        if layout.slices:
            return layout.slices, acquisition_of(path) or "none"
    about = describe(path)
    if about["slices"] is None:
        raise FormatError.about(path, f"no k-space or images in it, but {', '.join(about['keys'])}")
    return int(about["slices"]), str(about["attributes"].get("acquisition", "none"))


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, FormatError):
        return str(error).removeprefix(f"{path.name}: ")
    if isinstance(error, IsADirectoryError):
        return "a folder"
    return f"cannot be read ({type(error).__name__})"  # the error itself may name folders
