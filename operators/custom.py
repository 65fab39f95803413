"""Operators from plain functions."""

from collections.abc import Callable

from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.space import Space

Function = Callable[[Tensor], Tensor]


def from_functions(forward: Function, adjoint: Function | None = None, *, domain: Space,
                   range: Space) -> LinearOperator:  # noqa: A002 the field's word
    """A linear operator from its forward and, where known, its adjoint.

    Both take and return tensors with any leading dimensions, ``(*batch, *domain.shape)`` to
    ``(*batch, *range.shape)`` and back. Without ``adjoint`` it follows from ``forward`` by
    automatic differentiation, exactly. A function that is an ``nn.Module`` becomes part of the
    operator and moves with it; a tensor that a plain function closes over does not.
    Nothing is verified here: ``check(A)`` says whether the two belong together.

    Examples
    --------
    >>> from recon.operators import Space, check, from_functions
    >>> space = Space((1, 8, 8))
    >>> A = from_functions(lambda x: x.cumsum(-1), domain=space, range=space)
    >>> check(A).raise_if_failed()
    """
    _want_callable("from_functions", forward, adjoint)
    return _Functions(forward, adjoint, domain, range)


def from_nonlinear(forward: Function, vjp: Callable[[Tensor, Tensor], Tensor] | None = None, *,
                   domain: Space, range: Space) -> Operator:  # noqa: A002 the field's word
    """A nonlinear operator from its forward and, where known, ``vjp(x, v) = J(x)^H v``.

    As ``from_functions``; without ``vjp`` automatic differentiation gives it.

    Examples
    --------
    >>> from recon.operators import Space, from_nonlinear
    >>> space = Space((1, 8, 8))
    >>> A = from_nonlinear(lambda x: x.square(), domain=space, range=space)
    """
    _want_callable("from_nonlinear", forward, vjp)
    return _Nonlinear(forward, vjp, domain, range)


def _want_callable(call: str, *functions: object) -> None:
    for function in functions:
        if function is not None and not callable(function):
            raise TypeError(f"{call}: want functions of a tensor, got {type(function).__name__}")
        if isinstance(function, Operator):
            raise TypeError(f"{call}: {type(function).__name__} is an operator already; "
                            "its adjoint as one is A.H")


class _Functions(LinearOperator):
    def __init__(self, forward: Function, adjoint: Function | None, domain: Space,
                 range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        # assignment registers a function that is an nn.Module, and keeps any other as it is
        self._forward, self._adjoint = forward, adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) if self._adjoint is None else self._adjoint(y)


class _Nonlinear(Operator):
    def __init__(self, forward: Function, vjp: Callable[[Tensor, Tensor], Tensor] | None,
                 domain: Space, range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        self._forward, self._vjp = forward, vjp

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return super().vjp(x, v) if self._vjp is None else self._vjp(x, v)
