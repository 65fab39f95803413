"""What a forward model is: its two spaces, its forward, and what follows from linearity."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Self, overload

import torch
from torch import Tensor, nn

from recon.operators.solve import ConjugateGradient, conjugate_gradient
from recon.space import Space

__all__ = ["LinearOperator", "Operator", "Space"]


# of each method the argument that says the batch, the space it is of, and that of the result
_METHODS = {"forward": (0, "domain", "range"), "adjoint": (0, "range", "domain"),
            "normal": (0, "domain", "domain"), "solve": (0, "domain", "domain"),
            "vjp": (1, "range", "domain")}


def _checked(method: Callable[..., Tensor], place: int, space: str,
             target: str) -> Callable[..., Tensor]:
    """``method`` for arguments of its space alone; of a batch without items it is not asked."""
    name = "".join(list(inspect.signature(method).parameters)[place + 1 : place + 2])

    @functools.wraps(method)
    def checked(self: "Operator", *args: Any, **kwargs: Any) -> Tensor:
        x = args[place] if len(args) > place else kwargs.get(name)
        if isinstance(x, Tensor):  # anything else is for Python's own message
            source: Space = getattr(self, space)
            source.check(x, f"{self.label()}.{method.__name__}")
            if 0 in x.shape:  # FFT libraries and sparse products refuse them, each by its own error
                return _of_no_items(x, source.batch_of(x), items_of(self) or (),
                                    getattr(self, target))
        return method(self, *args, **kwargs)

    return checked


def _of_no_items(x: Tensor, batch: tuple[int, ...], items: tuple[int, ...],
                 target: Space) -> Tensor:
    kind = x.dtype.to_complex() if target.is_complex else x.dtype.to_real()
    shape = torch.broadcast_shapes(batch, items)  # type: ignore[no-untyped-call]
    none = x.new_zeros((*shape, *target.shape), dtype=kind)
    return none + x.sum().real if x.requires_grad else none  # with the graph, of nothing, of others


def _depends_on_others(z: Tensor, x: Tensor) -> bool:
    """Whether ``z`` has a gradient in anything but ``x``, by the leaves of its graph."""
    seen, left = set(), [z.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", x) is not x:
            return True
        left += [before for before, _ in node.next_functions]
    return False


def items_of(A: "Operator") -> tuple[int, ...] | None:
    """``A.items``; None where a subclass means something else by that name."""
    return A.items if isinstance(A.items, tuple) else None


def ends_in(batch: tuple[int, ...], items: tuple[int, ...]) -> bool:
    """Whether one for each of ``items`` is one, or the same, for each of ``batch``."""
    return len(batch) >= len(items) and all(
        n in (1, b) for n, b in zip(items[::-1], batch[::-1], strict=False))


def _recordable(t: Tensor) -> Tensor:
    # autograd refuses tensors made under inference_mode; a copy made outside it is an ordinary one
    return t.clone() if t.is_inference() else t


class Operator(nn.Module):
    """A forward model ``y = A(x)`` from ``domain`` to ``range``; nonlinear ones stop here.

    A subclass writes ``forward`` for inputs ``(*batch, *domain.shape)``, with any number of
    leading dimensions, each item handled alone. Inputs are checked against the spaces before the
    subclass sees them, and batches of no items answered by as many. No noise is added here: an
    operator is deterministic.

    ``items`` are the leading dimensions of what it holds for each item, such as masks or kernels of
    their own: batches end in these. ``()`` where all items share it; None where a subclass does not
    say, which costs each sampler one product to find out.
    """

    domain: Space
    range: Space
    items: tuple[int, ...] | None = None

    def __init__(self, domain: Space, range: Space) -> None:  # noqa: A002 the field's word
        super().__init__()
        self.domain, self.range = domain, range

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, places in _METHODS.items():
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name], *places))

    def label(self) -> str:
        """A short name with both shapes, for messages: ``Blur[(1, 8, 8) -> (1, 8, 8)]``."""
        return f"{type(self).__name__}[{self.domain.shape} -> {self.range.shape}]"

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = super().__call__(x)
        return result

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002 the contract's argument
        raise TypeError(f"{type(self).__name__} has no forward: write forward(self, x)")

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """``J(x)^H v`` by automatic differentiation, ``(*batch, *domain.shape)``, without a graph.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x = _recordable(x).detach().requires_grad_()
            (pull,) = torch.autograd.grad(self(x), x, _recordable(v))
        return pull

    def masked(self, mask: Tensor) -> "Operator":
        """This model where only ``mask``, bool ``(*batch, *range.shape)``, is measured: else 0."""
        return masking.Masking(mask, self.range) @ self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Module.to(torch.float64) would cast complex buffers to real ones and drop their
        # imaginary part; through real views they become complex128 instead.
        def through_real(t: Tensor) -> Tensor:
            real = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
            moved = fn(real)
            if moved.is_complex():
                raise TypeError(f"{self.label()}.to: want a real dtype, got {moved.dtype}: complex "
                                "buffers follow the precision of a real one")
            return torch.view_as_complex(moved.contiguous()) if t.is_complex() else moved

        return super()._apply(through_real, recurse)  # type: ignore[no-untyped-call]

    def __matmul__(self, other: object) -> "Operator":
        return algebra.compose(self, other) if isinstance(other, Operator) else NotImplemented


class LinearOperator(Operator):
    """A linear forward model. ``adjoint`` is exact: written out, or by autograd of ``forward``.

    ``<a, b> = sum(conj(a) b)``; with a real domain and a complex range the adjoint returns the
    real part, and ``<A x, y>`` equals ``<x, A.adjoint(y)>`` in real parts.
    """

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^H y``, ``(*batch, *domain.shape)``."""
        wanted = torch.is_grad_enabled()
        kind = y.dtype.to_complex() if self.domain.is_complex else y.dtype.to_real()
        with torch.inference_mode(False), torch.enable_grad():
            y = _recordable(y)
            x = torch.zeros(self.range.batch_of(y) + self.domain.shape, dtype=kind,
                            device=y.device, requires_grad=True)
            z = self(x)
            # only for gradients of y or of parameters: rules of convolutions hold on to x as well,
            # and every product of a solver would keep its graph
            graph = wanted and (y.requires_grad or _depends_on_others(z, x))
            (pull,) = torch.autograd.grad(z, x, y, create_graph=graph)
        return pull

    def normal(self, x: Tensor) -> Tensor:
        """``A^H A x``."""
        return self.adjoint(self(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 the same wherever x is
        """``A^H v``, whatever ``x``."""
        return self.adjoint(v)

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        """``(A^H A + shift I)^-1 rhs`` for each item, by conjugate gradients from ``x0``.

        ``shift`` is one number, or one per item, ``(*batch,)``. Operators that know a closed form
        use it and ignore the last two arguments, and many ``x0``. With ``shift`` 0 and a
        rank-deficient A, the solution of least norm, if there is one, or the nearest to ``x0``
        where it is used.
        """
        return self.solve_cg(rhs, shift, x0, max_iter, rtol).x

    def solve_cg(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
                 max_iter: int = 50, rtol: float = 1e-6) -> ConjugateGradient:
        """As ``solve``, always by conjugate gradients, with its iterations and residuals."""
        self.domain.check(rhs, f"{self.label()}.solve")
        shift, given = self.per_item(shift, rhs), rhs
        if not ends_in(self.domain.batch_of(rhs), items_of(self) or ()):
            rhs = rhs.expand_as(self.normal(rhs))  # one right-hand side for all that it holds
        rhs = rhs.expand(torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            rhs.shape, shift.shape))
        x0 = x0.expand_as(rhs) if x0 is not None and x0.shape == given.shape else x0

        def shifted(x: Tensor) -> Tensor:
            return self.normal(x) + shift * x

        return conjugate_gradient(shifted, rhs, x0, item_ndim=len(self.domain.shape),
                                  max_iter=max_iter, rtol=rtol)

    def per_item(self, value: Tensor | float, like: Tensor) -> Tensor:
        """``value``, one or ``(*batch,)``, shaped to multiply ``like``, in its precision."""
        value = torch.as_tensor(value, dtype=like.dtype.to_real(), device=like.device)
        batch = self.domain.batch_of(like)
        # may be wider than the batch where A itself holds one mask or kernel per item
        if any(1 not in (n, b) and n != b
               for n, b in zip(value.shape[::-1], batch[::-1], strict=False)):
            raise ValueError(f"{self.label()}: want one number, or one per item of {batch}, "
                             f"got {tuple(value.shape)}")
        return value.reshape(value.shape + (1,) * len(self.domain.shape)) if value.ndim else value

    @property
    def H(self) -> "LinearOperator":  # noqa: N802 the field's word
        """The adjoint as an operator; a view of ``adjoint``, not a second definition."""
        return algebra.adjoint_of(self)

    @overload
    def __matmul__(self, other: "LinearOperator") -> "LinearOperator": ...
    @overload
    def __matmul__(self, other: object) -> Operator: ...
    def __matmul__(self, other: object) -> Operator:
        return super().__matmul__(other)

    def __add__(self, other: object) -> "LinearOperator":
        return algebra.add(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: object) -> "LinearOperator":
        return algebra.add(self, -other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: object) -> "LinearOperator":
        if not isinstance(factor, int | float | complex):
            return NotImplemented
        return algebra.scale(factor, self)

    __rmul__ = __mul__

    def __neg__(self) -> "LinearOperator":
        return algebra.scale(-1, self)


from recon.operators import algebra, masking  # noqa: E402 they subclass what stands above
