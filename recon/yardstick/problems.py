"""Inverse problems whose posterior is known in closed form, to measure samplers against."""

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.operators import CartesianMRI, LinearOperator, Masking, Space
from recon.priors import Gaussian, GaussianMixture
from recon.simulate import coil_maps

Exact = Gaussian | GaussianMixture


@dataclass(frozen=True, eq=False)
class Problem:
    """``y = A x0 + noise_std n`` with an exact prior, hence an exact posterior.

    ``y`` is one measurement, ``operator.range.shape``, without batch. ``noise_std`` is per real
    number. ``measured`` (bool, broadcasts to ``y``) says which entries of ``y`` are measured, for
    operators that fill the others with zeros; None for all.
    """

    name: str
    operator: LinearOperator
    prior: Exact
    noise_std: float
    y: Tensor
    measured: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.noise_std > 0:
            raise ValueError(f"{self.name}: noise_std wants a number > 0, got {self.noise_std}: "
                             "without noise the posterior has no density")
        if tuple(self.y.shape) != self.operator.range.shape:
            raise ValueError(f"{self.name}: y wants {self.operator.range.shape}, without batch, "
                             f"got {tuple(self.y.shape)}")

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``n`` fresh pairs from the model: images ``(n, *domain)``, measurements ``(n, *range)``.
        """
        x0 = self.prior.sample(n, generator).to(self.image_dtype)
        return x0, _measure(self.operator, x0, self.noise_std, self.measured, generator)

    def posterior(self, y: Tensor | None = None) -> Exact:
        """The exact law of ``x0`` given one ``y`` (this problem's own by default), in float64."""
        y = self.y if y is None else y
        y = y.to(torch.complex128 if y.is_complex() else torch.float64)
        return copy.deepcopy(self.prior).double().posterior(self.operator, y, self.noise_std)

    def misfit(self, x: Tensor, y: Tensor) -> Tensor:
        """``||y - A x||^2 / (m noise_std^2)`` over the ``m`` real numbers measured, ``(*batch,)``.
        """
        gap = (y - self.operator(x)).abs().square()
        every = torch.ones(self.operator.range.shape, dtype=gap.dtype)
        kept = every if self.measured is None else self.measured * every
        dims = tuple(range(-len(self.operator.range.shape), 0))
        numbers = kept.sum() * (2 if y.is_complex() else 1)
        return (kept * gap).sum(dims) / (numbers * self.noise_std**2)

    @property
    def image_dtype(self) -> torch.dtype:
        real = self.y.dtype.to_real()
        return real.to_complex() if self.prior.is_complex else real


class Matrix(LinearOperator):
    """``y = A x`` on vectors that lie along the last dimension: ``(1, 1, n)`` to ``(1, 1, m)``."""

    items = ()
    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        rows, columns = matrix.shape
        super().__init__(Space((1, 1, columns), matrix.dtype), Space((1, 1, rows), matrix.dtype))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x.dtype).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y.dtype).conj()


def gaussian(dtype: torch.dtype = torch.float32) -> Problem:
    """One correlated Gaussian of 8 numbers, 3 of them mixed and measured with noise 0.3."""
    rng = np.random.default_rng(5)
    Q = rng.normal(size=(8, 8))
    mean, A = 0.5 * rng.normal(size=8), rng.normal(size=(3, 8)) / np.sqrt(8)
    covariance = Q @ Q.T / 8 + 0.1 * np.eye(8)
    x = mean + np.linalg.cholesky(covariance) @ rng.normal(size=8)
    prior = Gaussian(_vectors(mean, dtype), covariance=torch.tensor(covariance, dtype=dtype))
    return _small("gaussian", A, prior, 0.3, A @ x + 0.3 * rng.normal(size=3), dtype)


def four_modes(dtype: torch.dtype = torch.float32) -> Problem:
    """Four Gaussians in the plane, seen along one axis: modes of weight 1/3, 1/3, 0 and 1/3."""
    means = np.array([(-3.0, -2.0), (3.0, -2.0), (-1.0, 2.0), (1.0, -3.0)])
    prior = _mixture(np.ones(4), means, 0.25, dtype)
    return _small("four_modes", np.array([[0.0, 1.0]]), prior, 0.5, np.array([-2.5]), dtype)


def five_modes(dtype: torch.dtype = torch.float32) -> Problem:
    """Five Gaussians of 8 numbers, of which 2 measurements leave one: the others weigh 5e-6."""
    rng = np.random.default_rng(3)
    means, A = 2 * rng.normal(size=(5, 8)), rng.normal(size=(2, 8)) / np.sqrt(8)
    x = means[0] + np.sqrt(0.3) * rng.normal(size=8)
    y = A @ x + 0.5 * rng.normal(size=2)
    return _small("five_modes", A, _mixture(np.ones(5), means, 0.3, dtype), 0.5, y, dtype)


def mcgdiff_mixture(d: int = 8, measurements: int = 1, seed: int = 0,
                    dtype: torch.dtype = torch.float32) -> Problem:
    """25 unit Gaussians at ``8 (i, j)``, i, j in -2..2, tiled to ``d`` numbers.

    The benchmark of MCGDiff (Cardoso et al., ICLR 2024, arXiv 2308.07983): weights the squares of
    normal numbers, ``A = U S V^T`` with random ``U``, ``V`` and singular values uniform on (0, 1),
    noise a uniform part of the largest of them; all chosen by ``seed``. The paper has 8, 80 and
    800 numbers; the covariances take ``25 d^2``.
    """
    if d < 2 or d % 2 or not 1 <= measurements <= d:
        raise ValueError("mcgdiff_mixture wants an even d and 1 to d measurements, got "
                         f"d = {d}, {measurements} measurements")
    rng = np.random.default_rng(seed)
    steps = range(-2, 3)
    means = np.array([[8.0 * i, 8.0 * j] * (d // 2) for i in steps for j in steps])
    weights = rng.normal(size=25) ** 2
    U, _, Vt = np.linalg.svd(rng.normal(size=(measurements, d)), full_matrices=False)
    s = np.sort(rng.uniform(size=measurements))[::-1]
    A, noise = U @ (s[:, None] * Vt), rng.uniform() * s[0]
    x = means[rng.choice(25, p=weights / weights.sum())] + rng.normal(size=d)
    y = A @ x + noise * rng.normal(size=measurements)
    return _small("mcgdiff_mixture", A, _mixture(weights, means, 1.0, dtype), noise, y, dtype)


def stationary(measured: Literal["pixels", "frequencies"] = "pixels", size: int = 32,
               seed: int = 0, dtype: torch.dtype = torch.float32) -> Problem:
    """A stationary Gaussian image with a power-law spectrum, half of it measured with noise 0.1.

    ``"pixels"``: real images, pixels chosen at random. ``"frequencies"``: circular complex images,
    frequencies of the unitary Fourier transform chosen at random, so that the posterior is
    diagonal there: variance ``P s^2 / (P + s^2)`` where measured, ``P`` elsewhere.
    """
    if measured not in ("pixels", "frequencies"):
        raise ValueError(f'stationary wants "pixels" or "frequencies", got {measured!r}')
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, size, generator=generator) < 0.5
    is_complex = measured == "frequencies"
    prior = _stationary_prior(size, dtype.to_complex() if is_complex else dtype)
    operator = (CartesianMRI((size, size), mask) if is_complex
                else Masking(mask, Space((1, size, size), dtype)))
    return _image(f"stationary_{measured}", operator, prior, 0.1, mask, generator)


def multicoil(size: int = 16, coils: int = 4, seed: int = 0,
              dtype: torch.dtype = torch.float32) -> Problem:
    """A complex stationary Gaussian image by multi-coil MRI: a third of the columns, noise 0.1."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < 0.25
    mask[size // 2 - 1 : size // 2 + 1] = True
    operator = CartesianMRI((size, size), mask, coil_maps(coils, size, size))
    prior = _stationary_prior(size, dtype.to_complex())
    return _image("multicoil", operator, prior, 0.1, mask, generator)


def _stationary_prior(size: int, dtype: torch.dtype) -> Gaussian:
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    spectrum = 1 / (1 + 100 * (f[:, None].square() + f.square())).square()
    spectrum = spectrum / spectrum.mean()  # pixels of unit variance
    return Gaussian(torch.zeros(1, size, size, dtype=dtype),
                    spectrum=spectrum[None].to(dtype.to_real()))


def _mixture(weights: NDArray[np.float64], means: NDArray[np.float64], variance: float,
             dtype: torch.dtype) -> GaussianMixture:
    k, n = means.shape
    return GaussianMixture(torch.tensor(weights, dtype=dtype), _vectors(means, dtype),
                           (variance * torch.eye(n, dtype=dtype)).expand(k, n, n).contiguous())


def _vectors(values: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)[..., None, None, :]


def _small(name: str, A: NDArray[np.float64], prior: Exact, noise_std: float,
           y: NDArray[np.float64], dtype: torch.dtype) -> Problem:
    operator = Matrix(torch.tensor(A, dtype=dtype))
    return Problem(name, operator, prior, noise_std, _vectors(y, dtype))


def _image(name: str, operator: LinearOperator, prior: Gaussian, noise_std: float, mask: Tensor,
           generator: torch.Generator) -> Problem:
    y = _measure(operator, prior.sample(1, generator), noise_std, mask, generator)[0]
    return Problem(name, operator, prior, noise_std, y, mask)


def _measure(operator: LinearOperator, x0: Tensor, noise_std: float, measured: Tensor | None,
             generator: torch.Generator | None) -> Tensor:
    clean = operator(x0)
    n = operator.range.randn(len(x0), generator=generator, dtype=clean.dtype, device=clean.device)
    noisy = clean + noise_std * n
    return noisy if measured is None else torch.where(measured, noisy, 0)
