"""What every raw-data reader returns, and the checks they share."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath

Attributes = dict[str, str | float | int]

# Masks saved as floats are off by rounding or by a lossy resampling; only the first is harmless.
FLOAT_MASK_TOLERANCE = 1e-3


class Scan(NamedTuple):
    """One volume of Cartesian k-space and what its file says about it.

    ``kspace`` has its zero frequency in the middle (``n // 2``) and the units of the file; the
    centred orthonormal inverse FFT over ``(H, W)`` gives the coil images. It is +0 wherever
    ``mask`` is False, and finite.
    """

    kspace: Tensor
    """complex64, ``(slices, coils, H, W)``; H is the readout, W the phase encoding."""
    mask: Tensor | None
    """bool, ``(W,)`` columns or ``(H, W)`` points; None if fully sampled or not known."""
    maps: Tensor | None
    """complex64 coil sensitivities, ``(slices, coils, H, W)``."""
    reference: Tensor | None
    """float32, ``(slices, h, w)``: the magnitude image to compare with."""
    crop: tuple[int, int] | None
    """``(h, w)`` of the finished image, cut from the middle by :func:`centre_crop`."""
    attributes: Attributes
    """The file's own on the acquisition, sizes from its header, and under ``note`` whatever the
    reader inferred, cast or left out, sentences joined by ``"; "``."""
    name: str
    """Base name of the file with its suffix; fastMRI seeds its random masks with it."""
    kind: str
    """``fastmri_multicoil``, ``fastmri_singlecoil``, ``ismrmrd``, ``twix``, ``bart``, ``ra``,
    ``npz`` or ``npy``."""
    noise_covariance: Tensor | None = None
    """complex64 ``(coils, coils)``: ``E[n n^H]`` of the noise of the coils, in the units of
    ``kspace``, from a measurement without signal."""


class Layout(NamedTuple):
    """What a file holds, found without reading its data."""

    kind: str
    slices: int
    keys: dict[str, dict[str, Any]]
    """For each array its ``shape`` and ``dtype``."""


def centre_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle ``size`` of the last two dimensions, starting at ``(n - m) // 2`` as fastMRI does.

    BART starts at ``n // 2 - m // 2``: one pixel later when n is even and m odd.
    """
    (height, width), (h, w) = x.shape[-2:], size
    if not (0 < h <= height and 0 < w <= width):
        raise ValueError(f"centre_crop: want a size within {(height, width)}, got {size}")
    top, left = (height - h) // 2, (width - w) // 2
    return x[..., top : top + h, left : left + w]


def select(slices: slice | None, count: int) -> slice:
    """``slices`` with its bounds filled in for ``count`` slices; counts only forwards."""
    if slices is None:
        return slice(0, count, 1)
    if not isinstance(slices, slice):
        raise TypeError(f"slices: want slice(start, stop) or None, got {slices!r}")
    chosen = slice(*slices.indices(count))
    if chosen.step < 1:
        raise ValueError(f"slices: want a positive step, got {slices}")
    if not range(count)[chosen]:
        raise ValueError(f"slices {slices.start}:{slices.stop} chooses none of the {count} slices: "
                         "count from 0")
    return chosen


def check_complex(path: StrPath, kspace: Any) -> None:
    """Refuse k-space of real numbers: images, or real and imaginary parts side by side."""
    if kspace.dtype.kind != "f":
        return
    shape = tuple(kspace.shape or ())  # None where HDF5 stores that there is nothing
    got = f"want complex values, got {kspace.dtype} of shape {shape}"
    if shape[-1:] == (2,):
        raise FormatError.about(
            path,
            f"{got}, which looks like real and imaginary parts in the last axis: write "
            "x[..., 0] + 1j * x[..., 1] instead",
            "kspace",
        )
    raise FormatError.about(
        path,
        f"{got}: an image is no k-space; where real and imaginary parts of the coils alternate in "
        "the last axis (Calgary-Campinas), write np.moveaxis(x[..., ::2] + 1j * x[..., 1::2], -1, "
        "1) instead",
        "kspace",
    )


def to_complex64(path: StrPath, key: str, array: NDArray[Any], notes: list[str]) -> Tensor:
    """A fresh complex64 tensor of the same shape; a change of precision is written to ``notes``."""
    kind = array.dtype.kind
    if array.dtype.names is not None:
        raise FormatError.about(
            path,
            f"values are records {array.dtype.names}, want complex64: write "
            f"{array.dtype.names[0]} + 1j * {array.dtype.names[-1]} instead",
            key,
        )
    if kind not in "cf":
        raise FormatError.about(path, f"want complex64 values, got {array.dtype}", key)
    if kind == "f" and array.shape[-1:] == (2,):
        raise FormatError.about(
            path,
            f"shape {array.shape} of {array.dtype} looks like real and imaginary parts in the "
            "last axis: write x[..., 0] + 1j * x[..., 1] instead",
            key,
        )
    if array.dtype.newbyteorder("=") != np.complex64:
        notes.append(f"{key} was {array.dtype.newbyteorder('=')}, cast to complex64")
    # an overflow becomes inf, which check_finite names, as any NaN
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.array(array, dtype=np.complex64, order="C"))


def check_finite(path: StrPath, key: str, x: Tensor, chosen: slice) -> None:
    """Refuse NaN and infinity, naming the first bad slice by its number in the file."""
    parts = torch.view_as_real(x) if x.is_complex() else x
    for number, part in zip(range(chosen.start, chosen.stop, chosen.step), parts, strict=True):
        if not bool(torch.isfinite(part).all()):  # slice by slice: a whole-volume mask is large
            raise FormatError.about(path, f"slice {number} holds NaN or infinity", key)


def to_mask(path: StrPath, array: NDArray[Any], size: tuple[int, int]) -> Tensor:
    """A bool mask ``(W,)`` or ``(H, W)`` from zeros and ones of any dtype.

    Axes of length one in front are dropped, and one behind where fastMRI's ``(..., W, 1)`` has it.
    """
    if array.dtype.kind not in "biuf":
        raise FormatError.about(path, f"want zeros and ones, got values of {array.dtype}", "mask")
    shape = array.shape
    if len(shape) >= 3 and shape[-1] == 1:
        shape = shape[:-1]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    if shape not in ((size[1],), size):
        got = f"{shape[0]} columns" if len(shape) == 1 else f"shape {array.shape}"
        raise FormatError.about(
            path,
            f"has {got} but the k-space has {size[0]} rows and {size[1]} columns: "
            "save the mask of this k-space",
            "mask",
        )
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # of a NaN
            distance = np.minimum(np.abs(array), np.abs(array - 1))
        if not bool((distance <= FLOAT_MASK_TOLERANCE).all()):  # also catches NaN
            worst = array.flat[int(np.nan_to_num(distance, nan=np.inf).argmax())]
            raise FormatError.about(path, f"want zeros and ones, got {worst:g}", "mask")
        array = array > 0.5  # not `!= 0`: within the tolerance 0.0001 is a zero
    mask = torch.from_numpy(np.array(array != 0).reshape(shape))
    if not bool(mask.any()):
        raise FormatError.about(path, "samples nothing: every entry is zero", "mask")
    return mask


def infer_mask(path: StrPath, kspace: Tensor, notes: list[str], points: bool) -> Tensor | None:
    """The mask of zero-filled k-space: what is exactly zero in every coil is unsampled.

    Noise is never exactly zero, so this is safe for measured data; simulated noiseless k-space may
    hold true zeros. Columns ``(W,)`` are preferred; ``points`` allows ``(H, W)``. None where
    nothing is zero, and where everything is. Slices that are zero at different points are refused,
    empty ones apart: the zeros of each would pass for measurements of another's mask. Points up to
    a hundredth of a slice are chance, as in whole numbers of a scanner, and count as measured.
    """
    each = torch.stack([(one != 0).any(0) for one in kspace])  # (slices, H, W)
    each = each[each.flatten(1).any(1)]
    if not len(each):
        notes.append("all k-space read is zero, so its sampling is not known")
        return None
    measured = each.any(0)
    missed = (measured & ~each).flatten(1).sum(1)
    if bool((each.any(1) != measured.any(0)).any()) or bool((100 * missed > measured.sum()).any()):
        raise FormatError.about(
            path,
            "slices have zeros at different points and the file has no mask: read its slices one "
            "by one, or, where such zeros were measured, save the `mask` of all (npz, HDF5)",
            "kspace",
        )
    columns = measured.any(0)  # (W,)
    if not points or bool((measured == columns).all()):
        if bool(columns.all()):
            return None
        notes.append(
            f"no mask in the file: {int(columns.sum())} of {len(columns)} columns are not zero "
            "and were taken as sampled"
        )
        return columns
    notes.append(
        f"no mask in the file: {int(measured.sum())} of {measured.numel()} points are not zero "
        "and were taken as sampled"
    )
    return measured


def zero_outside(kspace: Tensor, mask: Tensor | None, notes: list[str]) -> Tensor:
    """Write +0 in place where nothing was sampled; multiplying would leave the sign of a -0."""
    if mask is None:
        return kspace
    if bool((kspace.flatten(0, 1)[:, ~mask] if mask.ndim == 2 else kspace[..., ~mask]).any()):
        notes.append("k-space outside the mask was not zero and has been set to zero")
    return kspace.masked_fill_(~mask, 0)


def to_maps(path: StrPath, array: NDArray[Any], chosen: slice, total: int, like: Tensor,
            notes: list[str]) -> Tensor:  # fmt: skip
    """Coil maps ``(slices, coils, H, W)`` fit for ``like``; ``(coils, H, W)`` serve every slice."""
    want = (total, *like.shape[1:])
    if array.shape == want[1:]:
        array = np.broadcast_to(array, want)
    if array.shape != want:
        raise FormatError.about(
            path, f"want shape {want} or {want[1:]}, as the k-space, got {array.shape}", "maps"
        )
    maps = to_complex64(path, "maps", array[chosen], notes)
    check_finite(path, "maps", maps, chosen)
    return maps


def to_reference(path: StrPath, key: str, array: NDArray[Any], chosen: slice) -> Tensor:
    """A float32 reference ``(slices, h, w)`` from the slices already chosen."""
    if array.dtype.kind not in "fiu":
        raise FormatError.about(path, f"want real values, got {array.dtype}", key)
    count = len(range(chosen.start, chosen.stop, chosen.step))
    if array.ndim != 3 or len(array) != count:
        raise FormatError.about(path, f"want ({count}, h, w), got {array.shape}", key)
    with np.errstate(over="ignore", invalid="ignore"):  # as above
        reference = torch.from_numpy(np.array(array, dtype=np.float32))
    check_finite(path, key, reference, chosen)
    return reference


def acs_width(mask: Tensor, stated: object = None) -> int:
    """How many columns about the centre ``W // 2`` are sampled without a gap.

    ``mask`` is ``(W,)`` or ``(H, W)``, where the row ``H // 2`` counts. ``stated`` is the file's
    own number, believed if it is not larger: chance neighbours of the centre look calibrated too.
    """
    line = mask if mask.ndim == 1 else mask[mask.shape[0] // 2]
    centre = line.shape[0] // 2
    if not bool(line[centre]):
        return 0
    right = line[centre:].int().cumprod(0).sum()
    left = line[:centre].flip(0).int().cumprod(0).sum()
    counted = int(left + right)
    return stated if isinstance(stated, int) and 0 < stated <= counted else counted
