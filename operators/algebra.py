"""Sums, products, multiples, adjoints and stacks of operators; neutral elements fold away."""

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from recon.operators.base import LinearOperator, Operator, Space, items_of


class Scale(LinearOperator):
    """``y = factor * x`` with one number."""

    items = ()

    def __init__(self, factor: complex, space: Space) -> None:
        super().__init__(space, space)
        if isinstance(factor, complex) and not space.is_complex:
            raise TypeError(f"Scale: a complex factor {factor} needs a complex space")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor.conjugate() * y

    def normal(self, x: Tensor) -> Tensor:
        return abs(self.factor) ** 2 * x

    def solve(self, rhs: Tensor, shift: Tensor | float,
              x0: Tensor | None = None,  # noqa: ARG002 closed form
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002
        return rhs / (abs(self.factor) ** 2 + self.per_item(shift, rhs))


class Identity(Scale):
    """``y = x``."""

    def __init__(self, space: Space) -> None:
        super().__init__(1.0, space)


class Zero(LinearOperator):
    """``y = 0``."""

    items = ()

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.domain.batch_of(x) + self.range.shape, dtype=_kind(x, self.range))

    def adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(self.range.batch_of(y) + self.domain.shape, dtype=_kind(y, self.domain))


def _kind(x: Tensor, space: Space) -> torch.dtype:
    return x.dtype.to_complex() if space.is_complex else x.dtype.to_real()


class _Adjoint(LinearOperator):
    def __init__(self, of: LinearOperator) -> None:
        super().__init__(of.range, of.domain)
        self.of, self.items = of, items_of(of)

    def forward(self, x: Tensor) -> Tensor:
        return self.of.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.of(y)


class _Composition(Operator):
    def __init__(self, outer: Operator, inner: Operator) -> None:
        super().__init__(inner.domain, outer.range)
        self.outer, self.inner = outer, inner
        self.items = _items("A @ B", (outer, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.vjp(x, self.outer.vjp(self.inner(x), v))


class _LinearComposition(LinearOperator):
    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        super().__init__(inner.domain, outer.range)
        self.outer, self.inner = outer, inner
        self.items = _items("A @ B", (outer, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        if isinstance(self.outer, Scale):  # keeps what the inner one knows to be cheaper
            return abs(self.outer.factor) ** 2 * self.inner.normal(x)
        return self.inner.adjoint(self.outer.normal(self.inner(x)))

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        if isinstance(self.outer, Scale):
            gain = abs(self.outer.factor) ** 2
            shift = torch.as_tensor(shift, dtype=rhs.dtype.to_real(), device=rhs.device)
            return self.inner.solve(rhs / gain, shift / gain, x0, max_iter, rtol)
        return super().solve(rhs, shift, x0, max_iter, rtol)


class _Sum(LinearOperator):
    def __init__(self, terms: Sequence[LinearOperator]) -> None:
        super().__init__(terms[0].domain, terms[0].range)
        self.items = _items("A + B", terms)
        self.terms: Sequence[LinearOperator] = nn.ModuleList(terms)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return total(A(x) for A in self.terms)

    def adjoint(self, y: Tensor) -> Tensor:
        return total(A.adjoint(y) for A in self.terms)


class _Stack(LinearOperator):
    def __init__(self, parts: Sequence[LinearOperator]) -> None:
        first = parts[0].range
        channels = sum(A.range.shape[0] for A in parts)
        super().__init__(parts[0].domain, Space((channels, *first.shape[1:]), first.dtype))
        self.items = _items("stack", parts)
        self.parts: Sequence[LinearOperator] = nn.ModuleList(parts)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        measured = [A(x) for A in self.parts]
        # one that holds a mask for each item makes a batch of one image; others do not
        batch = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            *(A.range.batch_of(y) for A, y in zip(self.parts, measured, strict=True)))
        return torch.cat([y.expand(*batch, *A.range.shape) for A, y in
                          zip(self.parts, measured, strict=True)], dim=-len(self.range.shape))

    def adjoint(self, y: Tensor) -> Tensor:
        sizes = [A.range.shape[0] for A in self.parts]
        pieces = torch.split(y, sizes, dim=-len(self.range.shape))
        pulled = [A.adjoint(piece) for A, piece in zip(self.parts, pieces, strict=True)]
        return total(pulled)

    def normal(self, x: Tensor) -> Tensor:
        return total(A.normal(x) for A in self.parts)


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, whose batches may broadcast, one after another."""
    return functools.reduce(torch.add, parts)


def stack(*operators: LinearOperator) -> LinearOperator:
    """Several measurements of one image, ``y = (A_1 x, A_2 x, ...)`` joined along the channels."""
    if not operators:
        raise ValueError("stack: want at least one operator, got none")
    for A in operators:
        if not isinstance(A, LinearOperator):
            raise TypeError(f"stack: want linear operators, got {type(A).__name__}")
    _same("stack", "domain", [A.domain for A in operators])
    _same("stack", "range beyond its channels",
          [Space((1, *A.range.shape[1:]), A.range.dtype) for A in operators])
    return operators[0] if len(operators) == 1 else _Stack(operators)


def compose(outer: Operator, inner: Operator) -> Operator:
    """``outer @ inner``."""
    _same("A @ B", "space between A and B", [outer.domain, inner.range])
    if not (isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator)):
        return _Composition(outer, inner)
    if isinstance(outer, Zero) or isinstance(inner, Zero):
        return Zero(inner.domain, outer.range)
    if isinstance(outer, Scale):
        return scale(outer.factor, inner)
    # a complex factor must not pass an outer operator that is linear over the reals only, such as
    # the adjoint of one from real to complex: Re(B^H (i x)) is not i Re(B^H x)
    if isinstance(inner, Scale) and not isinstance(inner.factor, complex):
        return scale(inner.factor, outer)
    return _LinearComposition(outer, inner)


def add(left: LinearOperator, right: LinearOperator) -> LinearOperator:
    """``left + right``."""
    _same("A + B", "domain", [left.domain, right.domain])
    _same("A + B", "range", [left.range, right.range])
    if isinstance(right, Zero):
        return left
    if isinstance(left, Zero):
        return right
    if isinstance(left, Scale) and isinstance(right, Scale):
        return scale(left.factor + right.factor, Identity(left.domain))
    terms = [t for A in (left, right) for t in (A.terms if isinstance(A, _Sum) else [A])]
    return _Sum(terms)


def scale(factor: complex, A: LinearOperator) -> LinearOperator:
    """``factor * A``."""
    if factor == 0:
        return Zero(A.domain, A.range)
    if isinstance(A, Zero):
        return A
    if isinstance(A, Scale):
        product = factor * A.factor
        return Identity(A.domain) if product == 1 else Scale(product, A.domain)
    if factor == 1:
        return A
    if isinstance(A, _LinearComposition) and isinstance(A.outer, Scale):
        return scale(factor * A.outer.factor, A.inner)
    return _LinearComposition(Scale(factor, A.range), A)


def adjoint_of(A: LinearOperator) -> LinearOperator:
    """``A.H``."""
    if isinstance(A, _Adjoint):
        return A.of
    if isinstance(A, Zero):
        return Zero(A.range, A.domain)
    if isinstance(A, Scale):
        return scale(A.factor.conjugate(), Identity(A.domain))
    if isinstance(A, _LinearComposition):
        return _LinearComposition(adjoint_of(A.inner), adjoint_of(A.outer))
    return _Adjoint(A)


def _items(call: str, parts: Sequence[Operator]) -> tuple[int, ...] | None:
    """Those of all parts together; None where one does not say."""
    held = [items_of(A) for A in parts]
    if None in held:
        return None
    try:
        return tuple(torch.broadcast_shapes(*held))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(f"{call}: want masks or kernels for the same items, got {held}") from None


def _same(call: str, what: str, spaces: Sequence[Space]) -> None:
    for space in spaces[1:]:
        if space.shape != spaces[0].shape or space.is_complex != spaces[0].is_complex:
            raise ValueError(f"{call}: want one {what}, got {spaces[0]} and {space}")
