"""The algebra of operators: what folds, what is refused, what moves."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recon.operators import (
    Blur,
    Identity,
    LinearOperator,
    Masking,
    Matrix,
    Operator,
    Scale,
    Space,
    from_functions,
    from_nonlinear,
    stack,
)
from recon.operators.algebra import Zero
from recon.operators.linear_map import Map

REAL, COMPLEX = Space((1, 5, 6)), Space((1, 5, 6), torch.complex64)
TALL = Space((3, 5, 6), torch.complex64)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Coils(LinearOperator):
    maps: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__(COMPLEX, TALL)
        self.register_buffer("maps", noise(*TALL.shape, seed=seed, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.maps * x

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * y).sum(-3, keepdim=True)


def blur(seed: int = 3) -> Blur:
    return Blur(noise(3, 3, seed=seed, dtype=torch.complex64), COMPLEX)


def to_complex() -> LinearOperator:
    """Real in, complex out: linear over the reals only, its adjoint takes a real part."""
    return from_functions(lambda x: x * (1 + 2j), domain=REAL, range=COMPLEX)


def same(A: LinearOperator, forward: Callable[[Tensor], Tensor],
         adjoint: Callable[[Tensor], Tensor]) -> None:
    x, y = (s.randn(2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
            for s in (A.domain, A.range))
    assert torch.allclose(A(x), forward(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(A.adjoint(y), adjoint(y), rtol=1e-12, atol=1e-12)
    assert torch.allclose(A.H(y), adjoint(y), rtol=1e-12, atol=1e-12)
    assert torch.allclose(A.H.H(x), forward(x), rtol=1e-12, atol=1e-12)
    assert torch.allclose(A.normal(x), adjoint(forward(x)), rtol=1e-11, atol=1e-11)
    assert (A.H.domain, A.H.range) == (A.range, A.domain)


def test_neutral_elements_fold_away() -> None:
    A, one, zero = Coils(), Identity(COMPLEX), 0 * Coils()
    assert isinstance(zero, Zero)
    assert A @ one is A
    assert Identity(TALL) @ A is A
    assert 1 * A is A
    assert A + zero is A
    assert zero + A is A
    assert A - zero is A
    assert A.H.H is A
    assert stack(A) is A
    for B in (0 * A, A @ (0 * one), (0 * Identity(TALL)) @ A, 0 * zero, 5 * zero, zero.H.H,
              (0 * A.H).H):
        assert isinstance(B, Zero)
        assert (B.domain, B.range) == (A.domain, A.range)
    assert isinstance(zero.H, Zero)
    assert isinstance(one - one, Zero)


def test_multiples_of_the_identity_stay_scales() -> None:
    one = Identity(COMPLEX)
    for A, factor in [(2 * one + 1j * one, 2 + 1j), (2j * one @ (3 * one), 6j),
                      ((2 + 1j) * one, 2 + 1j), ((2j * one).H, -2j), (-one, -1)]:
        assert isinstance(A, Scale)
        assert A.factor == factor
    assert isinstance(0.5 * (2 * one), Identity)
    A = Coils()
    assert -1j * (1j * A) is A
    assert isinstance((2 * one).H, Scale)


def test_products() -> None:
    A, B = Coils(), blur()
    same(A @ B, lambda x: A(B(x)), lambda y: B.adjoint(A.adjoint(y)))
    same((A @ B).H, lambda y: B.adjoint(A.adjoint(y)), lambda x: A(B(x)))
    same(A.H @ A, lambda x: A.adjoint(A(x)), lambda x: A.adjoint(A(x)))
    M = Masking(noise(5, 6, dtype=torch.float32) > 0, COMPLEX)
    same((A @ B) @ M, lambda x: A(B(M(x))), lambda y: M(B.adjoint(A.adjoint(y))))
    same(A @ (B @ M), lambda x: A(B(M(x))), lambda y: M(B.adjoint(A.adjoint(y))))


def test_adjoint_of_a_product_is_the_product_of_adjoints() -> None:
    A, B = Coils(), blur()
    y = noise(2, *TALL.shape)
    assert torch.equal((A @ B).H(y), (B.H @ A.H)(y))


def test_sums() -> None:
    A, B, C = Coils(), Coils(1), Coils(2)
    same(A + B, lambda x: A(x) + B(x), lambda y: A.adjoint(y) + B.adjoint(y))
    same(A - B, lambda x: A(x) - B(x), lambda y: A.adjoint(y) - B.adjoint(y))
    same(A + B + C, lambda x: A(x) + B(x) + C(x),
         lambda y: A.adjoint(y) + B.adjoint(y) + C.adjoint(y))
    same(A + (B - 2j * C), lambda x: A(x) + B(x) - 2j * C(x),
         lambda y: A.adjoint(y) + B.adjoint(y) + 2j * C.adjoint(y))
    same(A + A, lambda x: 2 * A(x), lambda y: 2 * A.adjoint(y))


def test_multiples() -> None:
    A = Coils()
    for B in ((2 - 3j) * A, A * (2 - 3j), (1 - 1.5j) * (2 * A), A @ Scale(2 - 3j, COMPLEX)):
        same(B, lambda x: (2 - 3j) * A(x), lambda y: (2 + 3j) * A.adjoint(y))
    same(-A, lambda x: -A(x), lambda y: -A.adjoint(y))


def test_complex_factor_does_not_pass_a_real_part() -> None:
    A = to_complex()
    same((1j * A), lambda x: 1j * A(x), lambda y: A.adjoint(-1j * y))
    x = noise(*COMPLEX.shape)
    turned = A.H @ Scale(1j, COMPLEX)  # Re(A^H (i x)) is not i Re(A^H x)
    assert torch.allclose(turned(x), A.adjoint(1j * x))
    both = (A @ A.H) @ Scale(1j, COMPLEX)
    assert torch.allclose(both(x), A(A.adjoint(1j * x)))
    with pytest.raises(TypeError, match="complex factor 1j needs a complex space"):
        1j * A.H


def test_multiples_keep_the_shortcuts() -> None:
    A = 3j * blur()
    rhs = noise(2, *COMPLEX.shape)
    assert torch.allclose(A.solve(rhs, 0.5, max_iter=0), A.solve_cg(rhs, 0.5, max_iter=200).x,
                          atol=1e-6)


def test_stack() -> None:
    A, B, C = Coils(), blur(), Coils(1)
    S = stack(A, B, C)
    assert S.range == Space((7, 5, 6), torch.complex64)

    def adjoint(y: Tensor) -> Tensor:
        a, b, c = torch.split(y, [3, 1, 3], dim=-3)
        return A.adjoint(a) + B.adjoint(b) + C.adjoint(c)

    same(S, lambda x: torch.cat([A(x), B(x), C(x)], -3), adjoint)


def test_nonlinear_products() -> None:
    power = from_nonlinear(lambda x: x.abs().square(), domain=TALL, range=Space(TALL.shape))
    A = Coils()
    N = power @ A
    assert isinstance(N, Operator)
    assert not isinstance(N, LinearOperator)
    x = noise(2, *COMPLEX.shape)
    v = noise(2, *TALL.shape, dtype=torch.float64)
    assert torch.allclose(N(x), A(x).abs().square())
    assert torch.allclose(N.vjp(x, v), A.adjoint(2 * A(x) * v))
    written = from_nonlinear(lambda x: x.abs().square(), lambda x, v: 2 * x * v,
                             domain=TALL, range=Space(TALL.shape))
    assert torch.allclose((written @ A).vjp(x, v), N.vjp(x, v))
    after = Scale(3.0, Space(TALL.shape)) @ N
    assert torch.allclose(after.vjp(x, v), 3 * N.vjp(x, v))
    with torch.inference_mode():  # autograd under inference_mode, on tensors made there
        assert torch.allclose(N.vjp(1 * x, 1 * v), A.adjoint(2 * A(x) * v))


def test_adjoint_by_autograd_works_in_every_mode() -> None:
    A = from_functions(lambda x: torch.fft.fft2(x), domain=COMPLEX, range=COMPLEX)
    y = noise(2, *COMPLEX.shape)
    want = torch.fft.ifft2(y, norm="forward")
    assert torch.allclose(A.adjoint(y), want)
    with torch.no_grad():
        assert not A.adjoint(y).requires_grad
    with torch.inference_mode():
        assert torch.allclose(A.adjoint(1 * y), want)
    v = noise(2, *COMPLEX.shape, seed=1)
    y.requires_grad_()
    (pull,) = torch.autograd.grad(A.adjoint(y), y, v)  # the adjoint of the adjoint
    assert torch.allclose(pull, A(v))
    assert torch.equal(A.adjoint(y=y), A.adjoint(y))


def test_one_image_seen_through_each_of_three_masks() -> None:
    masks, kernels = noise(3, 1, 5, 6).real > 0, noise(3, 1, 3, 3, seed=1).real
    M, B, one = Masking(masks, REAL), Blur(kernels, REAL), Identity(REAL)
    x = noise(1, 5, 6, seed=2).real
    three = x.expand(3, -1, -1, -1)
    shift = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for A in (M + 2 * one, B - M, stack(M, one), stack(one, M, B), M @ B, B):
        assert torch.equal(A(x), A(three))
        assert torch.equal(A.normal(x), A.normal(three))
        for start, wide in ((None, None), (x, three)):
            assert torch.allclose(A.solve_cg(x, shift, start).x, A.solve_cg(three, shift, wide).x)
        assert torch.allclose(A.solve(x[None], 0.5), A.solve(three, 0.5))
    assert torch.allclose(one.solve_cg(x, shift).x, one.solve(x, shift))


class Learned(LinearOperator):
    """A matrix that is a parameter; its adjoint is found by autograd."""

    def __init__(self) -> None:
        super().__init__(Space((1, 6)), Space((1, 4)))
        self.layer = nn.Linear(6, 4, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_gradients_of_the_operator_itself() -> None:
    x, y = noise(3, 1, 6, dtype=torch.float64), noise(3, 1, 4, dtype=torch.float64, seed=1)

    def loss(forward: Map, adjoint: Map) -> Tensor:
        misfit: Tensor = (adjoint(y) - x).square().sum() + (forward(x) - y).square().sum()
        return misfit

    learned = Learned()
    W = learned.layer.weight
    matrix = Matrix(W.detach().clone().requires_grad_(), learned.domain, learned.range)
    (want,) = torch.autograd.grad(loss(lambda x: x @ W.T, lambda y: y @ W), W)
    (got,) = torch.autograd.grad(loss(learned, learned.adjoint), W)
    assert torch.allclose(got, want)
    (of_matrix,) = torch.autograd.grad(loss(matrix, matrix.adjoint), matrix.matrix)
    assert torch.allclose(of_matrix, want)
    (half,) = torch.autograd.grad(loss(learned, lambda y: learned.adjoint(y).detach()), W)
    assert not torch.allclose(half, want)
    (pulled,) = torch.autograd.grad(matrix(x.requires_grad_()), x, y)
    assert torch.allclose(pulled, y @ W)


def test_adjoint_by_autograd_keeps_no_graph_without_need() -> None:
    for A in (from_functions(lambda x: torch.fft.fft2(x), domain=COMPLEX, range=COMPLEX),
              from_functions(lambda x: x.cumsum(-1) * torch.arange(6), domain=COMPLEX,
                             range=COMPLEX)):
        assert A.adjoint(noise(2, *COMPLEX.shape)).grad_fn is None
    learned = Learned()
    assert learned.requires_grad_(False).adjoint(
        noise(1, 4, dtype=torch.float64)).grad_fn is None
    # whose own rules hold on to their argument, so that a graph would be kept by every product
    image, kernel = Space((1, 6, 6)), torch.ones(1, 1, 3, 3) / 9
    frozen = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    grid = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 1, 6, 6], False)
    for forward in (lambda x: torch.nn.functional.conv2d(x, kernel, padding=1), frozen,
                    lambda x: torch.nn.functional.grid_sample(
                        x, grid.expand(len(x), -1, -1, -1), align_corners=False)):
        warped = from_functions(forward, domain=image, range=image)
        y = noise(2, *image.shape).real.float()
        assert not warped.adjoint(y).requires_grad
        assert not warped.solve(y, 0.1, max_iter=2).requires_grad
        assert warped.adjoint(y.requires_grad_()).requires_grad


def test_items_that_are_something_else_to_a_subclass() -> None:
    class Counted(LinearOperator):
        def __init__(self) -> None:
            super().__init__(COMPLEX, COMPLEX)
            self.items = 4  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

        def adjoint(self, y: Tensor) -> Tensor:
            return 2 * y

    A, x = Counted(), noise(3, *COMPLEX.shape)
    assert torch.allclose(A.solve(x, 0.0), x / 4)
    assert A(x[:0]).shape == x[:0].shape
    assert (A @ A).items is None


def test_double_precision_keeps_imaginary_parts() -> None:
    A = (Coils() @ blur()).to(torch.float64)
    buffers = dict(A.named_buffers())
    assert {t.dtype for t in buffers.values()} == {torch.complex128}
    want = {"outer.maps": Coils().maps, "inner.kernel": blur().kernel}
    assert all(torch.equal(buffers[k].to(torch.complex64), v) for k, v in want.items())
    assert (A.half().get_buffer("outer.maps")).dtype == torch.complex32


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_a_plain_module_would_lose_them() -> None:
    class Plain(nn.Module):
        maps: Tensor

    plain = Plain()
    plain.register_buffer("maps", Coils().maps.clone())
    assert not plain.to(torch.float64).maps.is_complex()  # why Operator moves them itself

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.operator = Coils()

    assert torch.equal(Holder().to(torch.float64).operator.maps.to(torch.complex64), Coils().maps)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_moves_refuse_a_complex_dtype() -> None:
    A = Masking(torch.ones(5, 6), COMPLEX)
    assert A.to(torch.float64).mask.dtype == torch.bool
    for B in (Coils(), Blur(noise(3, 3, dtype=torch.float32), REAL)):
        with pytest.raises(TypeError, match=r"want a real dtype, got .*complex128"):
            B.to(torch.complex128)


def test_copies_and_state() -> None:
    A = stack(Coils(), 2j * Coils(1) + Coils(2))
    x = noise(2, *COMPLEX.shape)
    twin = copy.deepcopy(A)
    assert torch.equal(twin(x), A(x))
    other = stack(Coils(5), 2j * Coils(6) + Coils(7))
    other.load_state_dict(A.state_dict())
    assert torch.equal(other(x), A(x))




ERRORS: dict[str, tuple[type[Exception], Callable[[], object]]] = {
    "A @ B: want one space between A and B": (ValueError, lambda: Coils() @ Coils()),
    "A @ B: .*complex64.*float32": (ValueError, lambda: Coils() @ Identity(REAL)),
    r"A \+ B: want one domain": (ValueError, lambda: Identity(REAL) + Identity(COMPLEX)),
    r"A \+ B: want one range": (ValueError, lambda: Coils() - Identity(COMPLEX)),
    "stack: want one domain": (ValueError, lambda: stack(Coils(), Identity(REAL))),
    "stack: want one range beyond its channels":
        (ValueError, lambda: stack(Identity(REAL), from_functions(
            lambda x: x[..., :3], domain=REAL, range=Space((1, 5, 3))))),
    "stack: want at least one operator": (ValueError, lambda: stack()),
    "stack: want linear operators, got _Nonlinear":
        (TypeError, lambda: stack(from_nonlinear(  # type: ignore[arg-type]
            torch.exp, domain=REAL, range=REAL))),
    "complex factor": (TypeError, lambda: Scale(1j, REAL)),
    r"unsupported operand type\(s\) for @": (TypeError, lambda: Coils() @ 3),
    r"unsupported operand type\(s\) for \+": (TypeError, lambda: Coils() + 3),
    r"unsupported operand type\(s\) for \*": (TypeError, lambda: Coils() * None),
    r"Coils\[\(1, 5, 6\) -> \(3, 5, 6\)\].forward: want \(\*batch, 1, 5, 6\), got \(3, 5, 6\)":
        (ValueError, lambda: Coils()(noise(3, 5, 6))),
    r"Coils.*adjoint: want \(\*batch, 3, 5, 6\), got \(1, 5, 6\)":
        (ValueError, lambda: Coils().adjoint(noise(1, 5, 6))),
    r"Coils.*adjoint: want .*got \(6,\)": (ValueError, lambda: Coils().adjoint(y=noise(6))),
    r"Coils.*normal: want .*got \(5, 6\)": (ValueError, lambda: Coils().normal(noise(5, 6))),
    "Coils.*forward: want a complex floating tensor, got torch.float64":
        (TypeError, lambda: Coils()(noise(1, 5, 6, dtype=torch.float64))),
    "want a real floating tensor, got torch.int64":
        (TypeError, lambda: Identity(REAL)(torch.ones(1, 5, 6, dtype=torch.int64))),
    "has no forward": (TypeError, lambda: LinearOperator(REAL, REAL)(torch.ones(1, 5, 6))),
    "want a mask of zeros and ones": (ValueError, lambda: Masking(torch.full((5, 6), 0.5), REAL)),
    r"mask \(6, 5\) does not fit": (ValueError, lambda: Masking(torch.ones(6, 5), REAL)),
    "from_functions: want functions of a tensor, got float":
        (TypeError, lambda: from_functions(2.0, domain=REAL, range=REAL)),  # type: ignore[arg-type]
    r"is an operator already; its adjoint as one is A.H":
        (TypeError, lambda: from_functions(Coils(), domain=COMPLEX, range=TALL)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_refuses(message: str) -> None:
    kind, call = ERRORS[message]
    with pytest.raises(kind, match=message):
        call()


def test_functions_that_are_modules_move_along() -> None:
    layer = nn.Conv2d(1, 2, 3, bias=False)
    A = from_functions(layer, domain=REAL, range=Space((2, 3, 4)))
    assert list(A.state_dict()) == ["_forward.weight"]
    x = noise(2, *REAL.shape, dtype=torch.float64)
    assert A.to(torch.float64)(x).dtype == torch.float64
