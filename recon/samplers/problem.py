"""What every sampler asks of its inputs before any long work starts."""

import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.priors import Prior


def check_problem(y: Tensor, operator: Operator, prior: Prior | None, noise_std: Tensor | float,
                  *, samples: int = 1, linear: bool = True) -> Tensor:
    """Refuse what cannot work, in one sentence; return ``noise_std`` as ``(*batch,)`` or one number.

    Raises ValueError or TypeError: measurements of the wrong shape or kind, or not finite (with the
    index of the first bad item); a prior of another kind or channel count than the operator's
    images; a nonlinear operator where a linear one is needed; negative ``noise_std``.
    """
    if not isinstance(operator, Operator):
        raise TypeError(f"operator wants a recon Operator, got {type(operator).__name__}")
    if linear and not isinstance(operator, LinearOperator):
        raise TypeError(f"this sampler wants a linear operator, {operator.label()} is not: use a "
                        "sampler for nonlinear operators")
    operator.range.check(y, "measurements y")
    refuse_nonfinite(y, len(operator.range.shape))
    if samples < 1:
        raise ValueError(f"samples wants at least 1, got {samples}")
    if prior is not None:
        domain = operator.domain
        if prior.is_complex != domain.is_complex:
            kinds = ("complex", "real") if domain.is_complex else ("real", "complex")
            advice = (': use prior.as_complex("channels") or prior.as_complex("parts")'
                      if domain.is_complex else ": use a prior of real images")
            raise TypeError(f"the operator acts on {kinds[0]} images, the prior is of {kinds[1]} "
                            f"ones{advice}")
        if prior.channels != domain.shape[0]:
            raise ValueError(f"the operator acts on images of {domain.shape[0]} channel(s), the prior "
                             f"is of {prior.channels}: take a prior trained on such images")
        if prior.space is not None and prior.space.shape != domain.shape:
            raise ValueError(f"the operator acts on images {domain.shape}, the prior is of "
                             f"{prior.space.shape} only")
    noise = torch.as_tensor(noise_std, dtype=y.dtype.to_real(), device=y.device)
    if not bool((torch.isfinite(noise) & (noise >= 0)).all()):
        raise ValueError(f"noise_std wants finite numbers >= 0, got {noise_std}")
    batch = operator.range.batch_of(y)
    if noise.ndim and tuple(noise.shape) != batch:
        raise ValueError(f"noise_std wants one number or one per item {batch}, "
                         f"got {tuple(noise.shape)}")
    return noise


def refuse_nonfinite(y: Tensor, item_ndim: int) -> None:
    """Raise ValueError naming the first item of ``y`` that holds NaN or infinity."""
    finite = torch.isfinite(y).flatten(max(y.ndim - item_ndim, 0)).all(-1)
    if not bool(finite.all()):
        first = tuple(int(i) for i in (~finite).nonzero()[0])
        where = f" in slice {first[0] if len(first) == 1 else first}" if first else ""
        raise ValueError(f"the measurements hold NaN or infinity{where}: mend or leave out that slice")
