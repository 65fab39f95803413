"""The contract every operator keeps, and the faults that ``check`` must find."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import random_array
from torch import Tensor

from recon.operators import (
    JPEG,
    Blur,
    CartesianMRI,
    Clipping,
    ConeBeamCT,
    Counts,
    Downsampling,
    FanBeamCT,
    Greyscale,
    Hadamard,
    Identity,
    LinearOperator,
    Masking,
    Matrix,
    NonCartesianMRI,
    NonlinearBlur,
    Operator,
    ParallelBeamCT,
    PhaseRetrieval,
    Quantisation,
    Scale,
    SmoothJPEG,
    Space,
    VaryingBlur,
    Weighting,
    check,
    colour_filter,
    from_functions,
    from_nonlinear,
    from_numpy,
    from_scipy,
    gaussian_kernel,
    missing_block,
    random_phases,
    random_pixels,
    region_weights,
    sequency,
    stack,
)

REAL, COMPLEX = Space((1, 7, 6)), Space((1, 6, 9), torch.complex64)
COILS = Space((3, 6, 9), torch.complex64)
HALF_REAL = Space((1, 6, 9))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mask(*shape: int) -> Tensor:
    return noise(*shape, seed=1) > 0


def columns(n: int) -> Tensor:
    return torch.arange(n) % 2 == 0


def some(*shape: int) -> Tensor:
    """A mask that is nowhere empty."""
    return mask(*shape) | columns(shape[-1])


def maps(*shape: int) -> Tensor:
    return noise(*shape, seed=2, dtype=torch.complex64)


def k_space(*size: int) -> Tensor:
    """Twelve frequencies, fewer than make ``normal`` that of the exact sum."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(12, len(size), generator=generator) - 0.5) * torch.tensor(size)


def fourier(x: Tensor) -> Tensor:
    y: Tensor = torch.fft.fft2(x, norm="ortho")
    return y


def inverse(y: Tensor) -> Tensor:
    x: Tensor = torch.fft.ifft2(y, norm="ortho")
    return x


class Coils(LinearOperator):
    """Multi-coil weighting and a Fourier transform: the shape of MRI, small enough to break."""

    maps: Tensor

    def __init__(self) -> None:
        super().__init__(COMPLEX, COILS)
        self.register_buffer("maps", noise(*COILS.shape, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return fourier(self.maps.to(x.dtype) * x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.to(y.dtype).conj() * inverse(y)).sum(-3, keepdim=True)


def running_sum_in_numpy() -> LinearOperator:
    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().cumsum(-1))

    def adjoint(y: Tensor) -> Tensor:
        return torch.from_numpy(y.flip(-1).numpy().cumsum(-1)).flip(-1)

    return from_functions(forward, adjoint, domain=REAL, range=REAL)


OPERATORS: dict[str, Callable[[], Operator]] = {
    "identity": lambda: Identity(REAL),
    "complex identity": lambda: Identity(COMPLEX),
    "zero": lambda: 0 * Coils(),
    "scale": lambda: Scale(-2.5, REAL),
    "complex scale": lambda: Scale(2 - 1j, COMPLEX),
    "masking": lambda: Masking(mask(6), REAL),
    "complex masking": lambda: Masking(mask(6, 1), COMPLEX),
    "coils": Coils,
    "adjoint of coils": lambda: Coils().H,
    "normal of coils": lambda: Coils().H @ Coils(),
    "multiple of coils": lambda: (0.5 - 2j) * Coils(),
    "sum": lambda: Coils() + 2j * Coils() @ Masking(mask(6, 9), COMPLEX),
    "difference": lambda: Blur(noise(3, 3), REAL) - Identity(REAL),
    "stack": lambda: stack(Masking(mask(7, 6), REAL), Blur(noise(2, 3), REAL), Identity(REAL)),
    "product": lambda: Blur(noise(3, 4), REAL, "zero") @ Masking(mask(7, 6), REAL),
    "adjoint by autograd": lambda: from_functions(lambda x: x.cumsum(-2), domain=REAL, range=REAL),
    "real to complex": lambda: from_functions(
        lambda x: torch.fft.fft2(x), domain=HALF_REAL, range=COMPLEX),
    "complex to real": lambda: from_functions(
        lambda x: (x * (1 - 2j)).real, domain=COMPLEX, range=HALF_REAL),
    "change of shape": lambda: from_functions(
        lambda x: x.unfold(-1, 3, 2).mean(-1), domain=REAL, range=Space((1, 7, 2))),
    "function in numpy": running_sum_in_numpy,
    "periodic blur, odd on odd": lambda: Blur(noise(3, 5), Space((2, 9, 7))),
    "periodic blur, even on even": lambda: Blur(noise(2, 4), Space((1, 8, 6))),
    "periodic blur, as large as the image": lambda: Blur(noise(6, 7), Space((1, 6, 7))),
    "periodic blur, complex": lambda: Blur(gaussian_kernel(0.7, 5), COMPLEX),
    "periodic blur, complex kernel": lambda: Blur(noise(3, 2, dtype=torch.complex64), COMPLEX),
    "zero blur, odd on even": lambda: Blur(noise(3, 5), Space((1, 8, 6)), "zero"),
    "zero blur, even on odd": lambda: Blur(noise(2, 4), Space((2, 9, 7)), "zero"),
    "zero blur, complex": lambda: Blur(noise(3, 3), COMPLEX, "zero"),
    "reflected blur, odd on even": lambda: Blur(noise(3, 5), Space((1, 8, 6)), "reflect"),
    "symmetric blur, even on odd": lambda: Blur(noise(2, 4), Space((2, 9, 7)), "symmetric"),
    "replicated blur, complex": lambda: Blur(noise(3, 2), COMPLEX, "replicate"),
    "valid blur, odd on even": lambda: Blur(noise(3, 5), Space((1, 8, 6)), "valid"),
    "valid blur, even on odd": lambda: Blur(noise(2, 4), Space((2, 9, 7)), "valid"),
    "varying blur": lambda: VaryingBlur(noise(2, 3, 2), noise(2, 7, 6), REAL),
    "varying blur, valid, complex": lambda: VaryingBlur(
        noise(4, 2, 3), region_weights((2, 2), (6, 9)), COMPLEX, "valid"),
    "downsampling, odd": lambda: Downsampling(Space((2, 9, 15)), 3),
    "downsampling, even, complex": lambda: Downsampling(
        Space((1, 8, 6), torch.complex64), (4, 2), "lanczos"),
    "downsampling in three dimensions": lambda: Downsampling(
        Space((1, 4, 5, 6)), (2, 5, 1), "box"),
    "Hadamard rows": lambda: Hadamard(sequency(32)[:11], Space((2, 4, 8))),
    "Hadamard rows, scrambled, complex": lambda: Hadamard(
        torch.arange(3, 10), Space((1, 2, 16), torch.complex64), torch.ones(2, 16)),
    "grey, odd": lambda: Greyscale(Space((3, 7, 5))),
    "grey, even, complex": lambda: Greyscale(Space((2, 4, 6), torch.complex64), (0.2, -1.0)),
    "random pixels": lambda: Masking(random_pixels((7, 6), 0.4), REAL),
    "missing block": lambda: Masking(missing_block((6, 9), (3, 4)), COMPLEX),
    "Bayer's colours": lambda: Masking(colour_filter("RGGB", (5, 6)), Space((3, 5, 6))),
    "matrix": lambda: Matrix(noise(5, 42), REAL, Space((1, 5))),
    "sparse matrix": lambda: from_scipy(random_array((12, 54), density=0.3, rng=0), COMPLEX,
                                        Space((1, 3, 4), torch.complex64)),
    "batched function in numpy": lambda: from_numpy(
        lambda x: x[..., ::-1], lambda y: y[..., ::-1], domain=REAL, range=REAL, batched=True),
    "blur in one dimension": lambda: Blur(noise(4), Space((1, 11))),
    "blur in three dimensions": lambda: Blur(noise(3, 2, 3), Space((1, 4, 5, 6)), "zero"),
    "blur of each channel": lambda: Blur(noise(2, 3, 3), Space((2, 6, 6))),
    "MRI of a volume": lambda: CartesianMRI((4, 5, 6)),
    "MRI of a volume, columns": lambda: CartesianMRI((3, 4, 5), columns(5), maps(2, 3, 4, 5)),
    "MRI of a volume, phase encodings": lambda: CartesianMRI(
        (3, 4, 5), mask(4, 5), maps(2, 3, 4, 5)),
    "MRI of a volume, points": lambda: CartesianMRI((2, 5, 4), mask(2, 5, 4), maps(2, 2, 5, 4)),
    "MRI with two sets of maps": lambda: CartesianMRI((6, 5), columns(5), maps(2, 3, 6, 5), 2),
    "MRI with two sets, points": lambda: CartesianMRI((5, 4), mask(5, 4), maps(2, 3, 5, 4), 2),
    "non-Cartesian MRI": lambda: NonCartesianMRI((6, 8), k_space(6, 8)),
    "non-Cartesian MRI, odd, coils": lambda: NonCartesianMRI(
        (7, 5), k_space(7, 5), maps(3, 7, 5), tolerance=2.5e-6),
    "non-Cartesian MRI, two sets": lambda: NonCartesianMRI(
        (5, 6), k_space(5, 6), maps(2, 3, 5, 6), 2),
    "non-Cartesian MRI of a volume": lambda: NonCartesianMRI(
        (4, 5, 3), k_space(4, 5, 3), maps(2, 4, 5, 3)),
    "non-Cartesian MRI, off resonance": lambda: NonCartesianMRI(
        (5, 6), k_space(5, 6), off_resonance=9 * noise(5, 6), times=noise(12).abs() / 100),
    "parallel beams, even": lambda: ParallelBeamCT((8, 6), [0.0, 0.4, 1.6, 3.0]),
    "parallel beams, odd": lambda: ParallelBeamCT(7, [0.1, 2.0, 4.0], 12, 0.25,
                                                  pixel_size=(1.0, 0.7)),
    "fan beam, even": lambda: FanBeamCT((8, 6), [0.0, 1.6, 3.0, 5.0], 11.0),
    "fan beam, odd, curved": lambda: FanBeamCT((7, 9), [0.1, 2.0, 4.0], 20.0, 7.0, 14, 0.25,
                                               curved=True),
    "beams without a matrix": lambda: ParallelBeamCT((6, 7), [0.1, 2.0], method="gather"),
    # compiled in test_cone.py, which costs 20 s
    "cone beam": lambda: ConeBeamCT((2, 3, 2), [0.3], (3, 4), 9.0, backend="torch"),
    "fan without a matrix": lambda: FanBeamCT((6, 7), [0.1, 2.0], 11.0, method="gather"),
    "weighting": lambda: Weighting(noise(7, 6), REAL),
    "weighted beams": lambda: Weighting(mask(4, 10) + 0.5, Space((1, 4, 10))) @ ParallelBeamCT(
        (8, 6), [0.0, 0.4, 1.6, 3.0]),
}
# three items, each with a mask or kernel of its own
PER_ITEM: dict[str, Callable[[], Operator]] = {
    "masks": lambda: Masking(mask(3, 1, 7, 6), REAL),
    "columns": lambda: Masking(mask(3, 1, 1, 9), COMPLEX),
    "periodic kernels": lambda: Blur(noise(3, 1, 3, 2), REAL),
    "zero kernels": lambda: Blur(noise(3, 1, 2, 3), COMPLEX, "zero"),
    "masked kernels": lambda: Masking(mask(3, 1, 7, 6), REAL) @ Blur(noise(3, 1, 3, 3), REAL),
    "stack of both": lambda: stack(Masking(mask(3, 1, 7, 6), REAL), Blur(noise(3, 3), REAL)),
    "frames of MRI": lambda: CartesianMRI((5, 9), some(3, 1, 1, 9), maps(2, 5, 9)),
    "frames of a volume": lambda: CartesianMRI((2, 3, 9), some(3, 1, 1, 3, 9), maps(2, 2, 3, 9)),
    "maps of each item": lambda: NonCartesianMRI((5, 6), k_space(5, 6), maps(3, 2, 5, 6)),
    "frames of a trajectory": lambda: NonCartesianMRI(
        (5, 6), torch.stack([k_space(5, 6) * s for s in (1, 0.5, -1)]), maps(2, 5, 6), item_axes=1),
}
NONLINEAR: dict[str, Callable[[], Operator]] = {
    "transmission": lambda: from_nonlinear(lambda x: (-x).exp(), domain=REAL, range=REAL),
    "magnitude": lambda: from_nonlinear(lambda x: x.abs(), domain=COMPLEX, range=HALF_REAL),
    "bent complex": lambda: from_nonlinear(lambda x: x * x.abs(), domain=COMPLEX, range=COMPLEX),
    "holomorphic": lambda: from_nonlinear(lambda x: x**2, domain=COMPLEX, range=COMPLEX),
    "written vjp": lambda: from_nonlinear(
        lambda x: x**3, lambda x, v: 3 * x**2 * v, domain=REAL, range=REAL),
    "phase retrieval": lambda: PhaseRetrieval(REAL, oversampling=2),
    "coded diffraction": lambda: PhaseRetrieval(COMPLEX, random_phases(2, (6, 9)), intensity=True),
    "clipping": lambda: Clipping(REAL, 2.0, -1.0, 1.0),
    "quantisation": lambda: Quantisation(REAL, 5, -1.0, 1.0),
    "blur of light": lambda: NonlinearBlur(gaussian_kernel(0.8, 3), REAL, "reflect"),
    "counts": lambda: Counts(REAL, 20.0, 0.5),
    "JPEG": lambda: JPEG(Space((3, 9, 10)), 50, low=-3.0, high=3.0),
    "smooth JPEG": lambda: SmoothJPEG(Space((1, 5, 16)), 20, low=-3.0, high=3.0),
    "after a blur": lambda: (
        from_nonlinear(lambda x: x.square(), domain=REAL, range=REAL) @ Blur(noise(3, 3), REAL)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_contract(name: str) -> None:
    report = check(OPERATORS[name]())
    assert report.passed, str(report)
    assert report.linear


@pytest.mark.parametrize("name", PER_ITEM)
def test_contract_with_one_mask_per_item(name: str) -> None:
    check(PER_ITEM[name](), batches=((3,), (2, 3))).raise_if_failed()
    refused = check(PER_ITEM[name]())  # one image in, three out
    assert [row.name for row in refused.rows if not row.passed][:1] == ["shape"]


# users' functions and classes, which do not say what they hold
UNSAID = (__name__, "recon.operators.custom", "recon.operators.foreign")


@pytest.mark.parametrize("name", [*OPERATORS, *PER_ITEM, *NONLINEAR])
def test_items_are_those_of_its_products(name: str) -> None:
    """What samplers refuse measurements of other items by, without a product."""
    A = {**OPERATORS, **PER_ITEM, **NONLINEAR}[name]()
    assert (A.items is None) == any(type(part).__module__ in UNSAID for part in A.modules())
    held = A.items or ()
    assert held == ((3,) if name in PER_ITEM else ())
    assert A.range.batch_of(A(A.domain.zeros(*held))) == held
    assert A.range.batch_of(A(A.domain.zeros(2, *held))) == (2, *held)


def test_items_of_parts_that_differ_are_refused() -> None:
    two, three = Masking(mask(2, 1, 7, 6), REAL), Masking(mask(3, 1, 7, 6), REAL)
    each: list[Callable[[], Operator]] = [lambda: two @ three, lambda: two + three,
                                          lambda: stack(two, three)]
    for make in each:
        with pytest.raises(ValueError, match=r"for the same items, got \[\(2,\), \(3,\)\]"):
            make()
    assert (Masking(mask(5, 1, 1, 7, 6), REAL) @ three).items == (5, 3)


@pytest.mark.parametrize("name", [*OPERATORS, *PER_ITEM, *NONLINEAR])
@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)])
def test_a_batch_of_no_items(name: str, batch: tuple[int, ...]) -> None:
    A = {**OPERATORS, **PER_ITEM, **NONLINEAR}[name]()
    x, y = A.domain.zeros(*batch).requires_grad_(), A.range.zeros(*batch)
    methods: dict[str, Callable[[], Tensor]] = {"A": lambda: A(x), "vjp": lambda: A.vjp(x, y)}
    if isinstance(A, LinearOperator):
        methods |= {"adjoint": lambda: A.adjoint(y), "normal": lambda: A.normal(x),
                    "solve": lambda: A.solve(x, 1.0), "cg": lambda: A.solve_cg(x, 1.0, x).x}
    for method, call in methods.items():
        if name in PER_ITEM and batch != (0, 3):  # as (1,) and (2,) are
            with pytest.raises((RuntimeError, ValueError)):
                call()
            continue
        got, space = call(), A.range if method == "A" else A.domain
        assert got.shape == (*batch, *space.shape), method
        assert got.dtype == space.dtype, method
    if name not in PER_ITEM:
        assert torch.autograd.grad(A(x).abs().sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("name", NONLINEAR)
def test_contract_of_nonlinear(name: str) -> None:
    report = check(NONLINEAR[name]())
    assert report.passed, str(report)
    assert not report.linear
    assert math.isnan(report.norm)
    assert "vjp by differences" in {row.name for row in report.rows}


def test_contract_of_an_operator_moved_to_double() -> None:
    A = Coils().to(torch.float64)
    assert A.maps.dtype == torch.complex128
    check(A).raise_if_failed()


class PlainOperator(Operator):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_linear_is_measured_not_declared() -> None:
    assert check(PlainOperator(REAL, REAL)).linear
    bent = check(from_functions(lambda x: x.abs(), domain=REAL, range=REAL))
    assert not bent.linear
    assert not bent.passed


class Broken(Coils):
    """Faults in one method; the other methods stay as they are."""


def broken(**methods: Callable[..., Any]) -> Callable[[], Operator]:
    return lambda: type("Broken", (Broken,), methods)()


def whole(A: Coils, x: Tensor) -> Tensor:
    return Coils.forward(A, x)


def pulled(A: Coils, y: Tensor) -> Tensor:
    return Coils.adjoint(A, y)


def unconjugated(A: Coils, y: Tensor) -> Tensor:
    return (A.maps.to(y.dtype) * inverse(y)).sum(-3, keepdim=True)


def unsummed(A: Coils, y: Tensor) -> Tensor:
    return A.maps.to(y.dtype).conj() * inverse(y)


def in_place(A: Coils, x: Tensor) -> Tensor:
    return whole(A, x.mul_(2)) / 2


def drifting(A: Coils, x: Tensor) -> Tensor:
    return whole(A, x) * (1 + 1e-3 * torch.rand(()))


class Attribute(Coils):
    """Keeps what it needs beside the buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.maps.clone() if self.kept is None else self.kept
        return fourier(self.kept.to(x.dtype) * x)


class Shared(Coils):
    """A copy that holds the same tensors."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Coils:
        twin = Coils()
        twin._buffers["maps"] = self.maps
        return twin


class Truncated(Coils):
    """Drops the imaginary part on the way to double precision, as a plain module does."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return torch.nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]


def solved_twice_shifted(A: Coils, rhs: Tensor, shift: Tensor, *args: Any, **kw: Any) -> Tensor:
    return LinearOperator.solve(A, rhs, 2 * shift, *args, **kw)


def shared_shift(A: Coils, rhs: Tensor, shift: Tensor, *args: Any, **kw: Any) -> Tensor:
    return LinearOperator.solve(A, rhs, float(torch.as_tensor(shift).mean()), *args, **kw)


# the row that has to catch the fault; others may catch it too
FAULTS: dict[str, tuple[str, Callable[[], Operator]]] = {
    "no conjugate": ("adjoint", broken(adjoint=unconjugated)),
    "no sum over coils": ("shape", broken(adjoint=unsummed)),
    "mean for sum": ("adjoint", broken(adjoint=lambda A, y: pulled(A, y) / 3)),
    "affine": ("homogeneity", broken(forward=lambda A, x: whole(A, x) + 1e-7)),
    "wrong normal": ("normal", broken(normal=lambda A, x: 1.001 * pulled(A, whole(A, x)))),
    "in place": ("input untouched", broken(forward=in_place)),
    "coupled batch": ("items apart", broken(
        forward=lambda A, x: whole(A, x - x.sum(0, keepdim=True) / 7))),
    "half the graph, by differences": ("gradcheck", broken(
        forward=lambda A, x: whole(A, x / 2 + x.detach() / 2))),
    "half the graph": ("gradient", broken(
        forward=lambda A, x: whole(A, x / 2 + x.detach() / 2))),
    "real output": ("dtype", broken(forward=lambda A, x: whole(A, x).real)),
    # beyond the nine
    "adjoint slightly off": ("adjoint", broken(adjoint=lambda A, y: pulled(A, y) * (1 + 1e-4))),
    "absolute epsilon": ("homogeneity", broken(
        forward=lambda A, x: whole(A, x * x.abs() / (x.abs() + 1e-8)))),
    "threshold": ("additivity", broken(
        forward=lambda A, x: whole(A, torch.where(x.abs() > 1e-7, x, 0)))),
    "conjugating": ("homogeneity", broken(forward=lambda A, x: whole(A, x.conj()))),
    "batch scaled by its norm": ("items apart", broken(
        forward=lambda A, x: whole(A, x) * (1 + 1e-3 / (1 + x.abs().max())))),
    "always single": ("dtype", broken(forward=lambda A, x: whole(A, x.to(torch.complex64)))),
    "noise inside": ("repeatable", broken(forward=drifting)),
    "wrong vjp": ("vjp", broken(vjp=lambda A, x, v: pulled(A, v) + x)),
    "wrong solve": ("solve", broken(solve=solved_twice_shifted)),
    "one shift for all": ("solve", broken(solve=shared_shift)),
    "stale cache": ("state_dict", Attribute),
    "lost imaginary part": (".to()", Truncated),
    "one copy for all": ("deepcopy", Shared),
    "raises": ("shape", broken(adjoint=lambda A, y: A.absent(y))),
}


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault: str) -> None:
    row, build = FAULTS[fault]
    report = check(build())
    failed = {r.name: r for r in report.rows if not r.passed}
    assert row in failed, str(report)
    assert failed[row].advice
    assert not report.passed


def test_faults_of_nonlinear_are_caught() -> None:
    wrong = from_nonlinear(lambda x: x**2, lambda x, v: x * v, domain=REAL, range=REAL)
    coupled = from_nonlinear(lambda x: x**2 / x.abs().max(), domain=REAL, range=REAL)
    for A, row in [(wrong, "vjp by differences"), (coupled, "items apart")]:
        assert row in {r.name for r in check(A).rows if not r.passed}


@pytest.mark.parametrize("forward", [
    lambda x: x.detach().clone(), lambda x: torch.from_numpy(x.numpy().copy())])
def test_no_gradient_at_all_is_a_note(forward: Callable[[Tensor], Tensor]) -> None:
    A = from_functions(forward, lambda y: y.clone(), domain=REAL, range=REAL)
    report = check(A)
    assert report.passed, str(report)
    (row,) = [r for r in report.rows if r.name == "gradient"]
    assert row.advice == "not differentiable: fine for samplers without gradients"


def test_report_measures_norm_and_time() -> None:
    blurred = check(Blur(gaussian_kernel(1.0), Space((1, 32, 32))))
    assert blurred.norm == pytest.approx(1, rel=1e-2)  # approached from below
    assert check(stack(Identity(REAL), Scale(2.0, REAL))).norm == pytest.approx(5**0.5, rel=1e-5)
    assert check(0 * Identity(REAL)).norm == 0
    assert blurred.milliseconds > 0
    # the transform of 32 x 32 pixels and its product, at least; a few of them at most
    assert 32 * 17 * 8 < blurred.peak_bytes < 10 * 32 * 17 * 8


def test_report_counts_what_is_held_at_once() -> None:
    space = Space((1, 64, 64))
    one = 64 * 64 * 4

    def freed(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 1
        return x

    def held(x: Tensor) -> Tensor:
        return torch.stack([x + i for i in range(5)]).sum(0)

    def in_numpy(x: Tensor) -> Tensor:
        return torch.from_numpy(np.ones((200, 64, 64), np.float32)[0] * x.numpy())

    counts = [check(from_nonlinear(f, lambda _, v: v, domain=space, range=space)).peak_bytes
              for f in (freed, held, in_numpy)]
    assert counts[0] == 2 * one
    assert counts[1] == 10 * one
    assert counts[2] > 200 * one


def test_report_is_an_aligned_table() -> None:
    report = check(broken(adjoint=unconjugated)())
    lines = str(report).splitlines()
    assert "Broken[(1, 6, 9) -> (3, 6, 9)]" in lines[0]
    assert "linear: yes" in lines[0]
    assert len(lines) == 1 + len(report.rows)
    columns = {line.index(row.name) for line, row in zip(lines[1:], report.rows, strict=True)}
    assert len(columns) == 1
    (failed,) = [line for line in lines if line.startswith("  FAIL  adjoint")]
    assert "conjugate" in failed
    assert "scale" in failed  # in which case it was worst
    with pytest.raises(ValueError, match="FAIL  adjoint"):
        report.raise_if_failed()
    with pytest.raises(AttributeError):
        report.linear = False  # type: ignore[misc]


def test_check_leaves_the_operator_alone_and_repeats() -> None:
    A = Coils()
    before = {name: t.clone() for name, t in A.state_dict().items()}
    one, two = check(A), check(A)
    assert one.rows == two.rows
    assert check(A, seed=5).rows != one.rows
    assert all(torch.equal(before[name], t) for name, t in A.state_dict().items())
    with torch.inference_mode():
        assert check(A).passed


def test_check_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(TypeError, match="want an Operator, got function"):
        check(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one batch"):
        check(Identity(REAL), batches=())
    with pytest.raises(ValueError, match="float32 and float64"):
        check(Identity(REAL), precisions=(torch.float16,))
