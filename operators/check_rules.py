"""The promises that ``check`` measures, each with the sentence that says how to mend it."""

import contextlib
import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.space import Space

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-11}  # about 100 roundings, relative


class CheckRow(NamedTuple):
    """One promise: the worst ``value`` found, its ``limit``, and advice or a note."""

    name: str
    passed: bool
    value: float
    limit: float
    advice: str


class Case(NamedTuple):
    A: LinearOperator  # or any Operator, for the rows that ask for no more
    precision: torch.dtype
    batch: tuple[int, ...]
    scale: float
    seed: int
    device: torch.device
    size: float  # of A: its norm

    def __str__(self) -> str:
        return f"{self.precision}, batch {self.batch}, scale {self.scale:g}"

    def kind(self, space: Space) -> torch.dtype:
        return self.precision.to_complex() if space.is_complex else self.precision

    def noise(self, space: Space, draw: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 8 + draw)
        noise = space.randn(*self.batch, generator=generator, dtype=self.precision)
        return (self.scale * noise).to(self.device)

    def x(self, draw: int = 0) -> Tensor:
        return self.noise(self.A.domain, draw)

    def y(self) -> Tensor:
        return self.noise(self.A.range, 2)

    def y_near(self, Ax: Tensor) -> Tensor:
        """Noise and as much of ``Ax``: noise alone is nearly orthogonal to a wrong scale."""
        y = self.y()
        size = float(Ax.abs().square().sum().sqrt())
        return y + Ax * (float(y.abs().square().sum().sqrt()) / size) if size > 0 else y

    def calls(self) -> list[tuple[str, Callable[[Tensor], Tensor], Tensor, Space]]:
        """Every method of one tensor: its name, itself, an input, the space of its output."""
        A, forward = self.A, ("forward", self.A, self.x(), self.A.range)
        return [forward] if not isinstance(A, LinearOperator) else [
            forward, ("adjoint", A.adjoint, self.y(), A.domain),
            ("normal", A.normal, self.x(), A.domain)]

    def _dot_error(self, Ax: Tensor, y: Tensor, x: Tensor, Ahy: Tensor) -> float:
        """``|<A x, y> - <x, A^H y>| / (||A x|| ||y||)``."""
        Ax, y = _items(Ax, self.A.range), _items(y, self.A.range)
        x, Ahy = _items(x, self.A.domain), _items(Ahy, self.A.domain)
        left, right = (Ax.conj() * y).sum(-1), (x.conj() * Ahy).sum(-1)
        straight = isinstance(self.A, LinearOperator)  # else J is linear over the reals only
        if not (straight and self.A.domain.is_complex and self.A.range.is_complex):
            left, right = left.real, right.real
        return _ratio((left - right).abs(), Ax.norm(dim=-1) * y.norm(dim=-1))

    def agree(self, got: Callable[[Tensor], object],
              want: Callable[[Tensor, Space], object]) -> float:
        for name, method, x, space in self.calls():
            found, wanted = got(method(x)), want(x, space)
            if found != wanted:
                raise ValueError(f"{name} gives {found}, want {wanted}")
        return 0.0

    def untouched(self) -> float:
        calls = self.calls()
        if isinstance(self.A, LinearOperator):
            calls.append(("solve", lambda x: self.A.solve(x, self.size**2, max_iter=2),
                          self.x(), self.A.domain))
        for name, method, x, _ in calls:
            before = x.clone()
            method(x)
            if not torch.equal(x, before):
                raise ValueError(f"{name} wrote into its input")
        return 0.0

    def apart(self) -> float:
        worst = 0.0
        for _, method, x, space in self.calls():
            together = method(x)
            for item in {(0,) * len(self.batch), tuple(n - 1 for n in self.batch)}:
                crowd = -10 * x
                crowd[item] = x[item]
                worst = max(worst, _error(method(crowd)[item], together[item], space))
                with contextlib.suppress(Exception):  # it may hold one mask per item
                    alone = method(x[item])
                    if alone.shape == space.shape:
                        worst = max(worst, _error(alone, together[item], space))
        return worst

    def repeatable(self) -> float:
        return max(_error(method(x), method(x), space) for _, method, x, space in self.calls())

    def deepcopy(self) -> float:
        A, twin = self.A, copy.deepcopy(self.A)
        held, copied = ({**dict(B.named_buffers()), **dict(B.named_parameters())}
                        for B in (A, twin))
        for name, tensor in copied.items():
            if tensor.numel() and name in held and held[name].data_ptr() == tensor.data_ptr():
                raise ValueError(f"{name} is one tensor for both copies")
        return _error(twin(self.x()), A(self.x()), A.range)

    def state_dict(self) -> float:
        twin = copy.deepcopy(self.A)
        for tensor in twin.state_dict().values():
            if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
                tensor.mul_(2)
        twin(self.x())  # fills any cache with the wrong numbers
        twin.load_state_dict(self.A.state_dict())
        return _error(twin(self.x()), self.A(self.x()), self.A.range)

    def moves(self) -> float:
        double = self._replace(precision=torch.float64, A=copy.deepcopy(self.A).to(torch.float64))
        got = double.A(self.x().to(double.kind(self.A.domain)))
        if got.dtype != double.kind(self.A.range):
            raise TypeError(f"after .to(torch.float64) forward gives {got.dtype}")
        return _error(got, self.A(self.x()), self.A.range)

    def additivity(self) -> float:
        A, a, b = self.A, self.x(0), self.x(1)
        parts = [A(a), A(b)]
        size = sum(_items(part, A.range).norm(dim=-1) for part in parts)
        return _error(A(a + b), parts[0] + parts[1], A.range, torch.as_tensor(size))

    def homogeneity(self) -> float:
        A, one = self.A, self._replace(scale=1.0).x()
        if bool(A(torch.zeros_like(one)).any()):
            raise ValueError("forward of zero is not zero")
        # a real range cannot show a complex factor
        factor = 0.6 - 0.9j if A.domain.is_complex and A.range.is_complex else -1.3
        return _error(A(self.scale * factor * one), self.scale * factor * A(one), A.range)

    def adjoint(self) -> float:
        x = self.x()
        y = self.y_near(Ax := self.A(x))
        return self._dot_error(Ax, y, x, self.A.adjoint(y))

    def normal(self) -> float:
        A, x = self.A, self.x()
        return _error(A.normal(x), A.adjoint(A(x)), A.domain)

    def gradient(self) -> float | None:
        A, x, y = self.A, self.x().requires_grad_(), self.y()
        with torch.enable_grad():
            Ax = A(x.detach())
            with contextlib.suppress(Exception):  # numpy and its kin refuse what has a gradient
                Ax = A(x)
            if not Ax.requires_grad:
                return None
            (pull,) = torch.autograd.grad(Ax, x, y)
            Ahy = A.adjoint(y.requires_grad_())
            push = torch.autograd.grad(Ahy, y, x)[0] if Ahy.requires_grad else Ax
        return max(_error(pull, Ahy, A.domain), _error(push, Ax, A.range))

    def gradcheck(self) -> float | None:
        A, x = self.A, self.x().requires_grad_()
        with torch.enable_grad():
            Ax = A(x.detach())
            with contextlib.suppress(Exception):  # numpy and its kin refuse what has a gradient
                Ax = A(x)
            if not Ax.requires_grad:
                return None
            size = max(float(Ax.detach().abs().max()), torch.finfo(x.dtype).tiny)
            torch.autograd.gradcheck(lambda t: A(t) / size, (x,), fast_mode=True, nondet_tol=1e-9)
        return 0.0

    def vjp(self) -> float:
        A = self.A
        return _error(A.vjp(self.x(), self.y()), A.adjoint(self.y()), A.domain)

    def vjp_by_differences(self) -> float:
        A, x, step = self.A, self.x(0), 1e-6 * self.x(1)
        Jd = (A(x + step) - A(x - step)) / 2e-6
        v = self.y_near(Jd)
        return self._dot_error(Jd, v, self.x(1), A.vjp(x, v))

    def solve(self) -> float:
        A, rhs = self.A, self.x()
        # another well-conditioned system for each item, whatever the size of A
        shift = self.size**2 * torch.linspace(0.1, 0.3, max(1, math.prod(self.batch)))
        shift = shift.to(rhs.device, self.precision).reshape(self.batch)
        x = A.solve(rhs, shift, max_iter=200, rtol=LIMITS[self.precision] / 10)
        return _error(A.normal(x) + A.per_item(shift, x) * x, rhs, A.domain)

    def norm(self) -> float:
        x, size = self.x(), torch.zeros(())
        for _ in range(30):
            x = self.A.normal(x)
            size = torch.linalg.vector_norm(x.flatten(len(self.batch)), dim=-1)
            x = x / torch.where(size > 0, size, 1)[(...,) + (None,) * len(self.A.domain.shape)]
        return float(size.max().sqrt())


class Rule(NamedTuple):
    measure: Callable[[Case], float | None]  # None: nothing to measure, as there is no gradient
    cases: str
    limit: float | None  # None: that of the precision
    advice: str


def row(name: str, kinds: dict[str, list[Case]]) -> CheckRow:
    rule, note = RULES[name], ""
    if not kinds[rule.cases]:
        note = "not measured: wants float64 among the precisions"
    worst, worst_ratio = CheckRow(name, True, 0.0, rule.limit or 0.0, ""), -1.0
    for case in kinds[rule.cases]:
        limit = LIMITS[case.precision] if rule.limit is None else rule.limit
        detail = ""
        try:
            value = rule.measure(case)
        except Exception as error:  # whatever a stranger's operator raises is a finding
            value, detail = math.inf, f"{type(error).__name__}: {error}".splitlines()[0] + "; "
        if value is None:
            note = "not differentiable: fine for samplers without gradients"
            continue
        value = math.inf if math.isnan(value) else value
        passed = value <= limit
        ratio = value / limit if limit else 0.0 if passed else math.inf
        if ratio > worst_ratio:
            worst_ratio = ratio
            advice = "" if passed else f"{rule.advice} ({detail}{case})"
            worst = CheckRow(name, passed, value, limit, advice)
    return worst._replace(advice=note) if worst.passed else worst


def in_precision(case: Case) -> LinearOperator:
    with contextlib.suppress(Exception):  # where A follows its input; else the dtype row fails
        if case.A(case.x()).dtype.to_real() == case.precision:
            return case.A
    return converted(case)


def converted(case: Case) -> LinearOperator:
    with contextlib.suppress(Exception):  # the row on moves reports it
        return copy.deepcopy(case.A).to(case.precision)
    return case.A


def _items(x: Tensor, space: Space) -> Tensor:
    """``(*batch, n)`` in double precision, so that our own rounding is not measured."""
    x = x.detach().cpu()
    x = x.to(torch.complex128 if x.is_complex() else torch.float64)
    return x.flatten(x.ndim - len(space.shape))


def _ratio(above: Tensor, below: Tensor) -> float:
    # 0 / 0 is agreement, anything else over 0 is not; max() hands NaN on
    return float(torch.where(above == 0, 0, above / below).max())


def _error(got: Tensor, want: Tensor, space: Space, size: Tensor | None = None) -> float:
    if got.shape != want.shape or got.is_complex() != want.is_complex():
        raise ValueError(f"{got.dtype} {tuple(got.shape)} beside {want.dtype} {tuple(want.shape)}")
    got, want = _items(got, space), _items(want, space)
    return _ratio((got - want).norm(dim=-1), want.norm(dim=-1) if size is None else size)


LINEAR_ONLY = ("adjoint", "normal", "gradient", "vjp", "solve")
RULES = {
    "shape": Rule(lambda case: case.agree(lambda y: tuple(y.shape),
                                           lambda _, space: (*case.batch, *space.shape)), "unit", 0,
                   "return (*batch, *space.shape): adjoint sums over what forward spread out"),
    "dtype": Rule(lambda case: case.agree(lambda y: y.dtype, lambda _, space: case.kind(space)),
                   "as given", 0, "return the precision of the input, complex where the space is"),
    "device": Rule(lambda case: case.agree(lambda y: y.device, lambda x, _: x.device), "unit", 0,
                    "stay on the device of the input"),
    "input untouched": Rule(Case.untouched, "unit", 0, "do not write into the argument"),
    "items apart": Rule(Case.apart, "unit", None, "one item's result depends on another's data: "
                         "reduce over the item's own dimensions only"),
    "repeatable": Rule(Case.repeatable, "unit", 0, "give the same bits each time: no noise here"),
    "deepcopy": Rule(Case.deepcopy, "unit", None, "copy.deepcopy(A) must be an operator of its "
                     "own: register tensors as buffers"),
    "state_dict": Rule(Case.state_dict, "fresh", None, "load_state_dict must bring the operator "
                       "back: register tensors as buffers, and derive nothing that outlives them"),
    ".to()": Rule(Case.moves, "unit", 1e-4, "A.to(torch.float64) must keep the operator: "
                  "register tensors as buffers"),
    "additivity": Rule(Case.additivity, "scaled", None, "A(a + b) is not A(a) + A(b): remove "
                        "constants and nonlinear steps, or derive from Operator"),
    "homogeneity": Rule(Case.homogeneity, "scaled", None, "A(c x) is not c A(x): remove "
                         "constants and absolute epsilons, or derive from Operator"),
    "adjoint": Rule(Case.adjoint, "scaled", None, "<A x, y> is not <x, A^H y>: conjugate, "
                     "transpose and sum; or delete adjoint, and autograd gives it"),
    "normal": Rule(Case.normal, "unit", None, "normal(x) is not adjoint(forward(x))"),
    "gradient": Rule(Case.gradient, "unit", None, "the gradient of forward is not the adjoint: "
                      "part of the graph is cut, or a custom backward is wrong"),
    "gradcheck": Rule(Case.gradcheck, "double", 0, "automatic differentiation of forward "
                      "disagrees with differences: part of the graph is cut or a surrogate"),
    "vjp": Rule(Case.vjp, "unit", None, "vjp(x, v) is not adjoint(v): delete it"),
    "vjp by differences": Rule(Case.vjp_by_differences, "float64", 1e-6, "vjp(x, v) is not "
                                "J(x)^H v: correct it, or delete it where forward is in torch"),
    "solve": Rule(Case.solve, "last", None, "solve(rhs, shift) leaves a residual: see its closed "
                   "form, the shift of each item, and that normal is Hermitian"),
}
