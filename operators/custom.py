"""Operators from plain functions."""

from collections.abc import Callable

from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.operators.foreign import ArrayFunction, Foreign, through_numpy
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


def from_numpy(forward: ArrayFunction, adjoint: ArrayFunction, *, domain: Space,
               range: Space, batched: bool = False) -> LinearOperator:  # noqa: A002
    """A linear operator from functions of NumPy arrays, which need no gradients.

    ``forward`` takes an array ``domain.shape`` and returns one ``range.shape``; ``adjoint`` the
    other way. A batch is a Python loop over its items, one call each: where the functions take
    ``(items, *shape)`` at once, say ``batched`` and they are called once. Arrays arrive in the
    precision of the input, as copies that may be written into; results are copied too, so that one
    array may be returned at every call (``out=``), into that precision and to the device of the
    input. Since the adjoint is known, gradients pass through, though NumPy has none.

    NumPy cannot find an adjoint: without one, write ``forward`` in torch (``from_functions``), or
    write out a small operator as a matrix (``from_scipy``).

    Examples
    --------
    >>> space = Space((1, 8, 8))
    >>> A = from_numpy(lambda x: np.cumsum(x, -1), lambda y: np.cumsum(y[..., ::-1], -1)[..., ::-1],
    ...                domain=space, range=space)
    >>> check(A).raise_if_failed()
    """
    _want_callable("from_numpy", forward, adjoint)
    if adjoint is None:
        raise TypeError("from_numpy: want the adjoint, which NumPy cannot find: write it, or write "
                        "forward in torch and use from_functions")
    return Foreign(
        through_numpy("from_numpy: forward", forward, range, batched),
        through_numpy("from_numpy: adjoint", adjoint, domain, batched, real_part=True),
        domain, range)


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
