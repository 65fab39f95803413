"""Volumes larger than the memory that denoises and measures them: a few slices at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from recon.integrators.base import Denoise
from recon.operators.base import LinearOperator
from recon.priors import Prior

Device = torch.device | str | None


def sliced_operator(operator: LinearOperator, max_slices: int | None, device: Device,
                    like: Tensor) -> LinearOperator:
    """``operator`` for tensors that live elsewhere, ``max_slices`` at a time; itself without both.

    Raises ValueError where slices cannot be taken apart: it holds a mask or maps for each.
    """
    if max_slices is None and device is None:
        return operator
    if max_slices is not None:
        _refuse_items(operator, device, like)
    return _Sliced(operator, max_slices, device)


def sliced_prior(prior: Prior, max_slices: int | None, device: Device) -> Denoise:
    """``prior`` for tensors that live elsewhere, ``max_slices`` at a time; as it is without both.

    Raises ValueError where slices cannot be taken apart: it has a scale for each.
    """
    if max_slices is None and device is None:
        return prior
    if max_slices is not None and torch.as_tensor(prior.scale).numel() > 1:
        raise ValueError("max_slices wants a prior of one scale, got one for each item: rescale it "
                         "by one number for the volume, or leave max_slices out; in "
                         "reconstruct pass scale=, one number")
    ndim = prior.item_ndim
    return lambda x, sigma: _by_slices(prior, max_slices, device, x, ndim, sigma)


def check_slices(max_slices: int | None) -> None:
    """Refuse a number of slices that leaves none to do."""
    if max_slices is not None and max_slices < 1:
        raise ValueError(f"max_slices wants at least 1, or None for no limit, got {max_slices}")


class _Sliced(LinearOperator):
    def __init__(self, of: LinearOperator, max_slices: int | None, device: Device) -> None:
        super().__init__(of.domain, of.range)
        self.of, self.max_slices, self.device = of, max_slices, device

    def forward(self, x: Tensor) -> Tensor:
        return _by_slices(self.of, self.max_slices, self.device, x, len(self.domain.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        return _by_slices(self.of.adjoint, self.max_slices, self.device, y, len(self.range.shape))

    def normal(self, x: Tensor) -> Tensor:
        return _by_slices(self.of.normal, self.max_slices, self.device, x, len(self.domain.shape))

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        def solved(rhs: Tensor, shift: Tensor, x0: Tensor) -> Tensor:
            return self.of.solve(rhs, shift, x0, max_iter, rtol)

        x0 = torch.zeros_like(rhs) if x0 is None else x0
        shift = torch.as_tensor(shift, dtype=rhs.dtype.to_real(), device=rhs.device)
        return _by_slices(solved, self.max_slices, self.device, rhs, len(self.domain.shape),
                          shift, x0)


def _by_slices(function: Callable[..., Tensor], max_slices: int | None, device: Device, x: Tensor,
               item_ndim: int, *others: Tensor) -> Tensor:
    """``function(x, *others)`` on ``device``, its result where ``x`` is.

    ``others`` are one number, one for each item, or of the shape of ``x``.
    """
    def there(t: Tensor) -> Tensor:
        return t if device is None else t.to(device)

    if max_slices is None:
        return function(there(x), *map(there, others)).to(x.device)
    leading = x.shape[: x.ndim - item_ndim]

    def flat(t: Tensor) -> Tensor:
        item = t.shape[t.ndim - item_ndim :] if t.ndim == x.ndim else ()
        return t.expand(*leading, *item).reshape(-1, *item)

    given = [t if t.ndim == 0 else flat(t) for t in (x, *others)]
    pieces = [function(*(there(t if t.ndim == 0 else t[i : i + max_slices]) for t in given))
              .to(x.device) for i in range(0, leading.numel(), max_slices)]
    whole = torch.cat(pieces)
    return whole.view(*leading, *whole.shape[1:])


def _refuse_items(operator: LinearOperator, device: Device, like: Tensor) -> None:
    one = like.new_zeros((1, *operator.range.shape))
    try:
        found = operator.adjoint(one if device is None else one.to(device))
        alone = operator.domain.batch_of(found) == (1,)
    except ValueError:  # holds something for each of several items
        alone = False
    if not alone:
        raise ValueError(f"max_slices wants an operator that is the same for every slice, "
                         f"{operator.label()} holds a mask or maps for each: leave max_slices out")
