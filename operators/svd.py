"""Singular value decompositions of linear operators: closed forms, else of the matrix."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.operators.algebra import Scale, _LinearComposition
from recon.operators.base import LinearOperator
from recon.operators.blur import Blur
from recon.operators.hadamard import Hadamard
from recon.operators.masking import Masking
from recon.operators.mri import CartesianMRI
from recon.operators.resample import Downsampling, along_each

_LARGEST = 4096  # unknowns of a matrix that is written out: 128 MiB in double precision
Map = Callable[[Tensor], Tensor]


class SVD(NamedTuple):
    """``A = U diag(values) V^H``, one coefficient for each entry of an image.

    Coefficients are ``(*batch, *domain.shape)``, of the kind of the images. V is unitary, so that
    they span the whole domain; the columns of U are orthonormal where ``values > 0`` and zero where
    they are 0, the null space. White noise in ``y`` is therefore white in the coefficients seen,
    with the same deviation per real number.
    """

    values: Tensor  # >= 0, broadcast to the coefficients
    left: Map  # U: coefficients to measurements
    left_adjoint: Map  # U^H
    right: Map  # V: coefficients to images
    right_adjoint: Map  # V^H


def svd(operator: LinearOperator, like: Tensor | None = None) -> SVD:
    """The decomposition of ``operator``, in the precision and on the device of ``like``.

    Closed forms for ``Masking``, ``Scale``, ``Identity``, periodic ``Blur``, ``Downsampling``,
    ``Hadamard``, single-coil ``CartesianMRI`` and multiples of these, which may hold one mask or
    kernel for each item; any other operator is written out as a matrix (ValueError above 4096
    unknowns) and singular values below rounding are taken for 0. Values are not sorted.

    Examples
    --------
    >>> A = Masking(torch.tensor([1, 0, 1]), Space((1, 3)))
    >>> svd(A).values
    tensor([1., 0., 1.])
    """
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"svd wants a linear operator, got {type(operator).__name__}")
    if like is None:
        like = operator.domain.zeros()
    if isinstance(operator, _LinearComposition) and isinstance(operator.outer, Scale):
        return _scaled(operator.outer.factor, svd(operator.inner, like))
    if isinstance(operator, Scale):
        unit = torch.ones((), dtype=like.dtype.to_real(), device=like.device)
        return _scaled(operator.factor, SVD(unit, _same, _same, _same, _same))
    if isinstance(operator, Masking):
        def keep(x: Tensor) -> Tensor:
            return operator(x)

        return SVD(operator.mask.to(like.device, like.dtype.to_real()), keep, keep, _same, _same)
    if isinstance(operator, CartesianMRI) and operator.maps is None:
        F, mask = CartesianMRI(operator.domain.shape), operator.mask.to(like.device)
        F = F.to(like.device)

        def sampled(k: Tensor) -> Tensor:
            return torch.where(mask, k, 0)

        return SVD(mask.to(like.dtype.to_real()), sampled, sampled, F.adjoint, F)
    if isinstance(operator, Blur) and operator.boundary == "periodic":
        return _periodic(operator, like)
    if isinstance(operator, Downsampling):
        return _separable(operator, like)
    if isinstance(operator, Hadamard):
        return _patterns(operator, like)
    return _written_out(operator, like)


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(factor: complex, of: SVD) -> SVD:
    phase = factor / abs(factor)
    return of._replace(values=abs(factor) * of.values, left=lambda u: phase * of.left(u),
                       left_adjoint=lambda y: phase.conjugate() * of.left_adjoint(y))


def _periodic(operator: Blur, like: Tensor) -> SVD:
    dims = tuple(range(1 - len(operator.domain.shape), 0))
    real = not operator.domain.is_complex
    kernel = operator.kernel.detach()
    point = torch.zeros(operator.domain.shape, device=kernel.device,
                        dtype=torch.float64 if real else torch.complex128)
    point.flatten(1)[:, 0] = 1
    transfer = torch.fft.fftn(operator(point).detach(), dim=dims)
    size = transfer.abs()
    # a frequency that is removed comes out of the transform as its rounding
    rounding = torch.finfo(size.dtype).eps * math.prod(operator.domain.shape)
    seen = size > rounding * size.amax(dims, keepdim=True)
    phase = torch.where(seen, transfer / torch.where(seen, size, 1), 0)
    phase = phase.to(like.device, like.dtype.to_complex())
    values = torch.where(seen, size, 0).to(like.device, like.dtype.to_real())

    def fourier(x: Tensor) -> Tensor:
        k: Tensor = torch.fft.fftn(x, dim=dims, norm="ortho")
        # Hartley's transform, real, orthogonal and its own inverse: a real convolution only scales
        # and turns the waves of a frequency and its negative
        return k.real - k.imag if real else k

    def inverse(k: Tensor) -> Tensor:
        return fourier(k) if real else torch.fft.ifftn(k, dim=dims, norm="ortho")

    def turned(x: Tensor, by: Tensor) -> Tensor:
        x = torch.fft.ifftn(by * torch.fft.fftn(x, dim=dims), dim=dims)
        return x.real if real else x

    return SVD(values, lambda u: turned(inverse(u), phase),
               lambda y: fourier(turned(y, phase.conj())), inverse, fourier)


def _separable(operator: Downsampling, like: Tensor) -> SVD:
    U, Vt, values = [], [], torch.ones(1, dtype=torch.float64)
    for matrix in operator.matrices:
        u, s, vt = torch.linalg.svd(matrix)
        s = torch.where(s > torch.finfo(s.dtype).eps * max(matrix.shape) * s[0], s, 0)
        values = values.unsqueeze(-1) * torch.cat([s, s.new_zeros(len(vt) - len(s))])
        U.append(u.to(like.device, like.dtype.to_real()))
        Vt.append(vt.to(like.device, like.dtype.to_real()))
    values = values.to(like.device, like.dtype.to_real())
    coarse, fine = operator.range.shape[1:], operator.domain.shape[1:]
    corner: Any = (..., *(slice(n) for n in coarse))
    seen = values[corner] > 0

    def left(u: Tensor) -> Tensor:
        return along_each(torch.where(seen, u[corner], 0), [u.T for u in U])

    def left_adjoint(y: Tensor) -> Tensor:
        z = y.new_zeros(*y.shape[: -len(coarse)], *fine)
        z[corner] = torch.where(seen, along_each(y, U), 0)
        return z

    return SVD(values, left, left_adjoint, lambda v: along_each(v, Vt),
               lambda x: along_each(x, [vt.T for vt in Vt]))


def _patterns(operator: Hadamard, like: Tensor) -> SVD:
    domain, rows = operator.domain, operator.rows.to(like.device)
    n = math.prod(domain.shape[1:])
    values = torch.zeros(n, dtype=like.dtype.to_real(), device=like.device)
    values[rows] = 1

    def left_adjoint(y: Tensor) -> Tensor:
        z = y.new_zeros(*y.shape[:-1], n).index_copy(-1, rows, y)
        return z.reshape(*y.shape[:-1], *domain.shape[1:])

    return SVD(values.view(1, *domain.shape[1:]),
               lambda u: u.flatten(1 - len(domain.shape))[..., rows], left_adjoint,
               lambda v: operator.transform_adjoint(v.flatten(1 - len(domain.shape))),
               lambda x: operator.transform(x).reshape(x.shape))


def _written_out(operator: LinearOperator, like: Tensor) -> SVD:
    domain, measured = operator.domain, operator.range
    n, parts = math.prod(domain.shape), math.prod(measured.shape)
    if domain.is_complex and not measured.is_complex:
        raise TypeError(f"svd: {operator.label()} measures complex images by real numbers, which "
                        "is not complex linear")
    if n > _LARGEST:
        raise ValueError(f"svd: {operator.label()} has no closed form and {n} unknowns, at most "
                         f"{_LARGEST} can be written out: use a sampler without an SVD")
    # real and imaginary parts of what measures real images are two data
    split = measured.is_complex and not domain.is_complex
    kind = torch.complex128 if domain.is_complex else torch.float64
    eye = torch.eye(n, dtype=kind, device=like.device).view(n, *domain.shape)
    if operator(eye[0]).shape != measured.shape:
        raise ValueError(f"svd: {operator.label()} holds masks or kernels for each item, and no "
                         "closed form is known: pass the operator of one item")
    columns = operator(eye).detach().reshape(n, parts)
    if split:
        columns = torch.view_as_real(columns.resolve_conj()).flatten(1)
    left, s, right = torch.linalg.svd(columns.mT, full_matrices=columns.shape[1] < n)
    rank = int((s > torch.finfo(s.dtype).eps * max(columns.shape) * s.amax()).sum())
    values = torch.zeros(n, dtype=s.dtype, device=s.device)
    values[:rank] = s[:rank]
    U, V, real = left[:, :rank].to(like.dtype), right.mH.to(like.dtype), like.dtype.to_real()

    def to_measurements(u: Tensor) -> Tensor:
        flat = u.flatten(-len(domain.shape))[..., :rank] @ U.mT
        if split:
            flat = torch.view_as_complex(flat.unflatten(-1, (-1, 2)))
        return flat.reshape(*domain.batch_of(u), *measured.shape)

    def from_measurements(y: Tensor) -> Tensor:
        flat = y.flatten(-len(measured.shape))
        if split:
            flat = torch.view_as_real(flat.resolve_conj()).flatten(-2)
        seen = flat @ U.conj()
        unseen = seen.new_zeros(*seen.shape[:-1], n - rank)
        return torch.cat([seen, unseen], -1).reshape(*measured.batch_of(y), *domain.shape)

    def to_images(v: Tensor) -> Tensor:
        return (v.flatten(-len(domain.shape)) @ V.mT).reshape(v.shape)

    def from_images(x: Tensor) -> Tensor:
        return (x.flatten(-len(domain.shape)) @ V.conj()).reshape(x.shape)

    return SVD(values.to(real).view(domain.shape), to_measurements, from_measurements, to_images,
               from_images)
