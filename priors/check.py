"""Does a prior denoise what it is told to know? Mistakes of range, sign, level and scale, in words.

The mean of the posterior leaves an error that nothing seen predicts, so that of what a denoiser
takes away, ``x - D``, the true noise is found exactly once: ``<sigma n, x - D> = |x - D|^2`` on
average, at every level. A wrong sign, unit or level breaks this, and what mends it names the fault.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recon.priors.base import Prior
from recon.priors.check_levels import LevelRow, Trial, noise_like
from recon.priors.check_readings import Reading, readings

_GAIN = 1.0  # decibels on average, from which another reading is the right one
_MOST = 4  # images


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
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)  # images may be drawn with the seed
    drawn = images is None
    with torch.inference_mode(False), torch.no_grad():
        x0 = _draws(prior, size, generator) if images is None else _flat(prior, images)
        if not bool(torch.isfinite(x0).all()):
            words = ("its own draws are not finite: a wrong sign or wrong levels" if drawn else
                     "the images hold NaN or infinity")
            return PriorReport(_label(prior), (), (Finding("finite", False, words),))
        magnitudes = x0.abs().flatten()  # torch sorts at most 2**24 numbers
        stride = -(-magnitudes.numel() // 2**22)
        quantile = float(magnitudes[::stride].double().quantile(0.995))
        if prior.normalised and not drawn:
            if quantile == 0:
                raise ValueError("check: the prior is of images whose 99.5 % quantile is one, and "
                                 "that of these is 0: pass images with more than a few pixels "
                                 "that are not zero")
            prior = prior.rescaled(quantile)
        trial = Trial(prior, x0, generator)
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
    x = float(sigmas[0]) * noise_like(like, generator)
    for sigma, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x0 = prior(x, sigma)
        x = x0 + after / sigma * (x - x0)
    return prior(x, low * scale)


def _findings(prior: Prior, trial: Trial, levels: tuple[LevelRow, ...], quantile: float,
              drawn: bool) -> tuple[Finding, ...]:
    works = all(row.passed for row in levels)
    others = [r for r in readings(prior, quantile, works)
              if not (drawn and r.name in ("range", "scale", "channels"))]
    gains = [_gain_of(r, prior, trial, levels) for r in others]
    best = max(range(len(others)), key=lambda i: gains[i])
    fault = others[best] if gains[best] > _GAIN else None
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


def _gain_of(reading: Reading, prior: Prior, trial: Trial,
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
