"""What can be measured: candidates, their entries, and when they are acquired."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, split

from recon.operators import CartesianMRI
from recon.operators.base import Operator

_CHUNK_NUMBERS = 2**24  # real numbers held at once while candidates are compared


class Selection(NamedTuple):
    """What is to be measured now, for each item of the batch."""

    candidates: Tensor  # int64 (*batch, k), in the order of choice
    mask: Tensor  # bool (*batch, *operator.range.shape), their entries


def pixels(operator: Operator) -> Tensor:
    """Every point of the measurement is a candidate, all its channels or coils together."""
    spatial = operator.range.shape[1:]
    return torch.arange(math.prod(spatial), device=_device(operator)).view(spatial)


def columns(operator: Operator) -> Tensor:
    """Every column (last dimension) is a candidate, all rows and coils together; DC is n // 2."""
    if isinstance(operator, CartesianMRI) and not bool(operator.mask.all()):
        raise ValueError("columns wants the operator of all columns, got one with a mask: leave "
                         "the mask out")
    return torch.arange(operator.range.shape[-1], device=_device(operator))


def views(operator: Operator) -> Tensor:
    """Every view of projections ``(channel, views, *detector)`` is a candidate, all of it together.

    That is how ``ParallelBeamCT``, ``FanBeamCT`` and ``ConeBeamCT`` measure, and a stack of them.
    """
    if len(operator.range.shape) < 3:
        raise ValueError("views wants projections (channel, views, *detector), "
                         f"{operator.label()} measures {operator.range.shape}: label its views "
                         "0, 1, ... yourself")
    _, n, *detector = operator.range.shape
    return torch.arange(n, device=_device(operator)).view(n, *(1,) * len(detector))


def _device(operator: Operator) -> torch.device | None:
    return next((b.device for b in operator.buffers()), None)


class Candidates:
    """A map of labels over the measurement, checked, and sums over the entries of each label.

    ``labels`` are whole numbers that broadcast to ``operator.range.shape``: 0 to ``count - 1``, or
    -1 for entries that are never measured.
    """

    def __init__(self, labels: Tensor, operator: Operator) -> None:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() \
                or labels.dtype == torch.bool:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"candidates wants a tensor of whole numbers, got {got}")
        shape = operator.range.shape
        try:
            self.labels = labels.expand(shape).long()
        except RuntimeError:
            raise ValueError(f"candidates wants labels that broadcast to the measurement {shape}, "
                             f"got {tuple(labels.shape)}") from None
        flat = self.labels.flatten()
        self.count = int(flat.max()) + 1
        sizes = torch.bincount(flat + 1, minlength=self.count + 1)[1:] if flat.min() >= -1 else flat
        if self.count < 1 or flat.min() < -1 or not bool((sizes > 0).all()):
            raise ValueError("candidates wants labels 0, 1, ... without gaps, or -1 for what is "
                             f"never measured, got {sorted(set(flat.tolist()))[:20]}")
        # entries of candidates with equally many entries, (candidates, size)
        order = flat.argsort(stable=True)[int((flat < 0).sum()) :]
        firsts = sizes.cumsum(0) - sizes
        self._groups = []
        for size in sorted(set(sizes.tolist())):
            which = (sizes == size).nonzero()[:, 0]
            self._groups.append(
                (which, order[firsts[which, None] + torch.arange(size, device=flat.device)]))

    def taken(self, chosen: Tensor) -> Tensor:
        """Which candidates are among ``(*batch, k)``: bool ``(*batch, count)``."""
        none = torch.zeros(*chosen.shape[:-1], self.count, dtype=torch.bool, device=chosen.device)
        return none.scatter(-1, chosen, True)

    def mask(self, chosen: Tensor) -> Tensor:
        """The entries of candidates ``(*batch, k)``: bool ``(*batch, *range.shape)``."""
        taken = torch.nn.functional.pad(self.taken(chosen), (0, 1))  # the last for label -1
        return taken[..., self.labels]

    def sums(self, x: Tensor) -> Tensor:
        """Sums of real ``(*batch, *range.shape)`` over each candidate, ``(*batch, count)``."""
        flat = x.flatten(-self.labels.ndim)
        found = flat.new_empty(*flat.shape[:-1], self.count)
        for which, entries in self._groups:
            found[..., which] = flat[..., entries].sum(-1)
        return found

    def grams(self, x: Tensor) -> Tensor:
        """``G[a, i, j] = Re sum_(e in a) conj(x[i, e]) x[j, e]``, ``(*batch, count, n, n)``.

        ``x`` is ``(n, *batch, *range.shape)``. Extra memory is bounded, whatever the number of
        pairs.
        """
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(-1)
        flat = x.flatten(-1 - self.labels.ndim, -2).movedim(0, -3)  # (*batch, n, entries, parts)
        n = flat.shape[-3]
        found = flat.new_empty(*flat.shape[:-3], self.count, n, n)
        for which, entries in self._groups:
            each = entries.shape[1] * flat[..., 0, :].numel()
            size = max(1, _CHUNK_NUMBERS // each)
            for some, those in zip(split(which, size), split(entries, size), strict=True):
                part = flat[..., those, :].flatten(-2).movedim(-3, -2)  # (*batch, some, n, reals)
                found[..., some, :, :] = part @ part.mT
        return found


def moments(count: int, window: tuple[int, int]) -> list[int]:
    """The steps at which to acquire: ``count`` of them, spread evenly over ``[a, b)``, exactly.

    A step comes several times where there are fewer steps than acquisitions. The released code of
    ADS acquires every ``(b - a) // count`` steps instead: 800 times for 500 wanted in [0, 800).
    """
    a, b = window
    return [a + i * (b - a) // count for i in range(count)]
