"""Coil sensitivities from the fully sampled centre of k-space: ESPIRiT."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, split

# On a CPU, blocks that stay in cache; on a GPU, large enough to fill it.
_BLOCK_BYTES = {"cpu": 4 * 2**20}
_GPU_BLOCK_BYTES = 256 * 2**20
# by the number of axes of an image
_SIDES = {2: "rows, columns", 3: "planes, rows, columns"}
_SIZES = {2: "height, width", 3: "depth, height, width"}
_SQUARINGS = 5  # the power method's 32nd iterate; BART takes 30 orthogonal iterations


class EspiritMaps(NamedTuple):
    """Sensitivities and how well each pixel is explained by them."""

    maps: Tensor  # (*batch, coils, *size), unit norm over the coils or zero
    eigenvalues: Tensor  # (*batch, *size), near 1 inside the object, never above
    # of several sets: (*batch, sets, coils, *size) and (*batch, sets, *size)


def espirit(kspace: Tensor, calibration: int | Sequence[int] = 24, kernel: int | Sequence[int] = 6,
            threshold: float = 1e-3, crop: float = 0.8, sets: int = 1, *,
            axes: int = 2) -> Tensor:
    """Coil sensitivities ``(*batch, coils, height, width)`` from centred k-space of that shape.

    Those of volumes, ``(*batch, coils, depth, height, width)``, with ``axes=3``.

    Patches of ``kernel`` samples of all coils span a space of low dimension; an image whose
    patches lie in that space satisfies ``G(r) maps(r) = maps(r)`` at each pixel, and the maps are
    the dominant eigenvectors of the Hermitian coils x coils matrices G. Uecker et al. 2014,
    doi 10.1002/mrm.24751, with the defaults and meanings of ``bart ecalib -m1 -t -c``.

    At each pixel the maps have unit norm over the coils, and zero norm where the eigenvalue is
    not above ``crop``. Their phase is relative to the calibration's first principal coil ``u``:
    ``sum(conj(u) maps)`` is real and positive, with the last entry of ``u`` real and positive
    (BART the same, up to one sign for the whole image). An item that is all zero gets zero maps.

    Parameters
    ----------
    kspace
        Complex; the images' centre and the zero frequency at index ``n // 2``, along all axes. Only
        the calibration region is read.
    calibration
        Side, or (rows, columns), of the fully sampled centre; it starts at ``(n - side + 1) // 2``
        like the centre of a fastMRI mask. With a mask of columns all rows may be used:
        ``(height, central columns)``. Of a volume, (planes, rows, columns).
    kernel
        Side, or (rows, columns), of the patches; of a volume, (planes, rows, columns).
    threshold
        Share of the largest eigenvalue of the patches' covariance (the square of a singular value)
        up to which a dimension counts as noise.
    crop
        Eigenvalue up to which a pixel is taken to lie outside the object.
    sets
        With 2 or more, maps are ``(*batch, sets, coils, height, width)``: the eigenvectors of as
        many eigenvalues, falling, each zero where its own is not above ``crop``. A second set is
        where the field of view is smaller than the object, or the data are inconsistent (soft
        SENSE, ``bart ecalib -m2``); for ``CartesianMRI(..., sets=2)``.
    axes
        Of the images, 2 or 3. The patches of a volume have three axes too: its planes share one
        noise threshold and one reference of the phase, and one that holds nothing gets zero maps.
        The decomposition is of ``coils * kernel`` numbers a side (1728 for 8 coils and kernel 6),
        its time grows with their cube: compress many coils first, or take ``kernel=4``.
    """
    return espirit_with_eigenvalues(kspace, calibration, kernel, threshold, crop, sets,
                                    axes=axes).maps


def espirit_with_eigenvalues(kspace: Tensor, calibration: int | Sequence[int] = 24,
                             kernel: int | Sequence[int] = 6, threshold: float = 1e-3,
                             crop: float = 0.8, sets: int = 1, *, axes: int = 2) -> EspiritMaps:
    """As ``espirit``, with the eigenvalue of each pixel and, where there are several, each set."""
    if axes not in _SIDES:
        raise ValueError(f"espirit: want axes of 2 or 3, got {axes}")
    if not kspace.is_complex() or kspace.ndim < axes + 1:
        raise TypeError(
            f"espirit: want complex k-space (*batch, coils, {_SIZES[axes]}), got "
            f"{kspace.dtype} {tuple(kspace.shape)}"
        )
    if not (0 <= threshold < 1 and 0 <= crop < 1):
        raise ValueError(f"espirit: want 0 <= threshold, crop < 1, got {threshold}, {crop}")
    region, patch = _sides("calibration", calibration, axes), _sides("kernel", kernel, axes)
    size = tuple(kspace.shape[-axes:])
    for side, n, k in zip(region, size, patch, strict=True):
        if not 1 <= k <= side <= n:
            raise ValueError(
                f"espirit: want kernel <= calibration <= k-space, got {patch}, {region}, {size}"
            )
    batch, coils = kspace.shape[: -axes - 1], kspace.shape[-axes - 1]
    if not 1 <= sets <= coils:
        raise ValueError(f"espirit: want 1 <= sets <= {coils} coils, got {sets}")
    _check_finite(kspace, axes)
    centre = kspace
    for axis, side in zip(range(-axes, 0), region, strict=True):
        centre = centre.narrow(axis, (centre.shape[axis] - side + 1) // 2, side)
    _check_sampled(kspace, centre, axes)

    items = centre.reshape(batch.numel(), coils, *region)
    # a GPU decomposes several matrices at once; a CPU gains nothing and needs the memory
    parts = split(items, 1 if kspace.device.type == "cpu" else 8)
    found = [_espirit(part, patch, threshold, crop, size, sets) for part in parts]
    lead = (*batch, sets) if sets > 1 else batch
    maps = torch.cat([maps for maps, _ in found]).view(*lead, coils, *size)
    return EspiritMaps(maps, torch.cat([values for _, values in found]).view(*lead, *size))


def _espirit(centre: Tensor, patch: tuple[int, ...], threshold: float, crop: float,
             size: tuple[int, ...], sets: int) -> tuple[Tensor, Tensor]:
    """Maps ``(items, sets, coils, *size)`` and eigenvalues ``(items, sets, *size)``."""
    peak = centre.abs().amax(tuple(range(1, centre.ndim)), keepdim=True)
    centre = centre / torch.where(peak > 0, peak, 1)  # squares of 1e-30 would underflow
    lags = _lag_kernels(_patch_projector(centre, patch, threshold), patch)
    u = principal_coil(centre)
    if len(size) == 2:
        return _plane(lags, u, crop, size, sets)
    planes = [_plane(torch.einsum("d,bdefij->befij", wave, lags), u, crop, size[1:], sets)
              for wave in _waves(size[0], patch[0], lags)]
    maps, values = zip(*planes, strict=True)
    return torch.stack(maps, -3), torch.stack(values, -3)


def _plane(lags: Tensor, u: Tensor, crop: float, size: tuple[int, ...],
           sets: int) -> tuple[Tensor, Tensor]:
    """Maps and eigenvalues of one plane from its lags ``(items, 2 ky - 1, 2 kx - 1, coils, coils)``
    and the coils ``u`` that the phase is relative to.
    """
    ky, kx = ((n + 1) // 2 for n in lags.shape[1:3])
    budget = _BLOCK_BYTES.get(lags.device.type, _GPU_BLOCK_BYTES)
    rows = max(1, budget // (lags[:, 0, 0].numel() * size[1] * lags.element_size()))
    across = torch.einsum("xd,bedij->bexij", _waves(size[1], kx, lags), lags)
    down = _waves(size[0], ky, lags)
    largest = dominant if sets == 1 else functools.partial(_several, sets=sets)
    maps, values = zip(*(largest(torch.einsum("yd,bdxij->byxij", wave, across))
                         for wave in split(down, rows)), strict=True)
    value = torch.cat(values, 1).movedim(-1, 1)  # (items, sets, height, width)
    vector = torch.cat(maps, 1).movedim((-1, -2), (1, 2))  # (items, sets, coils, height, width)
    reference = torch.linalg.vecdot(u[:, None, :, None, None], vector, dim=2)
    phase = torch.polar(torch.ones_like(value), reference.angle())
    kept = value > crop
    return torch.where(kept[:, :, None], vector * phase.conj()[:, :, None], 0), value


def _patch_projector(centre: Tensor, patch: tuple[int, ...], threshold: float) -> Tensor:
    """Projector onto the span of all patches, ``(items, coils, *patch, coils, *patch)``."""
    items, coils = centre.shape[:2]
    axes = len(patch)
    n = coils * math.prod(patch)
    gram = centre.new_zeros(items, n, n)
    windows = centre
    for axis, side in enumerate(patch, 2):
        windows = windows.unfold(axis, side, 1)  # (items, coils, *positions, *patch)
    positions, within = range(2, 2 + axes), range(2 + axes, 2 + 2 * axes)
    line = items * n * math.prod(windows.shape[3 : 2 + axes]) * centre.element_size()
    for block in split(windows, max(1, _BLOCK_BYTES["cpu"] // line), 2):
        p = block.permute(0, 1, *within, *positions).reshape(items, n, -1)  # one patch a column
        gram += p @ p.mH
    values, vectors = torch.linalg.eigh(gram)
    kept = values > threshold * values[:, -1:]
    projector: Tensor = (vectors * kept[:, None]) @ vectors.mH
    return projector.view(items, coils, *patch, coils, *patch)


def _lag_kernels(projector: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Sums of the projector over equal lags, ``(items, *(2 patch - 1), coils, coils)``.

    A sample is predicted by every patch that holds it; the mean of the predictions is a
    convolution of the coils with these kernels.
    """
    items, coils = projector.shape[:2]
    lags = projector.new_zeros(items, *(2 * k - 1 for k in patch), coils, coils)
    for at in itertools.product(*map(range, patch)):
        # predicted at (y, x) of the patch from all of it: lags -y .. ky - 1 - y, likewise x
        reached = tuple(slice(k - 1 - i, 2 * k - 1 - i) for i, k in zip(at, patch, strict=True))
        row: tuple[Any, ...] = (slice(None), slice(None), *at)
        predicted = projector[row]  # (items, coils, coils, *patch)
        lags[(slice(None), *reached)] += predicted.movedim((1, 2), (-2, -1))
    return lags / math.prod(patch)


def _waves(n: int, k: int, like: Tensor) -> Tensor:
    """``exp(-2 pi i lag (r - n // 2) / n)`` for the lags of a kernel of side k, ``(n, 2k - 1)``."""
    lag = torch.arange(1 - k, k, device=like.device)
    r = torch.arange(n, device=like.device) - n // 2
    angle = (lag * r[:, None] % n).to(like.dtype.to_real()) * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle)


def dominant(G: Tensor) -> tuple[Tensor, Tensor]:
    """Unit dominant eigenvector ``(..., n, 1)`` and eigenvalue of Hermitian ``G >= 0``."""
    power = G
    for _ in range(_SQUARINGS):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        power.mul_(torch.where(trace > 0, trace, 1).reciprocal()[..., None, None])
    # every column is a multiple of the eigenvector; the one of the largest diagonal is not small
    best = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)[..., None, None]
    vector = power.gather(-1, best.expand(*power.shape[:-1], 1)).squeeze(-1)
    unit, _ = _normalised(vector)
    unit, value = _normalised((G @ unit[..., None]).squeeze(-1))
    return unit[..., None], value


def _several(G: Tensor, sets: int) -> tuple[Tensor, Tensor]:
    """Unit eigenvectors ``(..., n, sets)`` of the largest eigenvalues, and those, falling."""
    # eigenvalues near one another, as the two 1s of folded pixels, defeat powers of G
    values, vectors = torch.linalg.eigh(G)
    return vectors[..., -sets:].flip(-1), values[..., -sets:].flip(-1)


def _normalised(vector: Tensor) -> tuple[Tensor, Tensor]:
    # of the real view: torch's complex norm is ten times slower
    norm = torch.linalg.vector_norm(torch.view_as_real(vector).flatten(-2), dim=-1, keepdim=True)
    return vector / torch.where(norm > 0, norm, 1), norm


def principal_coil(centre: Tensor) -> Tensor:
    """First eigenvector of the coils' covariance, its last entry real and positive."""
    samples = centre.flatten(2)
    u: Tensor = torch.linalg.eigh(samples @ samples.mH).eigenvectors[..., -1]
    last = u[:, -1:]
    return u * torch.where(last.abs() > 0, last.conj() / last.abs(), 1)


def _sides(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    sides = (value,) * axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(sides) != axes:
        raise ValueError(f"espirit: want {name} as one side or ({_SIDES[axes]}), got {value}")
    return sides


def _check_finite(kspace: Tensor, axes: int) -> None:
    finite = torch.isfinite(kspace).flatten(-axes - 1).all(-1)
    if not bool(finite.all()):
        where = f" of item {tuple(int(i) for i in (~finite).nonzero()[0])}" if finite.ndim else ""
        raise ValueError(f"espirit: k-space{where} is not finite: repair or leave out that item")


def _check_sampled(kspace: Tensor, centre: Tensor, axes: int) -> None:
    """Raise if a calibration sample is zero in all coils, except where the whole item is."""
    empty = ~kspace.flatten(-axes - 1).any(-1)[(..., *(None,) * axes)]
    missing = ~(centre.any(-axes - 1) | empty)
    if not bool(missing.any()):
        return
    region = centre.shape[-axes:]
    *item, column = (int(i) for i in missing.flatten(-axes, -2).any(-2).nonzero()[0])
    where = f" of item {tuple(item)}" if item else ""
    raise ValueError(
        f"espirit: calibration column {column} of {region[-1]}{where} holds zeros: the central "
        f"{' x '.join(map(str, region))} samples are not all measured, pass a smaller calibration"
    )
