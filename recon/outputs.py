"""Results in the formats of those who asked: arrays, NIfTI, ISMRMRD images, derived DICOM."""

import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import recon
from recon import datasets
from recon.datasets import Projections, Volume
from recon.datasets.derived import refuse_sources
from recon.datasets.nifti import nibabel_or_advice
from recon.datasets.scan import Attributes
from recon.datasets.write_ismrmrd import image_heads
from recon.reconstruct import Reconstruction

# For every format of ``recon reconstruct`` what is written, in the order of its importance.
ENDINGS = {
    "h5": (".h5",),
    "npz": (".npz",),
    "cfl": (".cfl", ".hdr"),
    "nifti": (".nii.gz", "_std.nii.gz"),
    "ismrmrd": (".mrd.h5", "_std.mrd.h5"),
    "dicom": ("_dicom", "_std_dicom"),
}
FORMATS = tuple(ENDINGS)


class Origin(NamedTuple):
    """What a result takes over from the file it came from."""

    unit: str = "arbitrary"
    affine: Tensor | None = None
    headers: Sequence[Any] | None = None
    """DICOM headers of the source's slices, of those reconstructed."""
    modality: str = "MR"


def origin_of(path: Path, volume: Volume | None, attributes: Attributes, count: int,
              first: int, series: str | None = None) -> Origin:
    """From images their geometry; k-space has only a pixel size, and its place is invented."""
    if volume is not None:
        headers = None
        if volume.kind.startswith("dicom"):
            headers = datasets.source_headers(path, series)[first : first + count]
        modality = "CT" if volume.unit == "HU" else "MR"
        return Origin(volume.unit, volume.affine, headers, modality)
    down, across = (_length(attributes, f"pixel_{axis}_mm") for axis in "xy")
    if down is None or across is None:
        return Origin()
    return Origin(affine=_stacked(attributes, down, across))


def origin_of_projections(projections: Projections) -> Origin:
    """CT of the pixel size that its operator has; its place is invented."""
    side = projections.pixel_mm
    return Origin("arbitrary", _stacked(projections.attributes, side, side), None, "CT")


def _stacked(attributes: Attributes, down: float, across: float) -> Tensor:
    """Slices, rows, columns to head, back and left; without a thickness 5 mm are invented."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[2, 0] = _length(attributes, "slice_thickness_mm") or 5.0
    affine[1, 1], affine[0, 2] = down, across
    affine[3, 3] = 1
    return affine


def _length(attributes: Attributes, key: str) -> float | None:
    value = attributes.get(key)
    return float(value) if isinstance(value, float | int) and 0 < value < math.inf else None


def results_of(target: Path, kind: str) -> list[Path]:
    """Everything that writing a result of this kind and its figure may make."""
    return [target.with_name(target.name + end) for end in (*ENDINGS[kind], ".png")]


def description_of(sampler: str, draws: int) -> str:
    """What a derived series says was done; of everyone's the same, so that it names nobody."""
    return f"recon {sampler}, {draws} draw(s)"


def refuse_result(kind: str, origin: Origin, shape: tuple[int, int, int], *, description: str,
                  deidentify: bool) -> None:
    """Raise now what `write_result` would raise after hours of work, whatever the values are.

    ``shape`` is that of the images, ``(slices, h, w)``.
    """
    if kind == "nifti":
        nibabel_or_advice()
    elif kind == "ismrmrd" and origin.affine is not None:
        image_heads(origin.affine.numpy(), shape)
    elif kind == "dicom":
        own = origin.headers is None
        refuse_sources(origin.headers, shape, affine=origin.affine if own else None,
                       modality=origin.modality if own else None, description=description,
                       deidentify=deidentify)


def write_result(target: Path, kind: str, whole: Reconstruction, origin: Origin, *,
                 description: str, deidentify: bool, overwrite: bool) -> list[Path]:
    """Write a reconstruction ``(samples, slices, 1, h, w)``; returns what was written.

    NIfTI, ISMRMRD and DICOM get the mean (its magnitude where it is complex) and, with more than
    one sample, the standard deviation beside it; the others what ``Reconstruction.save`` says.
    """
    paths = [target.with_name(target.name + end) for end in ENDINGS[kind]]
    if kind in ("h5", "npz", "cfl"):
        whole.save(paths[0], overwrite=overwrite)
        return paths
    mean = whole.mean[:, 0].cpu()
    stacks = {"mean": mean.abs() if mean.is_complex() else mean}
    if len(whole.samples) > 1:
        stacks["std"] = whole.std[:, 0].cpu()
    secret = secrets.token_bytes(32) if deidentify else None  # one: mean and std stay one study
    written = []
    for (name, values), path in zip(stacks.items(), paths, strict=False):
        if kind == "nifti":
            datasets.write_nifti(path, values, origin.affine, overwrite=overwrite)
        elif kind == "ismrmrd":
            h, w = map(float, values.shape[1:])
            size = None if origin.affine is not None else (h, w, 1.0)
            datasets.write_ismrmrd_images(path, values, affine=origin.affine,
                                          field_of_view_mm=size, overwrite=overwrite)
        else:
            write = datasets.write_dicom if name == "mean" else datasets.write_dicom_uncertainty
            write(path, values, origin.headers, unit=origin.unit, description=description,
                  software=recon.__version__,
                  affine=None if origin.headers is not None else origin.affine,
                  modality=None if origin.headers is not None else origin.modality,
                  deidentify=deidentify, secret=secret, overwrite=overwrite)
        written.append(path)
    return written
