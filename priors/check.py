"""Does a prior denoise what it is told to know? Mistakes of range, sign, level and scale, in words.

The mean of the posterior leaves an error that nothing seen predicts, so that of what a denoiser
takes away, ``x - D``, the true noise is found exactly once: ``<sigma n, x - D> = |x - D|^2`` on
average, at every level. A wrong sign, unit or level breaks this, and what mends it names the fault.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recon.priors.base import Prior
from recon.priors.parameterisation import (
    EpsilonPrior,
    Flow,
    FlowPrior,
    ScorePrior,
    VarianceExploding,
    VariancePreserving,
    VelocityPrior,
    X0Prior,
    _NetworkPrior,
)

Denoise = Callable[[Tensor, Tensor], Tensor]

_LEVELS = (0.05, 0.2, 0.6, 2.0, 6.0)  # times the images' deviation
_GAIN = 1.0  # decibels on average, from which another reading is the right one
_MOST = 4  # images


class LevelRow(NamedTuple):
    """One noise level: root mean square error, what it must stay below, and the noise found.

    ``found`` is ``<sigma n, x - D> / |x - D|^2``, which is one for the mean of the posterior.
    """

    sigma: float
    error: float
    limit: float
    found: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit and 0.5 <= self.found <= 2


class Finding(NamedTuple):
    """What was asked of the prior, whether it holds, and what to do if not."""

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class PriorReport:
    """What ``check`` found; print it for a table in words."""

    label: str
    levels: tuple[LevelRow, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(f.passed for f in self.findings)

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the findings that do not hold: range, scale, sign, level, ..."""
        return tuple(f.name for f in self.findings if not f.passed)

    def __str__(self) -> str:
        lines = [f"{self.label}: {'nothing wrong found' if self.passed else 'something is wrong'}",
                 "       noise      error   at most   noise found (1 is right)"]
        lines += [f"  {'ok  ' if r.passed else 'FAIL'} {r.sigma:<9.3g}  {r.error:<9.3g} "
                  f"{r.limit:<9.3g} {r.found:.3g}" for r in self.levels]
        lines += [f"  {'ok  ' if f.passed else 'FAIL'} {f.name}: {f.words}" for f in self.findings]
        return "\n".join(lines)

    def raise_if_failed(self) -> None:
        """Raise ValueError with the table unless everything holds."""
        if not self.passed:
            raise ValueError(str(self))


def check(prior: Prior, images: Tensor | None = None, *, size: tuple[int, ...] = (64, 64),
          seed: int = 0) -> PriorReport:
    """Denoise images at five noise levels and name mistakes of range, sign, level and scale.

    Parameters
    ----------
    prior
        Any; one that is normalised is first rescaled to the images, as reconstructions do.
    images
        ``(*batch, channels, *spatial)`` of what it should know, in the units it will be used in;
        at most four are used. Real images may be given to a prior of complex ones. Without any
        the prior's own draws stand in for them, which shows wrong signs and levels, and neither
        ranges, scales nor channels: those it may have any of.
    size
        Of those draws, where the prior has no space of its own.

    Examples
    --------
    >>> from recon.priors import Gaussian
    >>> prior = Gaussian(torch.zeros(1, 16, 16), variance=0.04)
    >>> check(prior, prior.sample(4, torch.Generator().manual_seed(0))).passed
    True
    """
    if not isinstance(prior, Prior):
        raise TypeError(f"check: want a Prior, got {type(prior).__name__}: wrap a network with "
                        "priors.from_network")
    generator = torch.Generator().manual_seed(seed)
    drawn = images is None
    with torch.inference_mode(False), torch.no_grad():
        x0 = _draws(prior, size, generator) if images is None else _flat(prior, images)
        if not bool(torch.isfinite(x0).all()):
            words = ("its own draws are not finite: a wrong sign or wrong levels" if drawn else
                     "the images hold NaN or infinity")
            return PriorReport(_label(prior), (), (Finding("finite", False, words),))
        quantile = float(x0.abs().flatten().double().quantile(0.995))
        if prior.normalised and not drawn:
            prior = prior.rescaled(quantile)
        trial = _Trial(prior, x0, generator)
        levels = trial.rows(prior)
        findings = _findings(prior, trial, levels, quantile, drawn)
    return PriorReport(_label(prior), levels, findings)


def _label(prior: Prior) -> str:
    """The kind of prior inside its units and packings."""
    while isinstance(getattr(prior, "of", None), Prior):
        prior = prior.of  # type: ignore[assignment]
    return type(prior).__name__


def _flat(prior: Prior, images: Tensor) -> Tensor:
    images = images.float() if not (images.is_floating_point() or images.is_complex()) else images
    if prior.is_complex and not images.is_complex():
        images = torch.complex(images, torch.zeros_like(images))
    prior.check(images)
    flat = images.reshape(-1, *images.shape[images.ndim - prior.item_ndim :])
    if not len(flat):
        raise ValueError("check: want at least one image, got none")
    return flat[:_MOST]


def _draws(prior: Prior, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Two draws of the prior's own: the probability flow from its highest level, in 32 steps."""
    scale = float(torch.as_tensor(prior.scale).max())
    shape = prior.space.shape if prior.space is not None else (prior.channels, *size)
    top = min(prior.sigma_max, 100.0)
    low = max(prior.sigma_min, top * 1e-4)
    sigmas = scale * torch.logspace(math.log10(top), math.log10(low), 32, dtype=torch.float64)
    like = torch.empty(2, *shape, dtype=torch.complex64 if prior.is_complex else torch.float32,
                       device=next((t.device for t in prior.parameters()), None))
    x = float(sigmas[0]) * _noise(like, generator)
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x0 = prior(x, sigma)
        x = x0 + after / sigma * (x - x0)
    return prior(x, low * scale)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    parts = (*like.shape, 2) if like.is_complex() else like.shape
    n = torch.randn(parts, generator=generator, dtype=torch.float32).to(like.device)
    return torch.view_as_complex(n) if like.is_complex() else n


class _Trial:
    """The same noisy images for the prior and for every other reading of it."""

    def __init__(self, prior: Prior, x0: Tensor, generator: torch.Generator) -> None:
        self.x0 = x0
        real = 2 if x0.is_complex() else 1  # numbers per pixel
        self.energy = float(x0.abs().square().mean()) / real
        spread = math.sqrt(float((x0 - x0.mean()).abs().square().mean()) / real)
        if not spread > 0:
            raise ValueError("check: want images that are not constant")
        self.spread = spread
        self.sigmas = self._levels(prior)
        self.noises = [_noise(x0, generator) for _ in self.sigmas]

    def _levels(self, prior: Prior) -> list[float]:
        unit = float(torch.as_tensor(prior.scale).max())
        low = max(_LEVELS[0] * self.spread, prior.sigma_min * unit)
        high = min(_LEVELS[-1] * self.spread, prior.sigma_max * unit)
        if not low < high:
            # of images far smaller or larger than the prior's: its own levels, to see by how much
            low, high = prior.sigma_min * unit, prior.sigma_max * unit
        between: list[float] = torch.logspace(math.log10(low), math.log10(high),
                                              len(_LEVELS)).tolist()
        inside = [s * self.spread for s in _LEVELS]
        return inside if low <= inside[0] and inside[-1] <= high else between

    def of(self, prior: Prior) -> "_Trial":
        """The same images and noise at the levels that ``prior`` is meant for."""
        other = copy.copy(self)
        other.sigmas = self._levels(prior)
        return other

    def removed(self, denoise: Denoise) -> list[tuple[Tensor, Tensor]]:
        """Noise put in and taken away, at each level."""
        found = []
        for sigma, n in zip(self.sigmas, self.noises, strict=True):
            noise = sigma * n
            x = self.x0 + noise
            told = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
            found.append((noise, x - denoise(x, told)))
        return found

    def errors(self, denoise: Denoise) -> list[float]:
        """Mean squares of what each level leaves."""
        return [_mean(noise - taken) for noise, taken in self.removed(denoise)]

    def rows(self, denoise: Denoise) -> tuple[LevelRow, ...]:
        rows = []
        for sigma, (noise, taken) in zip(self.sigmas, self.removed(denoise), strict=True):
            along = float((noise.conj() * taken).real.double().mean())
            whole = float(taken.abs().square().double().mean())
            found = along / whole if whole > 0 else math.inf
            limit = math.sqrt(1.05 * min(sigma**2, self.energy))
            rows.append(LevelRow(sigma, math.sqrt(_mean(noise - taken)), limit, found))
        return tuple(rows)


def _mean(error: Tensor) -> float:
    mean = float(error.abs().square().double().mean()) / (2 if error.is_complex() else 1)
    return mean if math.isfinite(mean) else math.inf


def _findings(prior: Prior, trial: _Trial, levels: tuple[LevelRow, ...], quantile: float,
              drawn: bool) -> tuple[Finding, ...]:
    works = all(row.passed for row in levels)
    readings = [r for r in _readings(prior, quantile, works)
                if not (drawn and r.name in ("range", "scale", "channels"))]
    gains = [_gain_of(r, prior, trial, levels) for r in readings]
    best = max(range(len(readings)), key=lambda i: gains[i])
    fault = readings[best] if gains[best] > _GAIN else None
    findings = []
    for name, right in _RIGHT.items():
        if drawn and name in ("range", "scale", "channels"):
            low, high = float(_parts(trial.x0).min()), float(_parts(trial.x0).max())
            words = f"cannot be told without images; its own draws go from {low:.3g} to {high:.3g}"
            findings.append(Finding(name, True, words))
        elif fault is not None and fault.name == name:
            findings.append(Finding(name, False, f"{fault.words}: that way it denoises "
                                                 f"{min(gains[best], 999):.1f} dB better"))
        else:
            findings.append(Finding(name, True, right))
    return (_noise_finding(levels, works, fault is not None), *findings)


def _gain_of(reading: "_Reading", prior: Prior, trial: _Trial,
             levels: tuple[LevelRow, ...]) -> float:
    """Decibels that another reading saves, if it is good at every level too; else 0."""
    if reading.name == "scale" and isinstance(reading.denoise, Prior):
        # in another unit the prior is meant for other levels, and may know nothing of these
        trial = trial.of(reading.denoise)
        levels = trial.rows(prior)
    errors = trial.errors(reading.denoise)
    if any(e > row.limit**2 for e, row in zip(errors, levels, strict=True)):
        return 0.0
    return _gain([row.error**2 for row in levels], errors)


def _noise_finding(levels: tuple[LevelRow, ...], works: bool, explained: bool) -> Finding:
    if works:
        return Finding("noise", True, "every level is denoised")
    bad = [row for row in levels if not row.passed]
    kind = ("leaves more error than the noisy image or none at all would"
            if any(row.error > row.limit for row in bad) else
            f"takes away {1 / bad[0].found:.2g} of what it should")
    advice = ("the fault is named below" if explained else
              "it does not know such images, or has a fault of another kind")
    return Finding("noise", False, f"at noise {bad[0].sigma:.3g} it {kind}: {advice}")


_RIGHT = {
    "range": "no other range of values fits better",
    "scale": "no other unit fits better",
    "sign": "it takes noise away, rather than adding it",
    "prediction": "no other prediction fits better",
    "level": "no other noise level or time fits better",
    "channels": "no other order of channels fits better",
}


def _parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _gain(given: list[float], other: list[float]) -> float:
    """Decibels saved, on average over the levels."""
    each = [10 * math.log10(a / b) if 0 < b < math.inf and a < math.inf else
            -100.0 if b == math.inf else 100.0 for a, b in zip(given, other, strict=True)]
    return sum(max(-100.0, min(100.0, e)) for e in each) / len(each)


class _Reading(NamedTuple):
    """Another way to understand the same network, and what was wrong if it is the right one."""

    name: str
    words: str
    denoise: Denoise


def _readings(prior: Prior, quantile: float, works: bool) -> list[_Reading]:
    found = [_Reading("sign", "it adds noise: it predicts the negative of what it was taken for, "
                              "as a score is of the noise", lambda x, s: 2 * x - prior(x, s))]
    if not prior.is_complex:
        found += [
            _Reading("range", "it knows images from -1 to 1 and was given them from 0 to 1: load "
                              "it with value_range=(-1, 1), or take prior.rescaled(0.5, 0.5)",
                     prior.rescaled(0.5, 0.5)),
            _Reading("range", "it knows images from 0 to 1 and was given them from -1 to 1: take "
                              "prior.rescaled(2, -1)", prior.rescaled(2.0, -1.0))]
    if quantile > 0 and not 0.5 < quantile < 2:
        found.append(_Reading(
            "scale", f"its unit is not these images', whose 99.5 % quantile is {quantile:.3g}: "
            f"take prior.rescaled({quantile:.3g})", prior.rescaled(quantile)))
    for factor in (0.25, 4.0):
        found.append(_Reading("level", f"it is told the wrong noise level, by about {factor:g}: "
                                       "look at its schedule", _told(prior, factor)))
    if prior.is_complex:
        found.append(_Reading("channels", "its real and imaginary parts are swapped",
                              lambda x, s: _swap(prior(_swap(x), s))))
    elif prior.channels > 1:
        dim = -prior.item_ndim
        found.append(_Reading("channels", "its channels stand in the opposite order",
                              lambda x, s: prior(x.flip(dim), s).flip(dim)))
    return found if works else found + _of_network(prior)


def _told(prior: Prior, factor: float) -> Denoise:
    return lambda x, sigma: prior(x, factor * sigma)


def _swap(x: Tensor) -> Tensor:
    return torch.complex(x.imag, x.real)


def _of_network(prior: Prior) -> list[_Reading]:
    """Other predictions and other times for the network inside, where there is one."""
    inner = next((m for m in prior.modules() if isinstance(m, _NetworkPrior)), None)
    if inner is None:
        return []
    kinds = {EpsilonPrior: "the noise", ScorePrior: "the score", X0Prior: "the image",
             VelocityPrior: "a velocity v", FlowPrior: "the velocity of a flow"}
    low, high = inner.sigma_min, inner.sigma_max
    times = [
        ("the index of the linear schedule", VariancePreserving.linear()),
        ("that index counted from noise to image", _Backwards(VariancePreserving.linear())),
        ("that index over its number", _Share(VariancePreserving.linear())),
        ("sigma", VarianceExploding(low, high)),
        ("log(sigma)", VarianceExploding(low, high, time=torch.log)),
        ("the share of noise of a flow", Flow()),
        ("the share of image of a flow", Flow(time=lambda t: 1 - t)),
    ]
    found = []
    for kind, what in kinds.items():
        if kind is not type(inner) and isinstance(inner.schedule, kind.schedules):
            found.append(_Reading("prediction", f"it predicts {what}",
                                  _other(prior, inner, kind, inner.schedule)))
    for what, schedule in times:
        if isinstance(schedule, type(inner).schedules):
            found.append(_Reading("level", f"it wants to be told {what}, not what its schedule "
                                           "says", _other(prior, inner, type(inner), schedule)))
    return found


class _Backwards(VariancePreserving):
    def __init__(self, like: VariancePreserving) -> None:
        super().__init__(1 / (1 + (2 * like.log_sigmas).exp()))

    def time(self, sigma: Tensor) -> Tensor:
        return len(self.log_sigmas) - 1 - super().time(sigma)


class _Share(_Backwards):
    def time(self, sigma: Tensor) -> Tensor:
        return VariancePreserving.time(self, sigma) / len(self.log_sigmas)


def _other(prior: Prior, inner: _NetworkPrior, kind: type[_NetworkPrior],
           schedule: torch.nn.Module) -> Denoise:
    other = kind(inner.network, schedule.to(_device(inner)), inner.channels,  # type: ignore[arg-type]
                 spatial_ndim=inner.spatial_ndim, max_batch=inner.max_batch)
    return _replaced(prior, inner, other)


def _replaced(prior: Prior, inner: Prior, other: Prior) -> Prior:
    """The prior with another one at its heart, sharing the network."""
    if prior is inner:
        return other
    shell = copy.copy(prior)
    shell._modules = dict(prior._modules)
    for name, module in prior._modules.items():
        if isinstance(module, Prior):
            shell._modules[name] = _replaced(module, inner, other)
    return shell


def _device(prior: Prior) -> torch.device:
    tensors = [*prior.parameters(), *prior.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
