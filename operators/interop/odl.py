"""ODL's operators, with the weights of its inner products taken out and put in."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.operators.foreign import Array, Foreign, ForeignNonlinear, through_numpy
from recon.operators.norm import pushed
from recon.space import Space

__all__ = ["from_odl", "to_odl"]


def from_odl(operator: Any) -> Operator:
    """Any ``odl.Operator``: a linear operator if it is linear, else with the vjp of its derivative.

    Images are ``(*batch, 1, *shape)`` for a space of ``shape``, axes in ODL's order (its first
    axis is x), and ``(*batch, n, *shape)`` for the n-fold power of one. A batch is a Python loop
    over its items. Arrays go through the CPU in the precision of ODL's spaces; results are in that
    of the input, so that spaces of float32 pass ``check`` with ``precisions=(torch.float32,)``.

    ODL's adjoint belongs to its weighted inner products (the cell volumes of discretised
    functions); ``adjoint`` and ``vjp`` here are those of plain sums: ``A^H y = w_X A*(y / w_Y)``.

    Raises TypeError for spaces that are not arrays, such as those of functionals, and for inner
    products other than weighted sums.

    Examples
    --------
    >>> import odl
    >>> space = odl.uniform_discr([-1, -1], [1, 1], (16, 16))
    >>> A = from_odl(odl.Gradient(space))
    >>> A.range.shape
    (2, 16, 16)
    """
    odl = _odl()
    if not isinstance(operator, odl.Operator):
        raise TypeError(f"from_odl: want an odl.Operator, got {type(operator).__name__}")
    X, Y = operator.domain, operator.range
    domain, range = _space("domain", X), _space("range", Y)  # noqa: A001 the field's word
    w_x, w_y = _weights("domain", X), _weights("range", Y)

    def apply(array: Array) -> Array:
        return _array(operator(_element(X, array, domain)), range)

    forward = through_numpy("from_odl: forward", apply, range)
    if operator.is_linear:
        def pull(array: Array) -> Array:
            found = operator.adjoint(_element(Y, array / w_y, range))
            return w_x * _array(found, domain)

        return Foreign(forward, through_numpy("from_odl: adjoint", pull, domain, real_part=True),
                       domain, range)

    def vjp(x: Tensor, v: Tensor) -> Tensor:
        def pull_at(item: Tensor, along: Tensor) -> Tensor:
            at = item.detach().resolve_conj().cpu().numpy()

            def pull(array: Array) -> Array:
                tangent = operator.derivative(_element(X, at, domain))
                return w_x * _array(tangent.adjoint(_element(Y, array / w_y, range)), domain)

            return through_numpy("from_odl: vjp", pull, domain, real_part=True)(along[None])[0]

        pairs = [pull_at(item, along) for item, along in zip(x, v, strict=True)]
        return torch.stack(pairs) if pairs else torch.zeros_like(x)

    return ForeignNonlinear(forward, vjp, domain, range)


def to_odl(A: Operator, domain: Any = None, range: Any = None) -> Any:  # noqa: A002
    """``A`` as an ``odl.Operator``, for one image at a time.

    ``domain`` and ``range`` are ODL spaces of as many numbers as A's, of the same kind; without
    them ``odl.rn`` or ``odl.cn`` of A's shapes and dtypes, unweighted. The adjoint is that of the
    spaces' weighted inner products. Runs on the CPU or GPU where A is. ``derivative`` of a
    nonlinear A is by automatic differentiation.

    Examples
    --------
    >>> A = to_odl(Masking(torch.tensor([1, 0, 1]), Space((1, 3))))
    >>> A(A.domain.one()).asarray().tolist()
    [[1.0, 0.0, 1.0]]
    """
    odl = _odl()
    if not isinstance(A, Operator):
        raise TypeError(f"to_odl: want an Operator, got {type(A).__name__}")
    X = _plain(odl, A.domain) if domain is None else domain
    Y = _plain(odl, A.range) if range is None else range
    for name, theirs, ours in (("domain", X, A.domain), ("range", Y, A.range)):
        found = _space(name, theirs)
        if int(np.prod(found.shape)) != int(np.prod(ours.shape)) or (
                found.is_complex != ours.is_complex):
            raise ValueError(f"to_odl: want a {name} of {ours}, got {theirs}")
    w_x, w_y = _weights("domain", X), _weights("range", Y)
    device = next((t.device for t in [*A.parameters(), *A.buffers()]), torch.device("cpu"))

    def tensor(element: Any, space: Any, ours: Space) -> Tensor:
        array = np.array(_array(element, _space("", space))).reshape(ours.shape)
        return torch.from_numpy(array).to(device)

    def element(found: Tensor, space: Any) -> Any:
        theirs = _space("", space)
        array = found.detach().resolve_conj().cpu().numpy().reshape(theirs.shape)
        return _element(space, array, theirs)

    class Wrapped(odl.Operator):  # type: ignore[misc, name-defined]
        """Two functions of ODL elements that are one another's adjoints."""

        def __init__(self, forward: Any, adjoint: Any, source: Any, target: Any) -> None:
            super().__init__(source, target, linear=True)
            self._forward, self._pull = forward, adjoint

        def _call(self, x: Any) -> Any:
            return self._forward(x)

        @property
        def adjoint(self) -> Any:
            return Wrapped(self._pull, self._forward, self.range, self.domain)

    def weighted(pull: Any) -> Any:
        def adjoint(y: Any) -> Any:
            array = w_y * _array(y, _space("", Y))
            found = pull(torch.from_numpy(np.array(array)).reshape(A.range.shape).to(device))
            found = found.detach().resolve_conj().cpu().numpy().reshape(_space("", X).shape)
            return _element(X, found / w_x, _space("", X))

        return adjoint

    if isinstance(A, LinearOperator):
        return Wrapped(lambda x: element(A(tensor(x, X, A.domain)), Y), weighted(A.adjoint), X, Y)

    class Nonlinear(odl.Operator):  # type: ignore[misc, name-defined]
        """``A`` itself, with its derivative at a point."""

        def __init__(self) -> None:
            super().__init__(X, Y, linear=False)

        def _call(self, x: Any) -> Any:
            return element(A(tensor(x, X, A.domain)), Y)

        def derivative(self, point: Any) -> Any:
            at = tensor(point, X, A.domain)
            return Wrapped(lambda h: element(pushed(A, at, tensor(h, X, A.domain)), Y),
                           weighted(lambda v: A.vjp(at, v)), X, Y)

    return Nonlinear()


def _odl() -> Any:
    try:
        import odl
    except ImportError as error:
        raise ImportError("ODL is not installed: pip install odl") from error
    return odl


def _plain(odl: Any, space: Space) -> Any:
    name = str(space.dtype).removeprefix("torch.")
    return (odl.cn if space.is_complex else odl.rn)(space.shape, dtype=name)


def _space(which: str, space: Any) -> Space:
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if not shape or dtype is None or (_is_product(space) and not space.is_power_space):
        raise TypeError(f"from_odl: want a {which} of arrays or the power of one, got {space!r}")
    kind = getattr(torch, str(getattr(space, "dtype_identifier", dtype)), None)
    if not isinstance(kind, torch.dtype):
        kind = getattr(torch, np.dtype(str(dtype)).name)
    return Space(tuple(shape) if _is_product(space) else (1, *shape), kind)


def _is_product(space: Any) -> bool:
    return hasattr(space, "is_power_space")


def _weights(which: str, space: Any) -> Any:
    """What an inner product sums with: a number, or an array that broadcasts to ``(n, *shape)``."""
    weighting = space.weighting
    if getattr(weighting, "exponent", 2) != 2:
        raise TypeError(f"from_odl: want a {which} with an inner product, got {weighting!r}")
    if hasattr(weighting, "const"):
        own: Any = float(weighting.const)
    elif hasattr(weighting, "array"):
        own = np.asarray(weighting.array)
    else:
        raise TypeError(f"from_odl: want a {which} with a weighted sum as inner product, "
                        f"got {weighting!r}")
    if not _is_product(space):
        return own
    if isinstance(own, np.ndarray):
        own = own.reshape(-1, *(1,) * (len(space.shape) - 1))
    return own * _weights(which, space[0])


def _element(space: Any, array: Array, ours: Space) -> Any:
    if _is_product(space):
        parts = array.reshape(space.shape)
        return space.element([_element(part, parts[i], ours) for i, part in enumerate(space)])
    array = array.reshape(space.shape)
    if getattr(space, "impl", "numpy") != "numpy":
        return space.element(torch.from_numpy(array.copy()).to(space.device))
    return space.element(array.astype(str(getattr(space, "dtype_identifier", space.dtype))))


def _array(element: Any, ours: Space) -> Array:
    if _is_product(element.space):
        parts = [_array(part, ours).reshape(part.shape) for part in element]
        return np.stack(parts).reshape(ours.shape)
    found = element.asarray()
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    found = np.asarray(found)
    return found.reshape(ours.shape) if found.size == np.prod(ours.shape) else found
