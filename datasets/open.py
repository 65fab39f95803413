"""One door for every file: which kind it is, its contents, and a short description."""

import shlex
from pathlib import Path
from typing import Any

import torch

from recon.datasets.bart import bart_paths, layout_bart, read_bart
from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.fastmri import layout_fastmri, read_fastmri
from recon.datasets.numpy_files import layout_npy, layout_npz, read_npy, read_npz
from recon.datasets.scan import Layout, Scan, acs_width

_READERS = {"hdf5": read_fastmri, "bart": read_bart, "npz": read_npz, "npy": read_npy}
_LAYOUTS = {"hdf5": layout_fastmri, "bart": layout_bart, "npz": layout_npz, "npy": layout_npy}


def recognise(path: StrPath) -> str:
    """``hdf5``, ``bart``, ``npz`` or ``npy``: by the first bytes, which suffixes do not overrule.

    A BART data file has no signature, so that pair goes by its suffix, or by its name without one.
    """
    path = Path(path)
    if path.suffix in (".hdr", ".cfl"):
        return "bart"
    if not path.exists() and bart_paths(path)[0].exists():
        return "bart"
    head = read_head(path)
    if head.startswith(b"PK"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"\x89HDF\r\n\x1a\n") or path.suffix in (".h5", ".hdf5"):
        return "hdf5"  # by suffix too: a user block may stand in front of the signature
    for told, found in (
        ("a DICOM file", head[128:132] == b"DICM"),
        ("a NIfTI image", path.name.endswith((".nii", ".nii.gz"))),
        ("a Siemens raw file", path.suffix == ".dat"),
    ):
        if found:
            raise FormatError.about(path, f"{told}, which is not read as k-space")
    raise FormatError.about(
        path, "of no known kind: want fastMRI's HDF5 (.h5), BART's pair (.cfl, .hdr), npz or npy"
    )


def open(path: StrPath, slices: slice | None = None) -> Scan:  # noqa: A001
    """Read a raw-data file of any known kind, all of it or the chosen ``slices``.

    Raises
    ------
    FormatError
        The file is of no known kind, damaged, or its contents do not fit together.
    OSError
        The file is missing or unreadable.
    """
    return _READERS[recognise(path)](path, slices)


def describe(path: StrPath) -> dict[str, Any]:
    """What a file holds, reading its middle slice only (an npz must be unpacked whole).

    Keys: ``name``; ``kind``; ``keys`` (shape and dtype of each array); ``slices``, ``coils``,
    ``matrix`` ``(H, W)``; ``sampling`` (``full``, ``columns``, ``points`` or ``unknown``);
    ``sampled_columns`` (columns with any sample); ``acceleration`` (all points over sampled ones);
    ``acs_width`` (fully sampled columns about the centre); ``crop``; ``value_range`` (smallest and
    largest magnitude sampled) and the ``described_slice`` it and an inferred sampling come from;
    ``attributes``; ``next_command``. An HDF5 file without k-space, such as a written result, has
    only the first three, the rest being None.
    """
    path = Path(path)
    layout = _LAYOUTS[recognise(path)](path)
    about: dict[str, Any] = {"name": path.name, "kind": layout.kind, "keys": layout.keys}
    if layout.slices == 0:
        return about | dict.fromkeys(_DETAILS)
    return about | dict(zip(_DETAILS, _details(path, layout), strict=True))


_DETAILS = ("slices", "coils", "matrix", "sampling", "sampled_columns", "acceleration",
            "acs_width", "crop", "value_range", "described_slice", "attributes",
            "next_command")  # fmt: skip


def _details(path: Path, layout: Layout) -> tuple[Any, ...]:
    middle = layout.slices // 2
    scan = open(path, slice(middle, middle + 1))
    height, width = scan.kspace.shape[-2:]
    whole = torch.ones(width, dtype=torch.bool)
    mask = whole if scan.mask is None else scan.mask
    values = scan.kspace.abs()
    if scan.mask is not None:
        values = values[..., mask]
    if bool(mask.all()):
        stated = scan.mask is not None or bool(scan.kspace.any())
        sampling = "full" if stated else "unknown"
    else:
        sampling = "columns" if mask.ndim == 1 else "points"
    known = sampling != "unknown"
    return (
        layout.slices,
        scan.kspace.shape[1],
        (height, width),
        sampling,
        int(mask.reshape(-1, width).any(0).sum()) if known else None,
        mask.numel() / int(mask.sum()) if known else None,
        acs_width(mask, scan.attributes.get("num_low_frequency")) if known else None,
        scan.crop,
        (float(values.min()), float(values.max())),
        middle,
        scan.attributes,
        f"recon reconstruct {shlex.quote(str(path))} --out results",
    )
