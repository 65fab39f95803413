"""The noise of the coils: its covariance, and measurements mixed so that it is white."""

import math
from collections.abc import Callable
from typing import Self, TypeVar

import torch
from torch import Tensor

from recon.operators.base import Operator
from recon.operators.mri.cartesian import CartesianMRI
from recon.operators.mri.coils import CoilMixing, mix_coils
from recon.operators.mri.noncartesian import NonCartesianMRI


class Covariance:
    """``E[n n^H]`` of the complex noise ``n`` of the coils, ``(coils, coils)``.

    White noise of standard deviation s per real number has the covariance ``2 s^2 I``. Samplers and
    ``reconstruct`` take one in place of ``noise_std``. Raises ValueError for a matrix that is not
    square, finite, Hermitian and positive definite.

    Examples
    --------
    >>> Covariance(torch.diag(torch.tensor([2.0, 4.0]))).noise_std
    1.224744871391589
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = torch.as_tensor(matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
            raise ValueError("Covariance: want a square matrix (coils, coils), got "
                             f"{tuple(matrix.shape)}")
        rounding = (torch.finfo(matrix.dtype).eps if matrix.is_floating_point() or
                    matrix.is_complex() else 0.0)
        S = matrix.detach().to("cpu", torch.complex128)
        if not bool(torch.isfinite(S).all()):
            i, j = (int(n) for n in (~torch.isfinite(S)).nonzero()[0])
            raise ValueError(f"Covariance: want finite entries, got {complex(S[i, j])} at "
                             f"({i}, {j})")
        apart = (S - S.mH).abs() > max(1e-12, 100 * rounding) * S.abs().max()
        if bool(apart.any()):
            i, j = (int(n) for n in apart.nonzero()[0])
            raise ValueError(
                f"Covariance: want a Hermitian matrix, got {complex(S[i, j]):.4g} at ({i}, {j}) "
                f"and {complex(S[j, i]):.4g} at ({j}, {i}): see Covariance.estimate")
        S = (S + S.mH) / 2
        values = torch.linalg.eigvalsh(S)
        if not float(values[0]) > max(1e-14, len(S) * rounding) * float(values[-1].abs()):
            which = f"its eigenvalues reach from {values[0]:.3g} to {values[-1]:.3g}"
            silent = [(i, v) for i, v in enumerate(S.diagonal().real.tolist()) if v <= 0]
            if silent:
                which = f"coil {silent[0][0]} has the variance {silent[0][1]:g}"
            raise ValueError(f"Covariance: the noise covariance of its coils is singular: {which}: "
                             "a coil without noise is dead, leave it out; of many coils measure "
                             "more noise")
        self.matrix = S

    @classmethod
    def estimate(cls, noise: Tensor) -> Self:
        """The mean of ``n n^H`` over noise-only samples, complex ``(coils, *samples)``."""
        if not noise.is_complex() or noise.ndim < 2:
            raise ValueError("Covariance.estimate: want complex noise (coils, *samples), got "
                             f"{noise.dtype} {tuple(noise.shape)}")
        n = noise.detach().to("cpu", torch.complex128).flatten(1)
        if n.shape[1] < n.shape[0]:
            raise ValueError(f"Covariance.estimate: {n.shape[1]} samples of {n.shape[0]} coils are "
                             "too few: want at least one a coil, better a hundred")
        return cls(n @ n.mH / n.shape[1])

    @property
    def noise_std(self) -> float:
        """Of each real number of measurements that ``whitening`` was applied to."""
        return math.sqrt(float(self.matrix.diagonal().real.mean()) / 2)

    @property
    def whitening(self) -> Tensor:
        """``sqrt(v) L^-1``, with ``L L^H`` the covariance and ``v`` the mean of its diagonal.

        Complex128 ``(coils, coils)``. Coils mixed by it have white noise of ``noise_std``; units
        and sizes stay about those of the measurements.
        """
        coils = len(self.matrix)
        L = torch.linalg.cholesky(self.matrix)
        inverse = torch.linalg.solve_triangular(L, torch.eye(coils, dtype=L.dtype), upper=False)
        return math.sqrt(2) * self.noise_std * inverse

    def __repr__(self) -> str:
        return f"Covariance({len(self.matrix)} coils, noise_std={self.noise_std:.4g})"


Measured = TypeVar("Measured", Tensor, Callable[..., Tensor])


def whiten(y: Measured, operator: Operator,
           covariance: Covariance) -> tuple[Measured, Operator, Tensor]:
    """``W y``, ``W A`` and their ``noise_std``, from ``y = A x`` with noise of ``covariance``.

    ``W`` mixes the coils, the first dimension of ``operator.range``: that of the maps of
    ``CartesianMRI`` and ``NonCartesianMRI``, which stay what they are, and after any other
    operator. The result is what to call a sampler with; the image is the same one. ``y`` may be a
    function that gives measurements, as ``samplers.ads`` takes it.
    """
    if not isinstance(operator, Operator) or not (isinstance(y, Tensor) or callable(y)):
        raise TypeError("whiten: want measurements y as a tensor and a recon Operator, got "
                        f"{type(y).__name__} and {type(operator).__name__}")
    coils, ndim = operator.range.shape[0], len(operator.range.shape) - 1
    if not operator.range.is_complex:
        raise TypeError(f"whiten: want complex measurements of coils, {operator.label()} measures "
                        "real ones: pass noise_std")
    if len(covariance.matrix) != coils:
        raise ValueError(f"whiten: the covariance is of {len(covariance.matrix)} coils, the "
                         f"measurements are of {coils}: mix or leave out coils of both alike")
    W = covariance.whitening

    def mixed(y: Tensor) -> Tensor:
        operator.range.check(y, "whiten")
        # what was not measured stays +0
        return y if coils == 1 else mix_coils(y, W, ndim) + 0

    white: Operator = operator
    if coils > 1:
        white = (operator.mixed(W) if isinstance(operator, CartesianMRI | NonCartesianMRI) else
                 CoilMixing(W, operator.range) @ operator)
    if isinstance(y, Tensor):
        std = torch.tensor(covariance.noise_std, dtype=y.dtype.to_real(), device=y.device)
        return mixed(y), white, std
    measure: Callable[..., Tensor] = y
    return lambda *args: mixed(measure(*args)), white, torch.tensor(covariance.noise_std)
