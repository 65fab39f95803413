"""From a scan to what a sampler needs: measurements, operator, noise level."""

import math

import torch
from torch import Tensor

from recon.datasets import Scan, centre_crop
from recon.operators import CartesianMRI
from recon.operators.mri import Covariance, espirit, masks, mix_coils
from recon.problem import Problem

FASTMRI_KINDS = ("random", "equispaced", "equispaced_fraction", "magic", "magic_fraction")
MASK_KINDS = (*FASTMRI_KINDS, "inversebench", "poisson_disc")


def undersampling(scan: Scan, kind: str | None, *, acceleration: int = 4,
                  center_fraction: float = 0.08, seed: int | str | None = None) -> Tensor:
    """The columns to use, bool ``(width,)`` or ``(height, width)``: the file's own, or drawn.

    With ``kind`` (one of ``MASK_KINDS``) they are drawn; ``seed`` None takes the scan's name, as
    fastMRI's validation does. What was never measured stays out. ``center_fraction`` is for
    ``FASTMRI_KINDS``: InverseBench's centre follows from the acceleration, and points by Poisson
    discs have 24 rows and columns of it.
    """
    height, width = scan.kspace.shape[-2:]
    if kind is None:
        return torch.ones(width, dtype=torch.bool) if scan.mask is None else scan.mask
    if kind not in MASK_KINDS:
        raise ValueError(f"mask wants one of {', '.join(MASK_KINDS)}, got {kind!r}")
    seed = scan.name if seed is None else seed
    if kind == "inversebench":
        drawn = masks.inversebench(width, acceleration, seed)
    elif kind == "poisson_disc":
        drawn = masks.poisson_disc((height, width), acceleration, seed=seed)
    else:
        drawn = getattr(masks, kind)(width, center_fraction=center_fraction,
                                     acceleration=acceleration, seed=seed)
    return drawn if scan.mask is None else drawn & scan.mask


def problem(scan: Scan, index: int, mask: Tensor, *,
            calibration: int | tuple[int, int] | None = None, noise_std: float | None = None,
            maps: Tensor | None = None) -> Problem[CartesianMRI]:
    """The measurements and the operator of one slice; coil maps from the centre lines only.

    Without ``maps`` they are the file's, and where it has none those of :func:`coil_maps`.
    ``noise_std`` is estimated from the corners of k-space where not given. Raises ValueError for
    a slice with NaN or infinity, and where maps are needed and the centre is too narrow for them.
    """
    y = measurements(scan, index, mask)
    coils, height, width = y.shape
    if maps is None:
        maps = None if scan.maps is None else scan.maps[index]
    if maps is None and coils > 1:
        maps = coil_maps(y, mask, calibration)
    operator = CartesianMRI((height, width), mask=mask, maps=maps)
    std = estimate_noise_std(y, mask) if noise_std is None else noise_std
    reference = None
    if scan.mask is None:
        full = CartesianMRI((height, width), maps=maps)
        reference = full.adjoint(scan.kspace[index])
    elif scan.reference is not None:
        reference = scan.reference[index][None]
    return Problem(y, operator, std, reference)


def measurements(scan: Scan, index: int, mask: Tensor) -> Tensor:
    """The k-space of one slice, zero outside the mask; ValueError for NaN and for another size."""
    kspace = scan.kspace[index]
    if not bool(torch.isfinite(kspace).all()):
        raise ValueError(f"slice {index} of {scan.name} holds NaN or infinity: leave it out with "
                         "--slices, or mend the file")
    height, width = kspace.shape[-2:]
    if tuple(mask.shape) not in ((width,), (height, width)):
        got = f"{len(mask)} columns" if mask.ndim == 1 else f"shape {tuple(mask.shape)}"
        raise ValueError(f"mask has {got} but the k-space has {height} rows and {width} columns: "
                         "pass the mask of this file, or crop one of them")
    return torch.where(mask, kspace, 0)


def coil_maps(y: Tensor, mask: Tensor,
              calibration: int | tuple[int, int] | None = None) -> Tensor:
    """ESPIRiT maps ``(coils, height, width)`` from the fully sampled centre of ``mask``.

    At most 24 readout rows and 24 columns, unless ``calibration`` says (one side, or rows and
    columns). Where nothing was measured, any maps will do: equal ones.
    """
    coils, height, _ = y.shape
    if calibration is None:
        calibration = calibration_region(mask, height)
    maps = espirit(y, calibration=calibration, kernel=_kernel(calibration))
    return maps if bool(maps.abs().amax() > 0) else torch.ones_like(maps) / math.sqrt(coils)


def whitened(scan: Scan) -> tuple[Scan, float | None]:
    """The scan with coils mixed so that their noise is white, and its standard deviation.

    ``sqrt(v) L^-1 k`` with the noise covariance ``L L^H`` and ``v`` its mean variance, so that the
    units stay about the file's; the noise is then ``sqrt(v / 2)`` per real number. Coil maps of the
    file are mixed alike. Without a covariance the scan is returned as it is, and None.
    """
    if scan.noise_covariance is None:
        return scan, None
    try:
        covariance = Covariance(scan.noise_covariance)
    except ValueError as error:
        raise ValueError(f"{scan.name}: {str(error).removeprefix('Covariance: ')}") from None
    maps = None if scan.maps is None else mix_coils(scan.maps, covariance.whitening)
    kspace = mix_coils(scan.kspace, covariance.whitening)
    if scan.mask is not None:
        kspace = torch.where(scan.mask, kspace, 0)  # mixing zeros may leave -0
    return scan._replace(kspace=kspace, maps=maps, noise_covariance=None), covariance.noise_std


def calibration_region(mask: Tensor, height: int) -> tuple[int, int]:
    """Rows and columns of the fully sampled centre: 24 rows, or where they leave no room a square.

    Placed as ESPIRiT does, from ``(n - side + 1) // 2``: a chance neighbour of the centre on one
    side does not widen it. Raises ValueError for fewer than 6 columns: too few for coil maps.
    """
    points = mask.expand(height, mask.shape[-1])

    def sampled(*sides: int) -> bool:
        top, left = ((n - side + 1) // 2 for n, side in zip(points.shape, sides, strict=True))
        return bool(points[top : top + sides[0], left : left + sides[1]].all())

    rows, most = min(24, height), min(24, *points.shape)
    columns = next((n for n in range(min(24, mask.shape[-1]), 0, -1) if sampled(rows, n)), 0)
    if columns < 6:
        rows = columns = next((n for n in range(most, 0, -1) if sampled(n, n)), 0)
    if columns < 6:
        raise ValueError(f"coil maps need at least 6 fully sampled centre columns, the mask has "
                         f"{columns}: pass maps with the data, or --calibration")
    return rows, columns


def _kernel(calibration: int | tuple[int, int]) -> int:
    # 6 is ESPIRiT's usual kernel; a narrow centre holds too few of those to tell signal from noise
    # (8 columns: median sin-angle to the true maps .054 with 6, .015 with 3)
    narrow = calibration if isinstance(calibration, int) else min(calibration)
    return min(6, max(3, (narrow + 1) // 2 - 1))


def estimate_noise_std(kspace: Tensor, mask: Tensor) -> float:
    """Noise per real number from the measured corners of k-space, where the image is weakest.

    The median magnitude of circular complex noise is ``std sqrt(2 ln 2)``. Taken over the samples
    whose distance from the centre is at least nine tenths of the largest measured one; image
    energy that reaches there makes it an upper estimate. Zero where nothing was measured.
    """
    _, height, width = kspace.shape
    rows = (torch.arange(height) - height // 2).abs() / height
    columns = (torch.arange(width) - width // 2).abs() / width
    radius = (rows[:, None].square() + columns.square()).sqrt().to(kspace.device)
    measured = mask.expand(height, width) & (kspace != 0).any(0)
    if not bool(measured.any()):
        return 0.0
    corner = measured & (radius >= 0.9 * radius[measured].max())
    return float(kspace[:, corner].abs().median()) / math.sqrt(2 * math.log(2))


def cropped(image: Tensor, scan: Scan) -> Tensor:
    """The part of an image that the file's own reconstruction shows, by fastMRI's centre crop."""
    return image if scan.crop is None else centre_crop(image, scan.crop)
