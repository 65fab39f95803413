"""What the tests of samplers draw their cases with, and how far apart two results are."""

import torch
from torch import Tensor

F64 = torch.float64


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(n: int, reverse: bool = False) -> list[torch.Generator]:
    """One generator for each of ``n`` slices."""
    return [seeded(n - 1 - i if reverse else i) for i in range(n)]


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())
