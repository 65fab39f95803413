"""Operators of libraries that know nothing of torch: through NumPy, with their own adjoint."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.operators.linear_map import linear_map
from recon.space import Space

Array = np.ndarray[Any, Any]
ArrayFunction = Callable[[Array], Any]
Function = Callable[[Tensor], Tensor]


class Foreign(LinearOperator):
    """A linear operator from two functions of ``(items, *shape)`` tensors; gradients use both."""

    def __init__(self, forward: Function, adjoint: Function, domain: Space,
                 range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        self._forward, self._adjoint = forward, adjoint

    def forward(self, x: Tensor) -> Tensor:
        y = linear_map(x.reshape(-1, *self.domain.shape), self._forward, self._adjoint)
        return y.reshape(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        x = linear_map(y.reshape(-1, *self.range.shape), self._adjoint, self._forward)
        return x.reshape(*self.range.batch_of(y), *self.domain.shape)


class ForeignNonlinear(Operator):
    """A nonlinear one, from functions of ``(items, *shape)`` tensors; ``vjp(x, v)`` is given."""

    def __init__(self, forward: Function, vjp: Callable[[Tensor, Tensor], Tensor], domain: Space,
                 range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        self._forward, self._vjp = forward, vjp

    def forward(self, x: Tensor) -> Tensor:
        items = x.reshape(-1, *self.domain.shape)
        y: Tensor = _WithVjp.apply(items, self._forward, self._vjp)
        return y.reshape(*self.domain.batch_of(x), *self.range.shape)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        pull = self._vjp(x.reshape(-1, *self.domain.shape), v.reshape(-1, *self.range.shape))
        return pull.reshape(x.shape)


class _WithVjp(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, apply: Function, vjp: Any) -> Tensor:  # noqa: ARG004 for the gradient
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...],
                      output: Tensor) -> None:  # noqa: ARG004 torch's signature
        x, _, ctx.foreign_vjp = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return ctx.foreign_vjp(x, grads[0]), None, None


def through_numpy(call: str, function: ArrayFunction, target: Space,
                  batched: bool = False, real_part: bool = False) -> Function:
    """``function`` of arrays as one of ``(items, *shape)`` tensors, to ``target``.

    It is called once for each item, with an array of its own that it may write into, or once for
    all where ``batched``; what it returns may be an array that it keeps. Results come
    back in the precision and on the device of the tensor. ``real_part`` is for the adjoint of a map
    from real to complex.
    """

    def apply(x: Tensor) -> Tensor:
        items = x.detach().resolve_conj().resolve_neg().cpu().numpy()
        kind = x.dtype.to_complex() if target.is_complex else x.dtype.to_real()
        if not len(items):
            return x.new_zeros((0, *target.shape), dtype=kind)
        # results are copied: a plan or an out= argument returns one array again and again
        if batched:
            result = np.array(function(items.copy()))
            want: tuple[int, ...] = (len(items), *target.shape)
        else:
            result = np.stack([np.array(function(item.copy())) for item in items])
            want = (len(items), *target.shape)
        if result.shape != want:
            got, one = (result.shape, want) if batched else (result.shape[1:], target.shape)
            raise ValueError(f"{call}: want an array {one}, got {got}")
        if np.iscomplexobj(result) and not target.is_complex:
            if not real_part:
                raise TypeError(f"{call}: want real numbers in a real space, got {result.dtype}")
            result = result.real
        # negative strides and read-only arrays are refused by torch
        found = torch.from_numpy(np.require(result, requirements=["C", "W"]))
        return found.to(x.device, kind)

    return apply
