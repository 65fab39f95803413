"""White noise whose draws belong to items, not to batches."""

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Source = torch.Generator | Sequence[torch.Generator] | None


class Noise(NamedTuple):
    """Where noise comes from, and which leading dimensions of a tensor are samples of one item.

    Tensors are ``(*samples, *batch, *item)``. With a list of generators, one for each item of the
    flattened batch, each draws the samples of its own item; with one for each draw, sample by
    sample, each draws its own. Results then do not depend on how items (and samples) are batched.
    """

    source: Source = None
    samples_ndim: int = 0
    item_ndim: int = 3

    def like(self, x: Tensor) -> Tensor:
        """Unit standard deviation per real number; shape, dtype and device of ``x``."""
        if self.source is None or isinstance(self.source, torch.Generator):
            return _draw(x.shape, x, self.source)
        if not isinstance(self.source, Sequence):
            raise TypeError("generator wants a torch.Generator or a list of them, got "
                            f"{type(self.source).__name__}")
        end = x.ndim - self.item_ndim
        batch = x.shape[self.samples_ndim : end]
        samples = x.shape[: self.samples_ndim]
        if len(self.source) == samples.numel() * batch.numel():
            return torch.stack([_draw(x.shape[end:], x, one) for one in self.source]).view(x.shape)
        if len(self.source) != batch.numel():
            raise ValueError(f"generator: want one per item of the batch {tuple(batch)} or one per "
                             f"sample and item, got {len(self.source)}")
        shape = samples + x.shape[end:]
        each = [_draw(shape, x, one) for one in self.source]
        return torch.stack(each, self.samples_ndim).view(x.shape)

    def uniform(self, x: Tensor) -> Tensor:
        """One number in [0, 1) for each item of the batch, ``(*batch,)``, in double precision.

        From the item's own generator; where every sample has one, from that of the first.
        """
        batch = x.shape[self.samples_ndim : x.ndim - self.item_ndim]
        if self.source is None or isinstance(self.source, torch.Generator):
            device = x.device if self.source is None else self.source.device
            u = torch.rand(batch, generator=self.source, dtype=torch.float64, device=device)
            return u.to(x.device)
        drawn = [float(torch.rand((), generator=g, dtype=torch.float64, device=g.device))
                 for g in self.source[: batch.numel()]]
        return torch.tensor(drawn, dtype=torch.float64, device=x.device).view(batch)


def white_like(x: Tensor, source: Source | Noise) -> Tensor:
    """Noise like ``x`` from a generator, a list of one per item, or a ``Noise``."""
    return source.like(x) if isinstance(source, Noise) else Noise(source).like(x)


def per_draw(seed: int | Sequence[int], samples: range, items: range) -> list[torch.Generator]:
    """One CPU generator for each sample of each item; a draw depends on its own numbers alone.

    With a seed for each item, an item draws what it would draw as the first of its seed.
    """
    pairs = [(int(seed), item) if isinstance(seed, int | Integral) else (int(seed[item]), 0)
             for item in items]
    entropy = [(*pair, sample) for sample in samples for pair in pairs]
    seeds = [int(np.random.SeedSequence(e).generate_state(1)[0]) for e in entropy]
    return [torch.Generator().manual_seed(s) for s in seeds]


def _draw(shape: torch.Size, like: Tensor, source: torch.Generator | None) -> Tensor:
    device = like.device if source is None else source.device
    parts = (*shape, 2) if like.is_complex() else tuple(shape)
    n = torch.randn(parts, generator=source, dtype=like.dtype.to_real(), device=device)
    n = n.to(like.device)
    return torch.view_as_complex(n) if like.is_complex() else n
