"""Sparse wavelet coefficients: the compressed-sensing baseline without a learned prior."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.integrators import Step
from recon.operators.base import LinearOperator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.base import sampler
from recon.samplers.problem import check_problem
from recon.samplers.tv import check_settings, peak, shrink


@sampler
def wavelet(y: Tensor, operator: LinearOperator,
            prior: Prior | None = None,  # noqa: ARG001 the place it has in every sampler
            *, weight: float, noise_std: Tensor | float = 0.0,
            wavelet: str = "db4", levels: int = 4, shifts: bool = True, iterations: int = 100,
            start: Step | None = None) -> Iterator[Step]:
    """``argmin_x 1/2 ||A x - y||^2 + weight max|A^H y| ||W x||_1`` by FISTA.

    Returns ``(1, *batch, channel, *spatial)``: there is one answer, hence one sample.

    W gives the details of an orthogonal periodic wavelet transform over all spatial dimensions;
    the coarsest approximation is not penalised. Complex coefficients count by their magnitude.
    ``max|A^H y|``, taken per item, makes ``weight`` a pure number: ``y -> c y`` gives ``x -> c x``,
    and the units of the operator do not matter either. Sizes that ``2^levels`` does not divide are
    padded with zeros inside W, whose shrinkage is then approximate near the border.

    FISTA is Beck & Teboulle's (2009) with the momentum of Chambolle & Dossal 2015. The transform
    runs in PyWavelets on the CPU, wherever ``y`` lives.

    Parameters
    ----------
    prior, noise_std
        Not used; every sampler is called with them.
    weight
        For four-fold 8-coil MRI about 1e-3 where ``noise_std`` is up to 1 % of the image's peak,
        1e-2 where it is 3 %.
    wavelet
        PyWavelets' name of an orthogonal wavelet: ``"haar"``, ``"db4"``, ``"sym8"``, ...
    shifts
        Move the grid of W before every iteration (Figueiredo & Nowak 2003), by a fixed sequence,
        equal for all items, that visits every position evenly: no blocks, better images, but a
        limit that is a compromise of many W and no minimiser for one.
    start
        A saved ``Step`` to go on from: ``x0`` is the image, ``x`` where the next gradient is taken.
        ``sigma`` is always 0.
    """
    check_problem(y, operator, None, noise_std)
    check_settings(weight, iterations, start)
    filters = _orthogonal(wavelet)
    spatial = operator.domain.shape[1:]
    if levels < 1 or 2**levels > min(spatial):
        most = min(spatial).bit_length() - 1
        raise ValueError(f"levels wants 1 to {most} for images {spatial}, got {levels}")
    pulled = operator.adjoint(y[None])
    norm = squared_norm(operator, pulled)
    norm = operator.per_item(torch.where(norm > 0, norm, 1), pulled)
    threshold = weight * peak(pulled, len(operator.domain.shape)) / norm

    if start is None:
        x0 = x = torch.zeros_like(pulled)
        first = 0
    else:
        x, x0, first = start.x, start.x0, start.index
    for i in range(first, iterations):
        moved = x - (operator.normal(x) - pulled) / norm
        offset = shift_at(i, len(spatial), 2**levels) if shifts else (0,) * len(spatial)
        x0_next = denoised(moved, threshold, filters, levels, offset)
        x = x0_next + i / (i + 3) * (x0_next - x0)
        x0 = x0_next
        yield Step(i + 1, torch.zeros((), dtype=x.dtype.to_real(), device=x.device), x, x0)


def denoised(x: Tensor, threshold: Tensor, filters: Any, levels: int,
             offset: tuple[int, ...]) -> Tensor:
    """``x`` with its wavelet details shrunk, on a grid moved by ``offset`` pixels."""
    spatial = x.shape[x.ndim - len(offset) :]
    axes = tuple(range(-len(offset), 0))
    extra = [-n % 2**levels for n in spatial]
    padded = torch.nn.functional.pad(x, [n for e in reversed(extra) for n in (0, e)])
    values = padded.roll(offset, axes).cpu().numpy()
    values = _shrunk(values, threshold.to("cpu"), filters, levels, axes)
    result = torch.from_numpy(values).to(x.device, x.dtype).roll([-n for n in offset], axes)
    for axis, n in zip(axes, spatial, strict=True):
        result = result.narrow(axis, 0, n)
    return result


def _shrunk(values: NDArray[Any], threshold: Tensor, filters: Any, levels: int,
            axes: tuple[int, ...]) -> NDArray[Any]:
    """One level of the transform: shrink the details here, go on with the approximation."""
    import pywt  # slow to import

    parts: dict[str, NDArray[Any]] = pywt.dwtn(values, filters, "periodization", axes=axes)
    for key, part in parts.items():
        if "d" in key:
            detail = torch.from_numpy(part)
            parts[key] = shrink(detail, detail.abs(), threshold).numpy()
        elif levels > 1:
            parts[key] = _shrunk(part, threshold, filters, levels - 1, axes)
    result: NDArray[Any] = np.asarray(pywt.idwtn(parts, filters, "periodization", axes=axes))
    return result


def shift_at(index: int, ndim: int, period: int) -> tuple[int, ...]:
    """Term ``index`` of a sequence that fills ``[0, period)^ndim`` evenly; term 0 is no shift.

    The additive recurrence by powers of the real root of ``g^(ndim + 1) = g + 1``.
    """
    g = 1.5
    for _ in range(30):
        g = (1 + g) ** (1 / (ndim + 1))
    return tuple(int(index * g ** -(k + 1) % 1 * period) for k in range(ndim))


def _orthogonal(name: str) -> Any:
    import pywt

    try:
        filters = pywt.Wavelet(name)
    except ValueError:
        raise ValueError(f'wavelet wants a name PyWavelets knows, such as "haar", "db4" or "sym8", '
                         f"got {name!r}") from None
    if not filters.orthogonal:
        raise ValueError(f'wavelet wants an orthogonal one, such as "haar", "db4" or "sym8", '
                         f"{name!r} is not")
    return filters
