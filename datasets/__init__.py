"""Files in and files out: raw data of scanners and of other programs, and results.

``datasets.open(path)`` reads any known kind; the readers of one kind stand beside it.
"""

from recon.datasets.bart import read_bart, read_cfl, to_bart_axes
from recon.datasets.errors import FormatError
from recon.datasets.fastmri import Header, parse_header, read_fastmri
from recon.datasets.numpy_files import read_npy, read_npz
from recon.datasets.open import describe, open, recognise  # noqa: A004
from recon.datasets.scan import Scan, acs_width, centre_crop
from recon.datasets.write import (
    refuse_existing,
    replacing,
    write_cfl,
    write_fastmri,
    write_hdf5,
    write_npz,
)

__all__ = [
    "FormatError",
    "Header",
    "Scan",
    "acs_width",
    "centre_crop",
    "describe",
    "open",
    "parse_header",
    "read_bart",
    "read_cfl",
    "read_fastmri",
    "read_npy",
    "read_npz",
    "recognise",
    "refuse_existing",
    "replacing",
    "to_bart_axes",
    "write_cfl",
    "write_fastmri",
    "write_hdf5",
    "write_npz",
]
