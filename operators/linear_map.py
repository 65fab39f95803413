"""Autograd of a linear map that is written out together with its adjoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class _LinearMap(torch.autograd.Function):
    """A linear map whose derivative is itself and whose gradient is its adjoint, at any order."""

    @staticmethod
    def forward(x: Tensor, apply: Map, adjoint: Map) -> Tensor:  # noqa: ARG004 for the gradient
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...],
                      output: Tensor) -> None:  # noqa: ARG004 torch's signature
        _, ctx.linear, ctx.linear_adjoint = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return linear_map(grads[0], ctx.linear_adjoint, ctx.linear), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return linear_map(tangents[0], ctx.linear, ctx.linear_adjoint)

    @staticmethod
    def vmap(info: Any,  # noqa: ARG004 torch's signature
             in_dims: tuple[Any, ...], x: Tensor, apply: Map, adjoint: Map) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)  # (mapped, items, ...)
        y = linear_map(x.flatten(0, 1), apply, adjoint)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def linear_map(x: Tensor, apply: Map, adjoint: Map) -> Tensor:
    """``apply(x)`` for ``(items, ...)``; its derivatives are ``apply`` and ``adjoint`` themselves.

    Nothing is recorded inside ``apply``, which may therefore write into tensors of its own.
    """
    result: Tensor = _LinearMap.apply(x, apply, adjoint)
    return result
