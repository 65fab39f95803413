"""What every sampler asks of its inputs before any long work starts."""

import itertools
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from recon.integrators import Step
from recon.operators.base import LinearOperator, Operator, ends_in, items_of
from recon.priors import Prior


def check_problem(y: Tensor, operator: Operator, prior: Prior | None, noise_std: Tensor | float,
                  *, samples: int = 1, linear: bool = True, noisy: bool = False,
                  latent: bool = False) -> Tensor:
    """Refuse what cannot work, in one sentence; return ``noise_std``, ``(*batch,)`` or one number.

    Raises ValueError or TypeError: measurements of the wrong shape or kind, or not finite (with the
    index of the first bad item); a prior of another kind or channel count than the operator's
    images; a nonlinear operator where a linear one is needed; one of other items than those of
    ``y``; negative ``noise_std``, or zero where the sampler is ``noisy``: divides by it. A
    ``latent`` sampler has looked at its prior itself.
    """
    if not isinstance(operator, Operator):
        raise TypeError(f"operator wants a recon Operator, got {type(operator).__name__}")
    if linear and not isinstance(operator, LinearOperator):
        raise TypeError(f"this sampler wants a linear operator, {operator.label()} is not: use a "
                        "sampler for nonlinear operators")
    if not isinstance(y, Tensor):
        raise TypeError(f"measurements y want a tensor, got {type(y).__name__}: use "
                        "torch.as_tensor")
    operator.range.check(y, "measurements y")
    if not y.numel():
        raise ValueError(f"measurements y hold no item, got {tuple(y.shape)}")
    if y.dtype.to_real() not in (torch.float32, torch.float64):
        single = "torch.complex64" if y.is_complex() else "torch.float32"
        raise TypeError(f"measurements y want single or double precision, got {y.dtype}: pass "
                        f"y.to({single}); a prior's network alone may run in less")
    refuse_nonfinite(y, len(operator.range.shape))
    if not isinstance(samples, Integral):
        raise TypeError(f"samples wants a whole number, got {samples!r}")
    if samples < 1:
        raise ValueError(f"samples wants at least 1, got {samples}")
    if prior is not None:
        check_prior(prior)
    if prior is not None and not latent:
        if prior.is_latent:
            raise TypeError("the prior is of latents, not of images: use a sampler that takes "
                            "codec=, such as samplers.stsl, with priors.LatentPrior(prior, codec)")
        domain = operator.domain
        if prior.is_complex != domain.is_complex:
            kinds = ("complex", "real") if domain.is_complex else ("real", "complex")
            advice = (': use prior.as_complex("channels") or prior.as_complex("parts")'
                      if domain.is_complex else ": use a prior of real images")
            raise TypeError(f"the operator acts on {kinds[0]} images, the prior is of {kinds[1]} "
                            f"ones{advice}")
        if prior.channels != domain.shape[0]:
            raise ValueError(f"the operator acts on images of {domain.shape[0]} channel(s), the "
                             f"prior is of {prior.channels}: take a prior trained on such images")
        if prior.space is not None and prior.space.shape != domain.shape:
            raise ValueError(f"the operator acts on images {domain.shape}, the prior is of "
                             f"{prior.space.shape} only")
    if not isinstance(noise_std, (Tensor, float, int, list, tuple, np.ndarray, np.generic)):
        raise TypeError("noise_std wants a number, or a tensor of one per item, got "
                        f"{type(noise_std).__name__}")
    noise = torch.as_tensor(noise_std, dtype=y.dtype.to_real(), device=y.device)
    if not bool((torch.isfinite(noise) & (noise >= 0)).all()):
        raise ValueError(f"noise_std wants finite numbers >= 0, got {noise_std}")
    if noisy and not bool((noise > 0).all()):
        raise ValueError(f"this sampler wants noise_std > 0, got {noise_std}: pass the standard "
                         "deviation of the noise in each real number of y")
    batch = operator.range.batch_of(y)
    if noise.ndim and tuple(noise.shape) != batch:
        raise ValueError(f"noise_std wants one number or one per item {batch}, "
                         f"got {tuple(noise.shape)}")
    check_items(y, operator)
    return noise


def check_items(y: Tensor, operator: Operator) -> None:
    """Refuse an operator with masks or kernels for each of other items than those of ``y``.

    Broadcast, each sample of one item would be measured by the mask of another. Operators that do
    not say what ``items`` they hold are asked by one product.
    """
    batch = operator.range.batch_of(y)
    told = items_of(operator)
    held = _shown(y, operator, batch) if told is None else told
    while len(held) > len(batch) and held[0] == 1:  # one for all
        held = held[1:]
    if not ends_in(batch, held):
        raise ValueError(f"{operator.label()} holds masks or kernels for each of the items {held}, "
                         f"y is of items {batch}: pass the operator of these, or all measurements")


def _shown(y: Tensor, operator: Operator, batch: tuple[int, ...]) -> tuple[int, ...]:
    """The items that an operator turns one into; where it wants all of them, the batch it takes."""
    kind = y.dtype.to_complex() if operator.domain.is_complex else y.dtype.to_real()
    # where it is: volumes may lie elsewhere than what measures their slices
    there = next(itertools.chain(operator.parameters(), operator.buffers()), y).device

    def measured(*items: int, value: float = 0) -> tuple[int, ...]:
        x = operator.domain.zeros(*items, device=there).to(kind) + value
        return operator.range.batch_of(operator(x))

    with torch.no_grad():
        try:
            return measured(*(1,) * len(batch))
        except Exception:  # of whatever kind it is: it may want all items, or no empty image
            try:
                return measured(*batch)
            except Exception:
                return measured(*batch, value=1)


def check_prior(prior: Prior) -> None:
    """Refuse what is no prior: a bare network, or a function."""
    if not isinstance(prior, Prior):
        raise TypeError(f"prior wants a recon Prior, got {type(prior).__name__}: wrap a network as "
                        "recon.priors does, or subclass Prior and write its denoise(x, sigma)")


def check_sigmas(sigmas: Tensor, batch: tuple[int, ...] | None = None) -> None:
    """Refuse levels that do not fall to 0, or are not ``(steps + 1,)`` or one list per item."""
    if not isinstance(sigmas, Tensor):
        raise TypeError(f"sigmas wants a tensor, got {type(sigmas).__name__}: use torch.tensor")
    if sigmas.ndim < 1 or len(sigmas) < 2 or not bool((sigmas.diff(dim=0) < 0).all()):
        raise ValueError("sigmas wants at least two falling levels, the last one 0, got "
                         f"{sigmas.tolist() if sigmas.ndim < 2 else tuple(sigmas.shape)}")
    if not bool(torch.isfinite(sigmas[0]).all()):
        raise ValueError(f"sigmas wants finite levels, got {sigmas[0].tolist()} first")
    if bool((sigmas[-1] != 0).any()):
        raise ValueError(f"sigmas must end in 0, got {sigmas[-1].tolist()}")
    if batch is not None:
        items = tuple(sigmas.shape[1:])
        if not ends_in(batch, items):
            raise ValueError("sigmas (or the prior's scale) want one level for all or one per item "
                             f"of the batch {batch}, got {items}")


def check_start(start: Step, shape: tuple[int, ...], sigmas: Tensor) -> None:
    """Refuse a saved ``Step`` of other draws or other levels, and one that is the last."""
    if tuple(start.x.shape) != shape:
        raise ValueError(f"start holds {tuple(start.x.shape)}, want {shape}: pass the measurements "
                         "and samples= it was saved with")
    left = len(sigmas) - 1 - start.index
    if left < 1:
        raise ValueError(f"start has done {start.index} of {len(sigmas) - 1} steps: its x0 is the "
                         "result already")
    if not torch.equal(start.sigma.to(sigmas), sigmas[start.index]):
        raise ValueError(f"start was saved at level {start.sigma.tolist()}, step {start.index} of "
                         f"these levels is {sigmas[start.index].tolist()}: pass its own")


def refuse_nonfinite(y: Tensor, item_ndim: int) -> None:
    """Raise ValueError naming the first item of ``y`` that holds NaN or infinity."""
    finite = torch.isfinite(y).flatten(max(y.ndim - item_ndim, 0)).all(-1)
    if not bool(finite.all()):
        first = tuple(int(i) for i in (~finite).nonzero()[0])
        where = f" in slice {first[0] if len(first) == 1 else first}" if first else ""
        raise ValueError(f"the measurements hold NaN or infinity{where}: mend or leave out that "
                         "slice")
