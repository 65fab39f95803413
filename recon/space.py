"""The space an image or a measurement lives in; the one notion operators and priors share."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """The shape ``(channel, *spatial)`` and kind (real or complex) of one item, without batch.

    Tensors of a space are ``(*batch, *shape)``. The precision of ``dtype`` is a default only:
    an operator returns the precision it is given.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"Space wants positive sizes (channel, *spatial), got {self.shape}")
        if not (self.dtype.is_floating_point or self.dtype.is_complex):
            raise TypeError(f"Space wants a floating or complex dtype, got {self.dtype}")

    @property
    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def batch_of(self, x: Tensor) -> tuple[int, ...]:
        """The leading dimensions of ``x``."""
        return tuple(x.shape[: x.ndim - len(self.shape)])

    def check(self, x: Tensor, where: str) -> None:
        """Raise ValueError or TypeError unless ``x`` is ``(*batch, *shape)`` of this kind."""
        if tuple(x.shape[-len(self.shape) :]) != self.shape:
            want = ", ".join(str(n) for n in self.shape)
            raise ValueError(f"{where}: want (*batch, {want}), got {tuple(x.shape)}")
        if x.is_complex() != self.is_complex or not (x.is_floating_point() or x.is_complex()):
            kind = "complex" if self.is_complex else "real"
            raise TypeError(f"{where}: want a {kind} floating tensor, got {x.dtype}")

    def randn(self, *batch: int, generator: torch.Generator | None = None,
              dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """White noise of unit standard deviation per real number, ``(*batch, *shape)``."""
        dtype = self.dtype if dtype is None else dtype
        real = torch.randn(
            (*batch, *self.shape, 2) if self.is_complex else (*batch, *self.shape),
            generator=generator, dtype=dtype.to_real(), device=device,
        )
        return torch.view_as_complex(real) if self.is_complex else real

    def zeros(self, *batch: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros, ``(*batch, *shape)``."""
        return torch.zeros((*batch, *self.shape), dtype=self.dtype, device=device)
