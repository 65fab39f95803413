"""deepinv's physics, in both of its ways to write complex numbers."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recon.operators.base import LinearOperator, Operator
from recon.space import Space

ComplexAs = Literal["channels", "dtype"]


def from_deepinv(physics: Any, domain: Space | None = None, range: Space | None = None,  # noqa: A002
                 complex_as: ComplexAs = "channels") -> Operator:
    """A ``deepinv.physics``: linear where it is a ``LinearPhysics``, else with its ``A_vjp``.

    Its noise is left out; its parameters are taken as they are, and belong to the operator, which
    moves and saves them. Where they are of another precision than the input a converted copy
    computes. Leading dimensions become deepinv's one batch.

    Parameters
    ----------
    physics
        The forward model.
    domain
        Images without batch; None where the physics knows its ``img_size`` and is real.
    range
        Measurements; None to find their shape by measuring zeros.
    complex_as
        How the physics wants a complex domain and gives a complex range: "channels" as two real
        numbers along the first dimension after the batch, so that images ``(1, H, W)`` are
        ``(B, 2, H, W)`` and k-space ``(coils, H, W)`` is ``(B, 2, coils, H, W)``, as its MRI does;
        "dtype" as complex tensors. With a real domain of 2 channels nothing is converted.

    Examples
    --------
    >>> import deepinv
    >>> A = from_deepinv(deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=0.5))
    """
    deepinv = _deepinv()
    if not isinstance(physics, deepinv.physics.Physics):
        raise TypeError(f"from_deepinv: want a deepinv.physics.Physics, got "
                        f"{type(physics).__name__}")
    _want_way("from_deepinv", complex_as)
    if domain is None:
        size = getattr(physics, "img_size", None)
        if size is None or len(size) < 2:
            raise ValueError(f"from_deepinv: {type(physics).__name__} does not say its img_size: "
                             "pass domain, as in Space((1, 64, 64))")
        domain = Space(tuple(size))
    packed = complex_as == "channels"
    x = domain.zeros(1)
    with torch.no_grad():
        y = _converted(physics, x).A(_packed(x) if packed else x)
    if not isinstance(y, Tensor):
        raise TypeError(f"from_deepinv: want measurements that are one tensor, got "
                        f"{type(y).__name__}: wrap the parts, then use stack")
    pair = domain.is_complex and packed and not y.is_complex()
    if pair and range is None and (y.ndim < 3 or y.shape[1] != 2):
        raise ValueError("from_deepinv: want measurements (B, 2, ...) of a complex domain as "
                         f"channels, got {tuple(y.shape)}: pass range, or complex_as='dtype'")
    found = tuple(y.shape[2:] if pair else y.shape[1:])
    if range is None:
        # (B, 2, H, W) has no channel left where an image (B, 2, 1, H, W) would
        found = (1, *found) if pair and len(found) < len(domain.shape) else found
        kind = domain.dtype if pair or y.is_complex() else domain.dtype.to_real()
        range = Space(found, kind)  # noqa: A001 the field's word
    bare = tuple(y.shape[1:])
    if isinstance(physics, deepinv.physics.LinearPhysics):
        return _Linear(physics, domain, range, packed, bare)
    return _Nonlinear(physics, domain, range, packed, bare)


def to_deepinv(A: Operator, complex_as: ComplexAs = "channels") -> Any:
    """``A`` as a ``deepinv.physics.LinearPhysics``, or ``Physics`` where it is not linear.

    ``complex_as`` as of ``from_deepinv``: complex images become ``(B, 2, H, W)`` for "channels",
    which deepinv's denoisers take, and stay complex for "dtype". ``prox_l2`` is ``A.solve``, a
    closed form where there is one; ``max_iter`` and ``tol`` are for the others. ``A_adjoint_A`` is
    ``A.normal``. Its ``noise_model`` may be set as of any physics.

    Examples
    --------
    >>> physics = to_deepinv(Masking(torch.ones(8, 8), Space((1, 8, 8))))
    >>> physics.A(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """
    deepinv = _deepinv()
    if not isinstance(A, Operator):
        raise TypeError(f"to_deepinv: want an Operator, got {type(A).__name__}")
    _want_way("to_deepinv", complex_as)
    packed = complex_as == "channels"

    def into(t: Tensor, space: Space) -> Tensor:
        return _unpacked(t, space) if packed and space.is_complex else t

    def out(t: Tensor) -> Tensor:
        return _packed(t) if packed else t

    size = tuple(out(A.domain.zeros(1)).shape[1:])

    class Wrapped(deepinv.physics.Physics):  # type: ignore[misc, name-defined]
        """A nonlinear operator."""

        operator: Operator

        def __init__(self) -> None:
            super().__init__()
            self.operator, self.img_size = A, size

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: N802 deepinv's name
            self.update_parameters(**kwargs)
            return out(self.operator(into(x, self.operator.domain)))

        def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: N802
            operator = self.operator
            return out(operator.vjp(into(x, operator.domain), into(v, operator.range)))

    if not isinstance(A, LinearOperator):
        return Wrapped()
    linear = A

    class WrappedLinear(deepinv.physics.LinearPhysics):  # type: ignore[misc, name-defined]
        """A linear operator."""

        operator: LinearOperator

        def __init__(self) -> None:
            super().__init__(img_size=size)
            self.operator = linear

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: N802 deepinv's name
            self.update_parameters(**kwargs)
            return out(self.operator(into(x, self.operator.domain)))

        def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:  # noqa: N802
            self.update_parameters(**kwargs)
            return out(self.operator.adjoint(into(y, self.operator.range)))

        def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:  # noqa: N802
            self.update_parameters(**kwargs)
            return out(self.operator.normal(into(x, self.operator.domain)))

        def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002, N802 wherever x is
            return self.A_adjoint(v)

        def prox_l2(self, z: Any, y: Tensor, gamma: Any, max_iter: int | None = None,
                    tol: float | None = None, **kwargs: Any) -> Tensor:
            """``argmin_x gamma / 2 ||A x - y||^2 + 1/2 ||x - z||^2``."""
            self.update_parameters(**{name: value for name, value in kwargs.items()
                                      if name not in ("solver", "verbose")})
            operator = self.operator
            pulled = operator.adjoint(into(y, operator.range))
            shift = 1 / torch.as_tensor(gamma, dtype=pulled.dtype.to_real(), device=pulled.device)
            shift = shift.reshape(shift.shape[:1]) if shift.numel() > 1 else shift.reshape(())
            wide = operator.per_item(shift, pulled)
            if isinstance(z, Tensor):
                pulled = pulled + wide * into(z, operator.domain)
            elif z:
                pulled = pulled + wide * z
            return out(operator.solve(pulled, shift, max_iter=max_iter or 50, rtol=tol or 1e-6))

    return WrappedLinear()


class _Kept(nn.Module):
    """A physics in whatever precision is asked for."""

    def __init__(self, physics: Any) -> None:
        super().__init__()
        self.physics = physics
        self._copies: dict[tuple[object, ...], tuple[tuple[object, ...], Any]] = {}

    def like(self, x: Tensor) -> Any:
        held = _tensors(self.physics)
        real = x.dtype.to_real()
        if all(t.dtype.to_real() == real and t.device == x.device for t in held):
            return self.physics
        # load_state_dict and callers write into the parameters, which raises their version
        stamp = tuple((t.data_ptr(), None if t.is_inference() else t._version) for t in held)
        kept = self._copies.get((real, x.device))
        if kept is None or kept[0] != stamp:
            kept = self._copies[real, x.device] = stamp, _converted(self.physics, x)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_copies": {}}


def _tensors(physics: nn.Module) -> list[Tensor]:
    return [t for t in [*physics.parameters(), *physics.buffers()]
            if t.is_floating_point() or t.is_complex()]


def _converted(physics: Any, x: Tensor) -> Any:
    if all(t.dtype.to_real() == x.dtype.to_real() and t.device == x.device
           for t in _tensors(physics)):
        return physics
    # as an Operator's: Module.to would drop the imaginary part of complex buffers
    holder = Operator(Space((1,)), Space((1,)))
    holder.physics = copy.deepcopy(physics)
    return holder.to(x.device, x.dtype.to_real()).physics


class _Linear(LinearOperator):
    def __init__(self, physics: Any, domain: Space, range: Space, packed: bool,  # noqa: A002
                 measured: tuple[int, ...]) -> None:
        super().__init__(domain, range)
        self.kept, self._packed, self._measured = _Kept(physics), packed, measured

    def forward(self, x: Tensor) -> Tensor:
        return _through(self.kept.like(x).A, x, self.domain, self.range, self._packed)

    def adjoint(self, y: Tensor) -> Tensor:
        items = _into(y, self.range, self._packed)
        items = items.reshape(len(items), *self._measured)
        x = self.kept.like(y).A_adjoint(items)
        x = _unpacked(x, self.domain) if self._packed and self.domain.is_complex else x
        return x.reshape(*self.range.batch_of(y), *self.domain.shape)


class _Nonlinear(Operator):
    def __init__(self, physics: Any, domain: Space, range: Space, packed: bool,  # noqa: A002
                 measured: tuple[int, ...]) -> None:
        super().__init__(domain, range)
        self.kept, self._packed, self._measured = _Kept(physics), packed, measured

    def forward(self, x: Tensor) -> Tensor:
        return _through(self.kept.like(x).A, x, self.domain, self.range, self._packed)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        items = _into(v, self.range, self._packed)
        items = items.reshape(len(items), *self._measured)
        with torch.inference_mode(False):
            pull = self.kept.like(x).A_vjp(_into(x, self.domain, self._packed).clone(),
                                           items.clone())
        pull = _unpacked(pull, self.domain) if self._packed and self.domain.is_complex else pull
        return pull.detach().reshape(x.shape)


def _through(function: Callable[[Tensor], Tensor], x: Tensor, source: Space, target: Space,
             packed: bool) -> Tensor:
    y = function(_into(x, source, packed))
    y = _unpacked(y, target) if packed and target.is_complex and not y.is_complex() else y
    return y.reshape(*source.batch_of(x), *target.shape)


def _into(x: Tensor, space: Space, packed: bool) -> Tensor:
    items = x.reshape(-1, *space.shape)
    return _packed(items) if packed else items


def _packed(x: Tensor) -> Tensor:
    """Complex ``(B, channel, ...)`` as real ``(B, 2, channel, ...)``, one channel left out."""
    if not x.is_complex():
        return x
    pair = torch.view_as_real(x.resolve_conj()).movedim(-1, 1)
    return pair.squeeze(2) if x.ndim > 2 and x.shape[1] == 1 else pair


def _unpacked(x: Tensor, space: Space) -> Tensor:
    pair = x.reshape(len(x), 2, *space.shape).movedim(1, -1)
    return torch.view_as_complex(pair.contiguous())


def _want_way(call: str, complex_as: str) -> None:
    if complex_as not in ("channels", "dtype"):
        raise ValueError(f"{call}: want complex_as 'channels' or 'dtype', got {complex_as!r}")


def _deepinv() -> Any:
    try:
        import deepinv
    except ImportError as error:
        raise ImportError("deepinv is not installed: pip install deepinv") from error
    return deepinv
