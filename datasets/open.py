"""One door for every file: which kind it is, its contents, and a short description."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.datasets.bart import bart_paths, layout_bart, read_bart
from recon.datasets.dicom import is_dicom, layout_dicom, read_dicom
from recon.datasets.errors import FormatError, StrPath, base_name, read_head
from recon.datasets.fastmri import layout_fastmri, read_fastmri
from recon.datasets.ismrmrd import layout_ismrmrd, read_ismrmrd
from recon.datasets.ismrmrd_acquisitions import is_ismrmrd
from recon.datasets.lodopab import is_lodopab, layout_lodopab, read_lodopab
from recon.datasets.nifti import is_nifti, layout_nifti, read_nifti
from recon.datasets.nrrd import layout_nrrd, read_nrrd
from recon.datasets.nrrd_header import is_nrrd
from recon.datasets.numpy_files import layout_npy, layout_npz, read_npy, read_npz
from recon.datasets.projections import Projections
from recon.datasets.ra import is_ra, layout_ra, read_ra
from recon.datasets.scan import Layout, Scan, acs_width
from recon.datasets.twix import is_twix, layout_twix, read_twix
from recon.datasets.volume import Volume


class _Kind(NamedTuple):
    read: Callable[[StrPath, slice | None], Scan | Volume | Projections]
    layout: Callable[[StrPath], Layout]
    endings: tuple[str, ...]


# A format of your own: a file with its reader and its layout, a line here, one in `recognise`.
KINDS = {
    "hdf5": _Kind(read_fastmri, layout_fastmri, (".h5", ".hdf5")),
    "ismrmrd": _Kind(read_ismrmrd, layout_ismrmrd, (".h5", ".mrd", ".hdf5")),
    "lodopab": _Kind(read_lodopab, layout_lodopab, (".hdf5", ".h5")),
    "twix": _Kind(read_twix, layout_twix, (".dat",)),
    "bart": _Kind(read_bart, layout_bart, (".hdr", ".cfl")),
    "ra": _Kind(read_ra, layout_ra, (".ra",)),
    "npz": _Kind(read_npz, layout_npz, (".npz",)),
    "npy": _Kind(read_npy, layout_npy, (".npy",)),
    "nifti": _Kind(read_nifti, layout_nifti, (".nii.gz", ".nii")),
    "nrrd": _Kind(read_nrrd, layout_nrrd, (".nrrd", ".nhdr")),
    "dicom": _Kind(read_dicom, layout_dicom, (".dcm",)),
}
# Images whose files do not say in which unit they are.
WITHOUT_UNIT = {"nifti": read_nifti, "nrrd": read_nrrd}


def recognise(path: StrPath) -> str:
    """Which of ``KINDS`` a file or folder is: by the first bytes, which suffixes do not overrule.

    ``hdf5`` is fastMRI's layout, or nothing else that is known. A BART data file has no signature,
    so that pair goes by its suffix, or by its name without one; ``.hdr`` may be NIfTI's too. A
    folder is a DICOM series.
    """
    path = Path(path)
    if path.is_dir():
        if is_dicom(path):
            return "dicom"
        raise FormatError.about(path, "a folder without DICOM files: want a file of it, or a "
                                      "folder that is one series of images")
    if path.suffix in (".hdr", ".cfl"):
        return "bart"
    if not path.exists() and bart_paths(path)[0].exists():
        return "bart"
    head = read_head(path)
    if head.startswith(b"PK"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if is_ra(head):
        return "ra"
    if is_nrrd(head):
        return "nrrd"
    if head.startswith(b"\x89HDF\r\n\x1a\n") or path.suffix in (".h5", ".hdf5", ".mrd"):
        return _in_hdf5(path)  # by suffix too: a user block may stand in front of the signature
    if is_nifti(path):
        return "nifti"
    if is_dicom(path, head):
        return "dicom"
    if is_twix(path, head):
        return "twix"
    if head.startswith(b"MATLAB "):  # their axes, names and orders are each laboratory's own
        version = "7.3 (HDF5)" if head.startswith(b"MATLAB 7.3") else "5"
        raise FormatError.about(path, f"a MATLAB file of version {version}, which is not read: "
                                      "save its k-space (slices, coils, H, W) as npz")
    raise FormatError.about(
        path, "of no known kind: want HDF5 (fastMRI, ISMRMRD, LoDoPaB), Siemens raw data (.dat), "
              "BART's (.cfl and .hdr, or .ra), NIfTI, NRRD, DICOM, npz or npy"
    )


def _in_hdf5(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            if is_ismrmrd(file):
                return "ismrmrd"
            return "lodopab" if is_lodopab(file) else "hdf5"
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return "hdf5"  # damaged: its reader says how


# Any: only the file knows which of the three it holds, and who passes k-space need not ask
def open(path: StrPath, slices: slice | None = None, *,  # noqa: A001
         series: str | None = None, unit: str | None = None) -> Any:
    """Read a file or a DICOM folder of any known kind, all of it or the chosen ``slices``.

    k-space comes as a ``Scan``, images as a ``Volume``, X-ray data as ``Projections``. ``series``
    is the number of a DICOM series where a folder holds several; ``unit``, ``HU`` or ``arbitrary``,
    is that of NIfTI and NRRD images, which do not say.

    Raises
    ------
    FormatError
        The file is of no known kind, damaged, or its contents do not fit together.
    ImportError
        Its kind wants a library that is not installed; the message names it.
    OSError
        The file is missing or unreadable.
    """
    kind = recognise(path)
    if series is not None:
        _check_only("series", ("dicom",), path, kind)
        return read_dicom(path, slices, series)
    if unit is not None:
        _check_only("unit", tuple(WITHOUT_UNIT), path, kind)
        return WITHOUT_UNIT[kind](path, slices, unit=unit)
    return KINDS[kind].read(path, slices)


def _check_only(argument: str, wanted: tuple[str, ...], path: StrPath, kind: str) -> None:
    if kind not in wanted:
        raise ValueError(f"{argument} is for {' and '.join(wanted)} files, {base_name(path)} is "
                         f"{kind}: leave it out")


def stem(path: StrPath) -> str:
    """The name without the ending that tells its kind: BART's ``scan.v2`` has none."""
    name = base_name(path)
    endings = [end for kind in KINDS.values() for end in kind.endings]
    found = [end for end in endings if name.lower().endswith(end) and len(name) > len(end)]
    return name[: len(name) - max(map(len, found))] if found else name


_DETAILS = ("slices", "coils", "matrix", "sampling", "sampled_columns", "acceleration",
            "acs_width", "views", "bins", "unit", "spacing_mm", "crop", "value_range",
            "described_slice", "attributes", "next_command")  # fmt: skip


def describe(path: StrPath, *, series: str | None = None) -> dict[str, Any]:
    """What a file holds, reading its middle slice only (an npz must be unpacked whole).

    Keys: ``name``; ``kind``; ``keys`` (shape and dtype of each array); ``slices``; ``matrix``
    ``(H, W)``; ``value_range`` (smallest and largest magnitude, of what is sampled) and the
    ``described_slice`` it and an inferred sampling come from; ``attributes``; ``next_command``.
    Of k-space also ``coils``; ``sampling`` (``full``, ``full but for its
    ends``: columns never acquired, ``columns``, ``points`` or ``unknown``);
    ``sampled_columns`` (columns with any sample); ``acceleration`` (all points over sampled ones);
    ``acs_width`` (fully sampled columns about the centre); ``crop``. Of projections ``views``,
    ``bins`` and ``unit``, of images ``unit`` and ``spacing_mm``. What does not apply is None; an
    HDF5 file without k-space, such as a written result, has only the first three.
    """
    path = Path(path)
    kind = recognise(path)
    if series is not None:
        _check_only("series", ("dicom",), path, kind)
    layout = KINDS[kind].layout(path) if series is None else layout_dicom(path, series)
    about: dict[str, Any] = {"name": base_name(path), "kind": layout.kind, "keys": layout.keys}
    about |= dict.fromkeys(_DETAILS)
    if layout.slices == 0:
        return about
    middle = layout.slices // 2
    found = open(path, slice(middle, middle + 1), series=series)
    about |= {"slices": layout.slices, "described_slice": middle, "attributes": found.attributes}
    if isinstance(found, Scan):
        more, options = _of_scan(found), ""
    elif isinstance(found, Volume):
        more = {"matrix": tuple(found.values.shape[-2:]), "unit": found.unit,
                "spacing_mm": found.spacing_mm, "value_range": _range(found.values)}
        options = " --views 60 --sampler tv" if found.unit == "HU" else " --mask equispaced"
    else:
        more = {"matrix": found.size, "views": len(found.angles), "bins": found.values.shape[-1],
                "unit": found.unit, "value_range": _range(found.values)}
        options = " --sampler tv"
    options += "" if series is None else f" --series {shlex.quote(series)}"
    place = f"./{path}" if str(path).startswith("-") else str(path)  # no option
    command = f"recon reconstruct {shlex.quote(place)} --out results{options}"
    return about | more | {"next_command": command}


def _of_scan(scan: Scan) -> dict[str, Any]:
    height, width = scan.kspace.shape[-2:]
    whole = torch.ones(width, dtype=torch.bool)
    mask = whole if scan.mask is None else scan.mask
    values = scan.kspace
    if scan.mask is not None:
        values = values[..., mask]
    if bool(mask.all()):
        stated = scan.mask is not None or bool(scan.kspace.any())
        sampling = "full" if stated else "unknown"
    else:
        sampling = "points" if mask.ndim > 1 else "columns"
        used = mask.nonzero()
        if mask.ndim == 1 and int(used[-1] - used[0]) < len(used):
            sampling = "full but for its ends"
    found: dict[str, Any] = {"coils": scan.kspace.shape[1], "matrix": (height, width),
                             "sampling": sampling, "crop": scan.crop, "value_range": _range(values)}
    if sampling != "unknown":
        found |= {"sampled_columns": int(mask.reshape(-1, width).any(0).sum()),
                  "acceleration": mask.numel() / int(mask.sum()),
                  "acs_width": acs_width(mask, scan.attributes.get("num_low_frequency"))}
    return found


def _range(values: Tensor) -> tuple[float, float]:
    """Of magnitudes where values are complex."""
    values = values.abs() if values.is_complex() else values
    return float(values.min()), float(values.max())
