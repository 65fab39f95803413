"""Files in and files out: raw data of scanners and of other programs, images, and results.

``datasets.open(path)`` reads any known kind; the readers of one kind stand beside it.
"""

from recon.datasets.bart import read_bart, read_cfl, to_bart_axes
from recon.datasets.dicom import read_dicom, source_headers
from recon.datasets.errors import FormatError
from recon.datasets.fastmri import fully_sampled, read_fastmri
from recon.datasets.ismrmrd import read_ismrmrd
from recon.datasets.lodopab import read_lodopab, write_lodopab
from recon.datasets.nifti import read_nifti
from recon.datasets.nrrd import read_nrrd
from recon.datasets.numpy_files import read_npy, read_npz
from recon.datasets.open import describe, open, recognise, stem  # noqa: A004
from recon.datasets.projections import Projections
from recon.datasets.ra import read_ra, write_ra
from recon.datasets.scan import Scan, acs_width, centre_crop
from recon.datasets.scan_header import Header, parse_header
from recon.datasets.slices import Slices
from recon.datasets.twix import read_twix
from recon.datasets.volume import Volume
from recon.datasets.write import (
    refuse_existing,
    replacing,
    write_cfl,
    write_fastmri,
    write_hdf5,
    write_npz,
    write_submission,
)
from recon.datasets.write_dicom import (
    write_dicom,
    write_dicom_uncertainty,
    write_parametric_map,
)
from recon.datasets.write_folder import refuse_existing_folder
from recon.datasets.write_ismrmrd import write_ismrmrd, write_ismrmrd_images
from recon.datasets.write_nifti import write_nifti

__all__ = [
    "FormatError",
    "Header",
    "Projections",
    "Scan",
    "Slices",
    "Volume",
    "acs_width",
    "centre_crop",
    "describe",
    "fully_sampled",
    "open",
    "parse_header",
    "read_bart",
    "read_cfl",
    "read_dicom",
    "read_fastmri",
    "read_ismrmrd",
    "read_lodopab",
    "read_nifti",
    "read_npy",
    "read_npz",
    "read_nrrd",
    "read_ra",
    "read_twix",
    "recognise",
    "refuse_existing",
    "refuse_existing_folder",
    "replacing",
    "source_headers",
    "stem",
    "to_bart_axes",
    "write_cfl",
    "write_dicom",
    "write_dicom_uncertainty",
    "write_fastmri",
    "write_hdf5",
    "write_ismrmrd",
    "write_ismrmrd_images",
    "write_lodopab",
    "write_nifti",
    "write_npz",
    "write_parametric_map",
    "write_ra",
    "write_submission",
]
