"""What the tests of samplers draw their cases with and count, and how far apart two results are."""

from typing import Any

import torch
from torch import Tensor

from recon.priors import Prior

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


class Counting(Prior):
    """A prior that counts its calls and those of its gradient."""

    def __init__(self, of: Prior) -> None:
        super().__init__(channels=of.channels, is_complex=of.is_complex)
        self.of, self.calls = of, {"forward": 0, "backward": 0}

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls["forward"] += 1
        passed: Tensor = _Counted.apply(x, self.calls)
        return self.of.denoise(passed, sigma)


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, calls: dict[str, int]) -> Tensor:
        ctx.calls = calls
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        ctx.calls["backward"] += 1
        return v, None
