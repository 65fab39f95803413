"""Other ways to understand the same network, each with the mistake it would mend."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from recon.priors.base import Prior
from recon.priors.check_levels import Denoise
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


class Reading(NamedTuple):
    """Another way to understand the same network, and what was wrong if it is the right one."""

    name: str
    words: str
    denoise: Denoise


def readings(prior: Prior, quantile: float, works: bool) -> list[Reading]:
    found = [Reading("sign", "it adds noise: it predicts the negative of what it was taken for, "
                              "as a score is of the noise", lambda x, s: 2 * x - prior(x, s))]
    if not prior.is_complex:
        found += [
            Reading("range", "it knows images from -1 to 1 and was given them from 0 to 1: load "
                              "it with value_range=(-1, 1), or take prior.rescaled(0.5, 0.5)",
                     prior.rescaled(0.5, 0.5)),
            Reading("range", "it knows images from 0 to 1 and was given them from -1 to 1: take "
                              "prior.rescaled(2, -1)", prior.rescaled(2.0, -1.0))]
    if quantile > 0 and not 0.5 < quantile < 2:
        found.append(Reading(
            "scale", f"its unit is not these images', whose 99.5 % quantile is {quantile:.3g}: "
            f"take prior.rescaled({quantile:.3g})", prior.rescaled(quantile)))
    for factor in (0.25, 4.0):
        found.append(Reading("level", f"it is told the wrong noise level, by about {factor:g}: "
                                       "look at its schedule", _told(prior, factor)))
    if prior.is_complex:
        found.append(Reading("channels", "its real and imaginary parts are swapped",
                              lambda x, s: _swap(prior(_swap(x), s))))
    elif prior.channels > 1:
        dim = -prior.item_ndim
        found.append(Reading("channels", "its channels stand in the opposite order",
                              lambda x, s: prior(x.flip(dim), s).flip(dim)))
    return found if works else found + _of_network(prior)


def _told(prior: Prior, factor: float) -> Denoise:
    return lambda x, sigma: prior(x, factor * sigma)


def _swap(x: Tensor) -> Tensor:
    return torch.complex(x.imag, x.real)


def _of_network(prior: Prior) -> list[Reading]:
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
            found.append(Reading("prediction", f"it predicts {what}",
                                  _other(prior, inner, kind, inner.schedule)))
    for what, schedule in times:
        if isinstance(schedule, type(inner).schedules):
            found.append(Reading("level", f"it wants to be told {what}, not what its schedule "
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
