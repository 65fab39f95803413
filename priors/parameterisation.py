"""Networks that predict noise, velocity, image, score or flow, each as a denoiser ``D(x; sigma)``.

A schedule says how a network was trained: its input is ``scale(sigma) * x`` and its second
argument ``time(sigma)``, for ``x = x0 + sigma n``. The prediction is turned into ``D`` here, once,
and never seen elsewhere.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from recon.priors.base import Prior

Network = Callable[[Tensor, Tensor], Tensor]


def _same(value: Tensor) -> Tensor:
    return value  # by name, so that schedules can be pickled


class VarianceExploding(nn.Module):
    """The network sees ``x0 + sigma n`` itself; its second argument is ``time(sigma)``."""

    def __init__(self, sigma_min: float, sigma_max: float,
                 time: Callable[[Tensor], Tensor] = _same) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max, self.time = sigma_min, sigma_max, time

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class VariancePreserving(nn.Module):
    """The network sees ``sqrt(abar) x0 + sqrt(1 - abar) n`` and an index into ``abar``.

    ``sigma = sqrt((1 - abar) / abar)``. Between the trained levels the index is interpolated
    linearly in ``log sigma``; networks with sinusoidal embeddings accept fractions.

    Parameters
    ----------
    alphas_cumprod
        ``abar``, one-dimensional and falling, index 0 the least noisy.
    """

    log_sigmas: Tensor

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        if abar.ndim != 1 or len(abar) < 2 or not bool(((abar > 0) & (abar < 1)).all()):
            raise ValueError("alphas_cumprod wants at least two numbers inside (0, 1)")
        if not bool((abar.diff() < 0).all()):
            raise ValueError("alphas_cumprod wants falling values: index 0 is the least noisy")
        self.register_buffer("log_sigmas", 0.5 * ((1 - abar) / abar).log())
        self.sigma_min, self.sigma_max = (float(self.log_sigmas[i].exp()) for i in (0, -1))

    @classmethod
    def linear(cls, steps: int = 1000, beta_min: float = 1e-4,
               beta_max: float = 0.02) -> "VariancePreserving":
        """The linear schedule of Ho et al. 2020, the one of most public checkpoints."""
        betas = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
        return cls((1 - betas).cumprod(0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # a prior moved to half precision is still told the right index: a bfloat16 table has
        # steps of four levels
        exact = self.log_sigmas
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.finfo(self.log_sigmas.dtype).bits < 32:
            self.log_sigmas = exact.to(self.log_sigmas.device, torch.float32)
        return moved

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma.square()).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        wanted = sigma.to(self.log_sigmas.dtype).log()
        wanted = wanted.clamp(self.log_sigmas[0], self.log_sigmas[-1])
        above = torch.searchsorted(self.log_sigmas, wanted).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[above - 1], self.log_sigmas[above]
        return (above - 1 + (wanted - low) / (high - low)).to(sigma.dtype)


class Flow(nn.Module):
    """Rectified flow: the network sees ``(1 - t) x0 + t n``, so ``sigma = t / (1 - t)``.

    ``time`` maps ``t`` in (0, 1), with 1 pure noise, to the network's second argument; here it is
    the share of noise, while some papers count it from noise to image.
    """

    def __init__(self, time: Callable[[Tensor], Tensor] = _same,
                 sigma_min: float = 1e-3, sigma_max: float = 1e3) -> None:
        super().__init__()
        self.of_t, self.sigma_min, self.sigma_max = time, sigma_min, sigma_max

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def time(self, sigma: Tensor) -> Tensor:
        return self.of_t(sigma / (1 + sigma))


class Interpolant(nn.Module):
    """A one-sided interpolant: the network sees ``image(t) x0 + noise(t) n``, and ``t``.

    ``sigma = noise(t) / image(t)`` must rise or fall all the way from ``ends[0]`` to ``ends[1]``.
    Albergo, Boffi & Vanden-Eijnden 2023; ``Flow`` is the one with ``image = 1 - t, noise = t``.

    Parameters
    ----------
    image, noise
        Differentiable functions of ``t``, item by item.
    ends
        The range of ``t`` that is used, short of where either function is zero.

    Examples
    --------
    >>> quarter = torch.pi / 2  # the trigonometric interpolant, from noise to image
    >>> schedule = Interpolant(image=lambda t: (quarter * t).sin(),
    ...                        noise=lambda t: (quarter * t).cos(), ends=(1e-3, 0.999))
    >>> round(float(schedule.time(torch.tensor([1.0]))), 6)
    0.5
    """

    def __init__(self, *, image: Callable[[Tensor], Tensor], noise: Callable[[Tensor], Tensor],
                 ends: tuple[float, float] = (1e-3, 1 - 1e-3)) -> None:
        super().__init__()
        self.image, self.noise, self.ends = image, noise, ends
        grid = torch.linspace(*ends, 1001, dtype=torch.float64)
        ratios = noise(grid) / image(grid)
        steps = ratios.diff()
        if not (bool(torch.isfinite(ratios).all() & (ratios > 0).all())
                and bool((steps > 0).all() | (steps < 0).all())):
            raise ValueError(f"Interpolant wants noise / image positive, and rising or falling all "
                             f"the way over t in {ends}: take narrower ends")
        self.rises = bool(steps[0] > 0)
        self.sigma_min, self.sigma_max = float(ratios.min()), float(ratios.max())

    def scale(self, sigma: Tensor) -> Tensor:
        return self.image(self.time(sigma))

    def time(self, sigma: Tensor) -> Tensor:
        wanted = sigma.double()
        low = torch.full_like(wanted, self.ends[0])
        high = torch.full_like(wanted, self.ends[1])
        for _ in range(60):  # halvings, to double precision
            middle = (low + high) / 2
            before = (self.noise(middle) < wanted * self.image(middle)) == self.rises
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return ((low + high) / 2).to(sigma.dtype)


Schedule = VarianceExploding | VariancePreserving | Flow | Interpolant


class _NetworkPrior(Prior):
    """A real network with a schedule; its first ``channels`` outputs are the prediction.

    Parameters
    ----------
    network
        Sees ``(n, channels, *spatial)`` scaled as the schedule says, and one ``time`` per item.
    schedule
        How it was trained.
    """

    schedules: tuple[type[nn.Module], ...] = (VarianceExploding, VariancePreserving, Flow,
                                              Interpolant)

    def __init__(self, network: nn.Module, schedule: Schedule, channels: int, *,
                 spatial_ndim: int = 2, max_batch: int | None = None) -> None:
        super().__init__(channels=channels, is_complex=False, spatial_ndim=spatial_ndim,
                         sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max,
                         max_batch=max_batch)
        if not isinstance(schedule, self.schedules):
            wanted = " or ".join(kind.__name__ for kind in self.schedules)
            raise TypeError(f"{type(self).__name__} wants a {wanted} schedule, got "
                            f"{type(schedule).__name__}")
        self.network, self.schedule = network, schedule

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        scale, time = self.schedule.scale(sigma), self.schedule.time(sigma)
        scale, spread = (t.view(-1, *(1,) * self.item_ndim) for t in (scale, sigma))
        # networks with a learned variance put it behind the prediction
        return self.to_x0(x, self.checked(self.network(scale * x, time), x), scale, spread)

    def checked(self, made: Tensor, x: Tensor) -> Tensor:
        """The prediction in what the network made of images as large as ``x``."""
        out = made[:, : self.channels]
        if out.shape != x.shape:
            raise ValueError(f"{type(self).__name__}: the network made {tuple(out.shape)} of "
                             f"{tuple(x.shape)}: want {self.channels} channels or more, same size")
        return out

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
        """``D`` from the prediction ``out``; ``scale`` and ``sigma`` are shaped to multiply."""
        raise TypeError(f"{type(self).__name__} has no to_x0")


class EpsilonPrior(_NetworkPrior):
    """A network that predicts the noise ``n``: ``D = x - sigma eps``.

    Examples
    --------
    >>> def network(z, time):  # of an image that is always zero
    ...     return z / (1 - schedule.scale(sigma).square()).sqrt()
    >>> sigma, schedule = torch.tensor(2.0), VariancePreserving.linear()
    >>> float(EpsilonPrior(network, schedule, 1)(torch.ones(1, 8, 8), sigma).abs().max()) < 1e-6
    True
    """

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
        return x - sigma * out


class X0Prior(_NetworkPrior):
    """A network that predicts the image: ``D`` is its output."""

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
        return out


class VelocityPrior(_NetworkPrior):
    """A network that predicts ``v = a n - b x0`` with ``a = scale``, ``b = scale sigma`` (VP).

    Salimans & Ho 2022: ``D = a (a x) - b v`` where ``a x`` is the network's input.
    """

    schedules = (VariancePreserving,)  # a^2 + b^2 = 1

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return scale.square() * x - scale * sigma * out


class ScorePrior(_NetworkPrior):
    """A network that predicts the score of its own input: ``D = x + scale sigma^2 s``."""

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return x + scale * sigma.square() * out


class FlowPrior(_NetworkPrior):
    """A network that predicts ``n - x0`` along a rectified flow: ``D = (1 - t) x - t v``."""

    schedules = (Flow,)

    def to_x0(self, x: Tensor, out: Tensor, scale: Tensor, sigma: Tensor) -> Tensor:
        return scale * x - scale * sigma * out


class InterpolantPrior(_NetworkPrior):
    """A network that predicts ``image'(t) x0 + noise'(t) n``, the velocity of an interpolant.

    With ``z = image x0 + noise n``: ``D = (noise v - noise' z) / (noise image' - noise' image)``.
    """

    schedules = (Interpolant,)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        plan = self.schedule
        assert isinstance(plan, Interpolant)  # one of schedules
        t = plan.time(sigma)
        ones = torch.ones_like(t)
        image, turn, noise, rise = (
            a.view(-1, *(1,) * self.item_ndim) for of in (plan.image, plan.noise)
            for a in torch.func.jvp(of, (t,), (ones,)))
        z = image * x
        out = self.checked(self.network(z, t), x)
        return (noise * out - rise * z) / (noise * turn - rise * image)
