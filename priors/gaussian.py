"""Priors whose denoiser and posterior are known exactly: the yardstick of every sampler."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recon.priors.base import Prior
from recon.space import Space


class LinearMap(Protocol):
    """What a closed-form posterior needs of a linear operator."""

    domain: Space
    range: Space

    def __call__(self, x: Tensor) -> Tensor: ...


def _mv(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _real_randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise of unit deviation per real number, in the dtype of ``like``."""
    parts = (*shape, 2) if like.is_complex() else shape
    n = torch.randn(parts, generator=generator, dtype=like.dtype.to_real(), device=like.device)
    return torch.view_as_complex(n) if like.is_complex() else n


def _eigen(name: str, covariance: Tensor, shape: tuple[int, ...],
           like: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and basis of what must be a covariance ``(*shape)``, in the dtype of ``like``."""
    if tuple(covariance.shape) != shape:
        raise ValueError(f"{name} wants {shape}, got {tuple(covariance.shape)}")
    if covariance.is_complex() and not like.is_complex():
        raise TypeError(f"{name} is complex, the mean is real: pass a complex mean")
    error, size = (covariance - covariance.mH).abs().amax(), covariance.abs().amax()
    if not bool(error <= 1e-4 * size):
        raise ValueError(f"{name} is not Hermitian: largest difference {float(error):.3g}")
    e, basis = torch.linalg.eigh(covariance)
    return _positive(name, e.to(like.dtype.to_real()), 1e-5), basis.to(like.dtype)


def _positive(name: str, eigenvalues: Tensor, tolerance: float) -> Tensor:
    floor = -tolerance * eigenvalues.abs().amax(-1, keepdim=True)
    if not bool((eigenvalues >= floor).all()):
        raise ValueError(f"{name} is not positive: least eigenvalue {float(eigenvalues.min()):.3g}")
    return eigenvalues.clamp(min=0)


def _self_conjugate(spectrum: Tensor, dims: list[int]) -> Tensor:
    """The spectrum of a real covariance, which is even in every frequency at once."""
    mirrored = spectrum.flip(dims).roll([1] * len(dims), dims)
    if not bool((spectrum - mirrored).abs().amax() <= 1e-4 * spectrum.abs().amax()):
        raise ValueError("spectrum of real images wants equal values at a frequency and its "
                         "negative: build it from torch.fft.fftfreq, or pass a complex mean")
    return (spectrum + mirrored) / 2


class Gaussian(Prior):
    """Images ``x0 ~ N(mean, C)``, with ``D(x; sigma) = mean + C (C + sigma^2)^-1 (x - mean)``.

    A complex mean makes a circular complex Gaussian, ``C = E[(x0 - mean)(x0 - mean)^H] / 2``: the
    covariance of the real part, and of the imaginary part, each, so that the formula is the same.

    Parameters
    ----------
    mean
        ``(channels, *spatial)``.
    variance
        Diagonal ``C``: a number, or a tensor that broadcasts to the mean.
    covariance
        Dense ``C`` over the flattened image, ``(n, n)``, Hermitian, positive semidefinite.
    spectrum
        Stationary ``C`` with periodic boundaries: its eigenvalues in the order of ``fft2``, a
        tensor that broadcasts to the mean; over the spatial dimensions of every channel alone.

    Examples
    --------
    >>> prior = Gaussian(torch.zeros(1, 8, 8), variance=1.0)
    >>> float(prior(torch.ones(1, 8, 8), 1.0).mean())
    0.5
    """

    mean: Tensor
    eigenvalues: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, *, variance: Tensor | float | None = None,
                 covariance: Tensor | None = None, spectrum: Tensor | None = None) -> None:
        given = [name for name, value in [("variance", variance), ("covariance", covariance),
                                          ("spectrum", spectrum)] if value is not None]
        if len(given) != 1:
            raise ValueError(f"Gaussian wants one of variance, covariance, spectrum, got {given}")
        super().__init__(channels=mean.shape[0], is_complex=mean.is_complex(),
                         space=Space(tuple(mean.shape), mean.dtype), spatial_ndim=mean.ndim - 1)
        self.kind = given[0]
        self.register_buffer("mean", mean)
        basis = torch.empty(0, dtype=mean.dtype, device=mean.device)
        if covariance is not None:
            n = mean.numel()
            eigenvalues, basis = _eigen("covariance", covariance, (n, n), mean)
        else:
            given_value = variance if spectrum is None else spectrum
            eigenvalues = torch.as_tensor(given_value, dtype=mean.dtype.to_real(),
                                          device=mean.device).expand(mean.shape).contiguous()
            eigenvalues = _positive(self.kind, eigenvalues, 0.0)
            if spectrum is not None and not mean.is_complex():
                eigenvalues = _self_conjugate(eigenvalues, self._image_dims)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("basis", basis)

    def _to_eigen(self, x: Tensor) -> Tensor:
        if self.kind == "covariance":
            return x.flatten(-self.item_ndim) @ self.basis.to(x.dtype).conj()
        if self.kind == "spectrum":
            x = torch.fft.fftn(x, dim=self._image_dims, norm="ortho")
        return x

    def _from_eigen(self, x: Tensor) -> Tensor:
        if self.kind == "covariance":
            return (x @ self.basis.to(x.dtype).mT).reshape(*x.shape[:-1], *self.mean.shape)
        if self.kind == "spectrum":
            x = torch.fft.ifftn(x, dim=self._image_dims, norm="ortho")
            return x if self.is_complex else x.real
        return x

    @property
    def _image_dims(self) -> list[int]:
        return list(range(-self.spatial_ndim, 0))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        e = self.eigenvalues.to(x.dtype.to_real())
        noise = sigma.square().view(-1, *(1,) * e.ndim)
        total = e + noise
        gain = torch.where(total > 0, e / torch.where(total > 0, total, 1), 1)
        mean = self.mean.to(x.dtype)
        return mean + self._from_eigen(gain * self._to_eigen(x - mean))

    @property
    def covariance(self) -> Tensor:
        """Dense ``C`` over the flattened image, ``(n, n)``."""
        n = self.mean.numel()
        eye = torch.eye(n, dtype=self.mean.dtype, device=self.mean.device).view(n, *self.mean.shape)
        rows = self._from_eigen(self.eigenvalues * self._to_eigen(eye))
        return rows.reshape(n, n).mT

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent draws, ``(n, channels, *spatial)``."""
        if self.kind == "variance":
            white = _real_randn((n, *self.mean.shape), self.mean, generator)
            return self.mean + self.eigenvalues.sqrt() * white
        if self.kind == "spectrum":
            white = _real_randn((n, *self.mean.shape), self.mean, generator)
            return self.mean + self._from_eigen(self.eigenvalues.sqrt() * self._to_eigen(white))
        white = _real_randn((n, self.mean.numel()), self.mean, generator)
        return self.mean + self._from_eigen(self.eigenvalues.sqrt() * white)

    def posterior(self, operator: LinearMap, y: Tensor, noise_std: float) -> "Gaussian":
        """The exact law of ``x0`` given ``y = A x0 + noise_std n``, for one ``y`` without batch.

        ``noise_std`` is per real number. ``A`` is written out as a matrix: for small problems.
        With ``noise_std = 0`` measurements that contradict each other are met in least squares.
        """
        matrix, data = _matrix(operator, y, self.mean, self.item_ndim)
        found = _condition(self.mean.flatten(), self.covariance, matrix, data, noise_std)
        mean = found.mean.view(self.mean.shape).to(self.mean.dtype)
        made = Gaussian(mean, covariance=found.covariance)
        # by the root: that of an eigenvalue which is only rounding would draw visible noise
        basis, roots, _ = torch.linalg.svd(found.root)
        made.eigenvalues = roots.square().to(made.eigenvalues.dtype)
        made.basis = basis.to(made.basis.dtype)
        return made


class GaussianMixture(Prior):
    """Images drawn from ``sum_k w_k N(m_k, C_k)``, with its exact denoiser.

    Complex means make circular complex components, ``C_k`` per real number as in ``Gaussian``.

    Parameters
    ----------
    weights
        ``(k,)``, positive; normalised here.
    means
        ``(k, channels, *spatial)``.
    covariances
        ``(k, n, n)`` over the flattened image, Hermitian, positive semidefinite.

    Examples
    --------
    >>> means = torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1)
    >>> prior = GaussianMixture(torch.ones(2), means, 0.1 * torch.ones(2, 1, 1))
    >>> prior.sample(5).shape
    torch.Size([5, 1, 1, 1])
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    eigenvalues: Tensor
    basis: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        k, n = means.shape[0], means[0].numel()
        if weights.shape != (k,) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
            raise ValueError(f"weights want ({k},) numbers >= 0, got {weights.tolist()}")
        super().__init__(channels=means.shape[1], is_complex=means.is_complex(),
                         space=Space(tuple(means.shape[1:]), means.dtype),
                         spatial_ndim=means.ndim - 2)
        eigenvalues, basis = _eigen("covariances", covariances, (k, n, n), means)
        weights = weights.to(means.dtype.to_real())
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("covariances", covariances.to(means.dtype))
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("basis", basis)

    def _centred(self, x: Tensor) -> Tensor:  # (n, d) -> (n, k, d) in each component's basis
        gap = x.flatten(1) - self.means.flatten(1).to(x.dtype)[:, None]
        # one product a component: n products of each would be many times slower
        return (gap @ self.basis.to(x.dtype).conj()).transpose(0, 1)

    def responsibilities(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """``P(component k | x0 + sigma n = x)``, ``(n, k)``; x ``(n, channels, *spatial)``."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype.to_real(), device=x.device).expand(len(x))
        return self._log_joint(self._centred(x), sigma).softmax(1)

    def _log_joint(self, gap: Tensor, sigma: Tensor) -> Tensor:
        total = self.eigenvalues.to(sigma.dtype) + sigma.square().view(-1, 1, 1)
        # a complex number is two real ones: log det counts twice, |gap|^2 both parts already
        parts = 2 if self.is_complex else 1
        quadratic = (gap.abs().square() / total).sum(-1)
        return self.weights.to(sigma.dtype).log() - 0.5 * (parts * total.log().sum(-1) + quadratic)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        clean = sigma == 0
        sigma = torch.where(clean, 1, sigma)  # D(x; 0) = x below, degenerate components too
        gap = self._centred(x)
        e = self.eigenvalues.to(sigma.dtype)
        gain = e / (e + sigma.square().view(-1, 1, 1))
        moved = (gain * gap).transpose(0, 1) @ self.basis.to(x.dtype).mT  # (k, n, d)
        each = self.means.flatten(1).to(x.dtype) + moved.transpose(0, 1)
        share = self._log_joint(gap, sigma).softmax(1)
        mixed = (share.unsqueeze(-1) * each).sum(1).view(x.shape)
        return torch.where(clean.view(-1, *(1,) * self.item_ndim), x, mixed)

    @property
    def mean(self) -> Tensor:
        """``(channels, *spatial)``."""
        return torch.einsum("k,k...->...", self.weights.to(self.means.dtype), self.means)

    @property
    def covariance(self) -> Tensor:
        """Of the whole mixture, ``(n, n)``, per real number."""
        gap = (self.means - self.mean).flatten(1)
        between = gap[:, :, None] * gap[:, None, :].conj() / (2 if self.is_complex else 1)
        weights = self.weights.to(self.means.dtype)
        return torch.einsum("k,kij->ij", weights, self.covariances + between)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` independent draws, ``(n, channels, *spatial)``."""
        pick = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        white = _real_randn((n, self.means[0].numel()), self.means, generator)
        move = torch.empty_like(white)
        for k, (e, basis) in enumerate(zip(self.eigenvalues, self.basis, strict=True)):
            move[pick == k] = (e.sqrt() * white[pick == k]) @ basis.mT
        return self.means[pick] + move.view(n, *self.means.shape[1:])

    def posterior(self, operator: LinearMap, y: Tensor, noise_std: float) -> "GaussianMixture":
        """The exact law of ``x0`` given ``y = A x0 + noise_std n``, for one ``y`` without batch.

        As ``Gaussian.posterior``. With ``noise_std = 0`` every component must vary along all that
        is measured: the weights of the others have no density to be computed from.
        """
        matrix, data = _matrix(operator, y, self.means[0], self.item_ndim)
        found = [_condition(m.flatten(), C, matrix, data, noise_std)
                 for m, C in zip(self.means, self.covariances, strict=True)]
        for k, one in enumerate(found):
            if one.degenerate:
                raise ValueError(f"posterior: noise_std is 0 and component {k} does not vary along "
                                 "all that is measured: pass a small noise_std")
        weights = (self.weights.log() + torch.stack([one.evidence for one in found])).softmax(0)
        means = torch.stack([one.mean.view(self.means.shape[1:]) for one in found])
        return GaussianMixture(weights.to(self.weights.dtype), means.to(self.means.dtype),
                               torch.stack([one.covariance for one in found]))


def _matrix(operator: LinearMap, y: Tensor, like: Tensor, item_ndim: int) -> tuple[Tensor, Tensor]:
    """What is measured and the data: ``(r, n)`` of full row rank and ``(r,)``; real where x is.

    Rows that depend on others are merged with them; the noise stays white.
    """
    domain, measured = operator.domain, operator.range
    if domain.shape != tuple(like.shape[-item_ndim:]) or domain.is_complex != like.is_complex():
        kind = "complex" if like.is_complex() else "real"
        raise ValueError(f"posterior wants an operator on {kind} images {tuple(like.shape)}, got "
                         f"{'complex' if domain.is_complex else 'real'} {domain.shape}")
    if domain.is_complex and not measured.is_complex:
        raise TypeError("posterior: complex images measured by real numbers are not complex linear")
    if tuple(y.shape) != measured.shape or y.is_complex() != measured.is_complex:
        raise ValueError(f"posterior wants one y {measured.shape} of {measured.dtype}, got "
                         f"{tuple(y.shape)} of {y.dtype}")
    n = math.prod(domain.shape)
    eye = torch.eye(n, dtype=like.dtype, device=like.device).view(n, *domain.shape)
    columns, data = operator(eye).reshape(n, -1), y.to(like.device).flatten()
    if columns.is_complex() and not like.is_complex():  # real and imaginary parts are two data
        columns = torch.view_as_real(columns.resolve_conj()).flatten(1)
        data = torch.view_as_real(data.resolve_conj()).flatten()
    # conditioned in double precision: the posterior may be far narrower than the prior
    double = torch.complex128 if like.is_complex() else torch.float64
    left, s, right = torch.linalg.svd(columns.mT.to(double), full_matrices=False)
    rounding = torch.finfo(like.dtype).eps * max(columns.shape)
    rank = int((s > rounding * s[0]).sum())
    return s[:rank, None] * right[:rank], _mv(left[:, :rank].mH, data.to(double))


class _Conditioned(NamedTuple):
    mean: Tensor
    covariance: Tensor
    root: Tensor  # root @ root.mH = covariance
    evidence: Tensor  # logarithm, up to a constant
    degenerate: bool  # something measured without noise does not vary


def _condition(mean: Tensor, covariance: Tensor, matrix: Tensor, data: Tensor,
               noise_std: float) -> _Conditioned:
    """``N(mean, covariance)`` given ``data = matrix x + noise_std n``.

    By the singular values ``s`` of ``matrix`` times a root of the covariance, so that no difference
    is formed: the variance left along each is ``noise^2 / (noise^2 + s^2)`` of what it was.
    """
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"posterior wants a finite noise_std >= 0, got {noise_std}")
    mean, covariance = mean.to(matrix.dtype), covariance.to(matrix.dtype)
    e, basis = torch.linalg.eigh(covariance)
    root = basis * e.clamp(min=0).sqrt()
    left, s, right = torch.linalg.svd(matrix @ root)  # (r, r), (r,), (n, n)
    # without noise, what varies by rounding alone is not known from the data
    known = s > (1e-5 * s.max() if noise_std == 0 and len(s) else -1.0)
    total = torch.where(known, s.square() + noise_std**2, 1)
    gap = _mv(left.mH, data - _mv(matrix, mean))
    spread = root @ right.mH
    variance = torch.ones_like(e)
    variance[: len(s)] = torch.where(known, noise_std**2 / total, 1)
    parts = 2 if mean.is_complex() else 1
    evidence = -0.5 * (parts * total.log() + gap.abs().square() / total).sum()
    moved = mean + _mv(spread[:, : len(s)], torch.where(known, s / total, 0) * gap)
    return _Conditioned(moved, (spread * variance) @ spread.mH, spread * variance.sqrt(), evidence,
                        not bool(known.all()))
