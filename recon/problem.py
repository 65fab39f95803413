"""What a sampler needs of one slice."""

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from recon.operators import LinearOperator

A = TypeVar("A", bound=LinearOperator, covariant=True)


class Problem(NamedTuple, Generic[A]):
    """One slice to reconstruct."""

    y: Tensor  # (*operator.range.shape)
    operator: A
    noise_std: float
    reference: Tensor | None  # (1, height, width), or the file's own magnitude, cropped
