"""Coils mixed, compressed and combined; their sensitivities from images of their own."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from recon.operators.base import LinearOperator
from recon.operators.mri.espirit import dominant, principal_coil
from recon.space import Space


def mix_coils(y: Tensor, matrix: Tensor, ndim: int = 2) -> Tensor:
    """``sum_c matrix[v, c] y[c]``: ``(*batch, coils, *samples)`` to virtual coils in their place.

    ``ndim`` is the number of sample dimensions, ``(height, width)`` by default.
    """
    flat = matrix.to(y.device, y.dtype) @ y.flatten(-ndim)
    return flat.reshape(*flat.shape[:-1], *y.shape[-ndim:])


class CoilMixing(LinearOperator):
    """``y[v] = sum_c matrix[v, c] x[c]`` over the first dimension of a space.

    Parameters
    ----------
    matrix
        Complex ``(virtual coils, coils)``.
    space
        Of the measurements that are mixed, complex.
    """

    items = ()
    matrix: Tensor

    def __init__(self, matrix: Tensor, space: Space) -> None:
        if matrix.ndim != 2 or matrix.shape[1] != space.shape[0]:
            raise ValueError(f"CoilMixing: want a matrix (virtual coils, {space.shape[0]}), got "
                             f"{tuple(matrix.shape)}")
        if not (matrix.is_complex() and space.is_complex):
            raise TypeError(f"CoilMixing: want a complex matrix and space, got {matrix.dtype} and "
                            f"{space.dtype}")
        super().__init__(space, Space((len(matrix), *space.shape[1:]), space.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return mix_coils(x, self.matrix, len(self.domain.shape) - 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return mix_coils(y, self.matrix.mH, len(self.domain.shape) - 1)


class CoilCompression(NamedTuple):
    """Virtual coils that hold most of the signal."""

    matrix: Tensor  # (virtual coils, coils), orthonormal rows: for mix_coils and operator.mixed
    energy: float  # share of the signal's energy that they keep
    energies: Tensor  # (coils,), share of each possible virtual coil, falling


def coil_compression(kspace: Tensor, virtual: int | None = None,
                     energy: float = 0.99) -> CoilCompression:
    """The principal coils of ``kspace`` by its singular values; white noise stays white.

    Buehrer et al. 2007, doi 10.1002/mrm.21237. ``mix_coils(y, matrix)`` are the compressed
    measurements and ``operator.mixed(matrix)`` their model. Whiten first: a noisy coil counts as
    signal.

    Parameters
    ----------
    kspace
        Complex ``(coils, *samples)``, measured ones or those of the centre; of several slices
        ``kspace.transpose(0, 1)``, so that they share one matrix.
    virtual
        How many; None for the fewest that keep ``energy``.
    energy
        Share of the energy to keep, above 0, up to 1.
    """
    if not kspace.is_complex() or kspace.ndim < 2:
        raise ValueError("coil_compression: want complex k-space (coils, *samples), got "
                         f"{kspace.dtype} {tuple(kspace.shape)}")
    coils = len(kspace)
    if virtual is not None and not 1 <= virtual <= coils:
        raise ValueError(f"coil_compression: want 1 to {coils} virtual coils, got {virtual}")
    if not 0 < energy <= 1:
        raise ValueError(f"coil_compression: want a share of the energy up to 1, got {energy}")
    flat = kspace.detach().flatten(1)
    peak = flat.abs().max()
    if not bool(torch.isfinite(peak) & (peak > 0)):
        raise ValueError(f"coil_compression: the largest sample of the k-space is {float(peak)}, "
                         "want finite data that are not all zero")
    flat = flat / peak  # squares of 1e-30 would underflow
    values, vectors = torch.linalg.eigh((flat @ flat.mH).to(torch.complex128))
    shares = values.flip(0).clamp(min=0) / values.clamp(min=0).sum()
    kept = shares.cumsum(0)
    if virtual is None:
        virtual = min(coils, int((kept < energy * (1 - 1e-12)).sum()) + 1)
    matrix = vectors.flip(1)[:, :virtual].mH
    return CoilCompression(matrix.to(kspace.dtype), float(kept[virtual - 1]), shares)


def walsh(images: Tensor, window: int = 7) -> Tensor:
    """Coil sensitivities ``(*batch, coils, height, width)`` from complex coil images of that shape.

    At each pixel the dominant eigenvector of the coils' covariance over a square of ``window``
    pixels around it (Walsh et al. 2000, Magn. Reson. Med. 43, 682-690): unit norm over the coils,
    zero where the square is empty. Phases are relative to the image's principal coil, as of
    ``espirit``, which needs the calibration region alone and is the better choice where there is
    one: these follow noise outside the object.
    """
    if not images.is_complex() or images.ndim < 3:
        raise TypeError("walsh: want complex coil images (*batch, coils, height, width), got "
                        f"{images.dtype} {tuple(images.shape)}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"walsh: want an odd window of at least 1 pixel, got {window}")
    batch, coils, size = images.shape[:-3], images.shape[-3], images.shape[-2:]
    found = []
    for item in images.reshape(-1, coils, *size):
        peak = item.abs().max()
        item = item / torch.where(peak > 0, peak, 1)
        # one row of the covariances at a time
        rows = [avg_pool2d(torch.view_as_real(one * item.conj()).movedim(-1, 0), window, 1,
                           window // 2) for one in item]
        G = torch.stack([torch.complex(*row) for row in rows]).permute(2, 3, 0, 1)
        vector = dominant(G.contiguous())[0].squeeze(-1).movedim(-1, 0)
        u = principal_coil(item[None])[0]
        reference = torch.einsum("c,chw->hw", u.conj(), vector)
        found.append(vector * torch.polar(torch.ones_like(reference.real), -reference.angle()))
    return torch.stack(found).view(*batch, coils, *size)


def rss(images: Tensor, ndim: int = 2) -> Tensor:
    """``sqrt(sum_c |images[c]|^2)``: ``(*batch, coils, *size)`` to real ``(*batch, 1, *size)``."""
    return torch.linalg.vector_norm(images, dim=-ndim - 1, keepdim=True)


def combine(images: Tensor, maps: Tensor, ndim: int = 2) -> Tensor:
    """``sum_c conj(maps[c]) images[c] / sum_c |maps[c]|^2``, ``(*batch, 1, *size)``.

    The least-squares image of white noise in the coils (Roemer et al. 1990); 0 where all maps are.
    """
    try:
        torch.broadcast_shapes(images.shape, maps.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(f"combine: maps {tuple(maps.shape)} do not fit images "
                         f"{tuple(images.shape)}") from None
    power = maps.abs().square().sum(-ndim - 1, keepdim=True)
    total = (maps.conj() * images).sum(-ndim - 1, keepdim=True)
    return torch.where(power > 0, total / torch.where(power > 0, power, 1), 0)
