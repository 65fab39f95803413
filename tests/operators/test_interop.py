"""Other libraries' operators as ours and back: values, adjoints, dtypes, batches, gradients."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

from recon.operators import (
    Blur,
    CartesianMRI,
    Clipping,
    Downsampling,
    LinearOperator,
    Masking,
    Operator,
    Space,
    check,
    from_deepinv,
    from_nonlinear,
    from_numpy,
    from_odl,
    from_scipy,
    from_sigpy,
    to_deepinv,
    to_odl,
)

F64, C128 = torch.float64, torch.complex128


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    assert got.shape == want.shape
    assert got.is_complex() == want.is_complex()
    return float((got - want).abs().max() / want.abs().max())


# NumPy

REAL, COMPLEX = Space((1, 4, 5)), Space((1, 4, 5), torch.complex64)


def summed(x: Any) -> Any:
    return np.cumsum(x, -1)


def summed_back(y: Any) -> Any:
    return np.cumsum(y[..., ::-1], -1)[..., ::-1]


@pytest.mark.parametrize("batched", [False, True])
def test_numpy_functions_pass_the_contract_and_gradients(batched: bool) -> None:
    A = from_numpy(summed, summed_back, domain=REAL, range=REAL, batched=batched)
    check(A).raise_if_failed()
    x, v = noise(2, 3, 1, 4, 5).requires_grad_(), noise(2, 3, 1, 4, 5, seed=1)
    assert relative(A(x).detach(), x.detach().cumsum(-1)) < 1e-15
    (pull,) = torch.autograd.grad(A(x), x, v)
    assert torch.equal(pull, A.adjoint(v))
    assert torch.autograd.gradgradcheck(A, (x,), fast_mode=True)
    assert A(x[:0]).shape == (0, 3, 1, 4, 5)


def test_numpy_from_real_to_complex() -> None:
    A = from_numpy(lambda x: np.fft.fft2(x, norm="ortho"), lambda y: np.fft.ifft2(y, norm="ortho"),
                   domain=REAL, range=COMPLEX)
    check(A, precisions=(F64,)).raise_if_failed()
    assert relative(A(noise(1, 4, 5)), torch.fft.fft2(noise(1, 4, 5), norm="ortho")) < 1e-15


def test_numpy_functions_may_write_into_what_they_get() -> None:
    def careless(x: Any) -> Any:
        x *= 2
        return x

    A, x = from_numpy(careless, careless, domain=REAL, range=REAL), noise(2, 1, 4, 5)
    before = x.clone()
    assert torch.equal(A(x), 2 * before)
    assert torch.equal(x, before)


@pytest.mark.parametrize("batched", [False, True])
def test_numpy_functions_may_return_one_array_again_and_again(batched: bool) -> None:
    shape = (3, 1, 4, 5) if batched else (1, 4, 5)
    out = np.empty(shape)

    def doubled(x: Any) -> Any:
        return np.multiply(x, 2, out=out)

    A = from_numpy(doubled, doubled, domain=REAL, range=REAL, batched=batched)
    x, other = noise(3, 1, 4, 5), noise(3, 1, 4, 5, seed=1)
    y, pulled = A(x), A.adjoint(x)
    A(other)
    assert torch.equal(y, 2 * x)
    assert torch.equal(pulled, 2 * x)


def test_wrong_adjoint_in_numpy_is_found() -> None:
    A = from_numpy(summed, summed, domain=REAL, range=REAL)
    failed = {row.name for row in check(A).rows if not row.passed}
    assert {"adjoint", "gradcheck"} <= failed


def test_numpy_refusals() -> None:
    with pytest.raises(TypeError, match="want the adjoint, which NumPy cannot find"):
        from_numpy(summed, None, domain=REAL, range=REAL)  # type: ignore[arg-type]
    short = from_numpy(lambda x: x[..., 1:], summed_back, domain=REAL, range=REAL)
    with pytest.raises(ValueError, match=r"forward: want an array \(1, 4, 5\), got \(1, 4, 4\)"):
        short(noise(2, 1, 4, 5))
    turned = from_numpy(lambda x: 1j * x, summed_back, domain=REAL, range=REAL)
    with pytest.raises(TypeError, match="want real numbers in a real space, got complex128"):
        turned(noise(1, 4, 5))


# SciPy

def sparse(m: int, n: int, dtype: torch.dtype = F64) -> Any:
    dense = noise(m, n, dtype=dtype)
    return scipy.sparse.csr_array((dense * (noise(m, n, seed=1) > 0.3)).numpy())


def as_operator(matrix: Any) -> ScipyOperator:
    return ScipyOperator(matrix.shape, matvec=lambda v: matrix @ v,
                         rmatvec=lambda v: matrix.conj().T @ v, dtype=matrix.dtype)


@pytest.mark.parametrize("form", [lambda m: m, lambda m: m.tocoo(), lambda m: m.tocsc(),
                                  lambda m: m.toarray(), as_operator])
@pytest.mark.parametrize(("domain", "measured", "kind"), [
    (Space((1, 4, 5)), Space((2, 3)), F64),
    (Space((1, 4, 5), torch.complex64), Space((2, 3), torch.complex64), C128),
    (Space((1, 4, 5), torch.complex64), Space((2, 3), torch.complex64), F64),
    (Space((1, 4, 5)), Space((2, 3), torch.complex64), C128)])
def test_scipy_matrices(form: Callable[[Any], Any], domain: Space, measured: Space,
                        kind: torch.dtype) -> None:
    M = sparse(6, 20, kind)
    A = from_scipy(form(M), domain, measured)
    report = check(A, precisions=(F64,) if isinstance(form(M), ScipyOperator) else (
        torch.float32, F64))
    assert report.passed, str(report)
    x = noise(3, *domain.shape, dtype=C128 if domain.is_complex else F64)
    want = x.reshape(3, -1).numpy() @ M.toarray().T
    want = want.astype(np.complex128) if measured.is_complex else want
    assert relative(A(x), want.reshape(3, *measured.shape)) < 1e-14
    unconjugated = from_scipy(form(M.conj()), domain, measured)
    assert not kind.is_complex or relative(A(x), unconjugated(x)) > 0.1


def test_sparse_buffers_are_copied_saved_and_moved() -> None:
    A, B = from_scipy(sparse(6, 20)), from_scipy(2 * sparse(6, 20))
    x = noise(1, 20)
    wanted = B(x)
    A(x)
    twin = copy.deepcopy(A)
    assert set(twin.state_dict()) == {f"sparse.{n}{t}" for n in ("start", "column", "value")
                                      for t in ("", "_t")}
    assert twin.sparse.start.dtype == twin.sparse.column.dtype == torch.int32  # type: ignore[union-attr]
    twin.load_state_dict(B.state_dict())
    assert torch.equal(twin(x), wanted)  # not what was built before
    assert not torch.equal(A(x), wanted)
    assert A(x.float()).dtype == torch.float32
    (pull,) = torch.autograd.grad(A(x.requires_grad_()).square().sum(), x)
    assert relative(pull, 2 * A.normal(x).detach()) < 1e-14


def test_scipy_refusals() -> None:
    with pytest.raises(TypeError, match=r"want a sparse matrix, .* got list"):
        from_scipy([[1.0]])
    with pytest.raises(ValueError, match=r"want a domain of 20 numbers .*\(1, 4, 4\)"):
        from_scipy(sparse(6, 20), Space((1, 4, 4)))
    with pytest.raises(ValueError, match="want finite entries"):
        from_scipy(np.array([[np.nan]]))
    with pytest.raises(TypeError, match="a complex matrix wants a complex range"):
        from_scipy(sparse(6, 20, C128), Space((1, 20)), Space((1, 6)))
    with pytest.raises(TypeError, match="a complex domain wants a complex range"):
        from_scipy(sparse(6, 20), Space((1, 20), torch.complex64), Space((1, 6)))


# ODL

odl = pytest.importorskip("odl")


def test_odl_ray_transform_agrees_and_is_matched_but_for_its_weights() -> None:
    space = odl.uniform_discr([-1, -1], [1, 1], (16, 16), dtype="float32")
    tomo = odl.applications.tomo
    geometry = tomo.parallel_beam_geometry(space, num_angles=12)
    ray = tomo.RayTransform(space, geometry, impl="skimage")
    A = from_odl(ray)
    x = noise(2, 3, 1, 16, 16, dtype=torch.float32)
    want = np.stack([ray(space.element(item[0].numpy())).asarray() for item in x.flatten(0, 1)])
    assert relative(A(x).flatten(0, 2), want) < 1e-6
    assert A(x).shape == (2, 3, *A.range.shape)
    # scikit-image's back-projection is no adjoint of its projection, only near to it
    report = check(A, precisions=(torch.float32,), batches=((2,),))
    failed = {row.name: row.value for row in report.rows if not row.passed}
    assert "adjoint" in failed
    assert failed["adjoint"] < 0.1  # without the weights the two would differ many times over
    assert isinstance(A, LinearOperator)
    v = noise(1, *A.range.shape, dtype=torch.float32)
    y = A(A.adjoint(v))
    scale = float(A.adjoint(v).square().sum() / (v * y).sum())
    assert scale == pytest.approx(1, abs=0.1)


class Weighted(odl.Operator):  # type: ignore[misc, name-defined]
    """A matrix, with the adjoint of its spaces' inner products (odl.MatrixOperator leaves the
    weights out)."""

    def __init__(self, matrix: Any, source: Any, target: Any) -> None:
        super().__init__(source, target, linear=True)
        self.matrix = matrix

    def _call(self, x: Any) -> Any:
        return self.matrix @ x.asarray()

    @property
    def adjoint(self) -> Any:
        w_x, w_y = self.domain.weighting, self.range.weighting
        x = w_x.array if hasattr(w_x, "array") else np.full(self.domain.size, w_x.const)
        y = w_y.array if hasattr(w_y, "array") else np.full(self.range.size, w_y.const)
        return Weighted(self.matrix.T * y / x[:, None], self.range, self.domain)


def odl_operators() -> dict[str, Any]:
    square = odl.uniform_discr([0, 0], [1, 2], (5, 4))
    nodes = odl.uniform_discr([0, 0], [1, 2], (5, 4), nodes_on_bdry=True)
    plane = odl.rn((5, 4))
    weights = odl.rn(6, weighting=np.array([1.0, 2, 3, 4, 5, 6]))
    matrix = noise(3, 6).numpy()
    return {
        "gradient": odl.Gradient(square),
        "divergence": odl.Divergence(range=square),
        "gradient, nodes on the edge": odl.Gradient(nodes),
        "from one weight to another": odl.ScalingOperator(square, 3.0),
        "matrix of weighted numbers": Weighted(matrix, weights, odl.rn(3, weighting=0.5)),
        "scaling": odl.ScalingOperator(plane, -2.5),
        "complex": odl.ScalingOperator(odl.cn((5, 4)), 2 - 1j),
    }


@pytest.mark.parametrize("name", ["gradient", "divergence", "gradient, nodes on the edge",
                                  "from one weight to another", "matrix of weighted numbers",
                                  "scaling", "complex"])
def test_odl_operators_keep_the_contract(name: str) -> None:
    theirs = odl_operators()[name]
    A = from_odl(theirs)
    report = check(A, precisions=(F64,), batches=((), (2,)))
    assert report.passed, str(report)
    # and back: values, and the adjoint of the weighted inner products
    back = to_odl(A, theirs.domain, theirs.range)
    x, y = theirs.domain.one() * 2, theirs.range.one() * 3
    assert float((back(x) - theirs(x)).norm()) <= 1e-12 * float(theirs(x).norm())
    want = theirs.adjoint(y)
    assert float((back.adjoint(y) - want).norm()) <= 1e-12 * float(want.norm())
    assert float((back.adjoint.adjoint(x) - theirs(x)).norm()) <= 1e-12 * float(theirs(x).norm())


def test_odl_weights_matter() -> None:
    theirs = odl_operators()["matrix of weighted numbers"]
    A = from_odl(theirs)
    assert isinstance(A, LinearOperator)
    v = noise(1, 3)
    plain = torch.from_numpy(theirs.adjoint(v[0].numpy()).asarray())
    assert relative(A.adjoint(v)[0], plain) > 0.1
    assert relative(A.adjoint(v)[0], v[0] @ torch.from_numpy(theirs.matrix)) < 1e-14


def test_nonlinear_odl_operator_has_a_vjp() -> None:
    space = odl.uniform_discr(0, 1, 8)
    A = from_odl(odl.PowerOperator(space, 3))
    assert not isinstance(A, LinearOperator)
    check(A, precisions=(F64,)).raise_if_failed()
    x, v = noise(2, 1, 8), noise(2, 1, 8, seed=1)
    assert relative(A.vjp(x, v), 3 * x**2 * v) < 1e-13
    (pull,) = torch.autograd.grad(A(x.requires_grad_()), x, v)
    assert relative(pull, A.vjp(x.detach(), v)) < 1e-15


@pytest.mark.parametrize("A", [
    Blur(noise(3, 3), Space((1, 5, 6), F64)),
    Downsampling(Space((1, 6, 4)), 2),
    CartesianMRI((4, 6), torch.tensor([1, 0, 1, 1, 0, 1]), noise(3, 4, 6, dtype=torch.complex64)),
    from_nonlinear(lambda x: x**2, domain=Space((1, 4), F64), range=Space((1, 4), F64)),
], ids=["blur", "downsampling", "coils", "square"])
def test_odl_round_trip(A: Operator) -> None:
    theirs = to_odl(A)
    assert theirs.is_linear == isinstance(A, LinearOperator)
    back = from_odl(theirs)
    kind = A.domain.dtype
    x = noise(2, *A.domain.shape, dtype=kind)
    v = noise(2, *A.range.shape, dtype=A.range.dtype, seed=1)
    y = back(x.view(2, *back.domain.shape))
    assert y.dtype == A(x).dtype
    assert relative(y.view(A(x).shape), A(x)) < 1e-6
    pull = back.vjp(x.view(2, *back.domain.shape), v.view(2, *back.range.shape))
    assert relative(pull.view(x.shape), A.vjp(x, v)) < 1e-6
    if not isinstance(A, LinearOperator):
        point = theirs.domain.element(x[0].numpy())
        pushed = theirs.derivative(point)(theirs.domain.one()).asarray()
        assert relative(torch.from_numpy(pushed), 2 * x[0]) < 1e-14


def test_odl_refusals() -> None:
    space = odl.rn(4)
    with pytest.raises(TypeError, match=r"want an odl\.Operator, got int"):
        from_odl(3)
    with pytest.raises(TypeError, match="want a range of arrays"):
        from_odl(odl.functionals.L2Norm(space) if hasattr(odl, "functionals")
                 else odl.solvers.L2Norm(space))
    with pytest.raises(TypeError, match="inner product"):
        from_odl(odl.ScalingOperator(odl.rn(4, exponent=1), 2.0))
    with pytest.raises(ValueError, match="to_odl: want a domain of"):
        to_odl(Masking(torch.ones(4), Space((1, 4))), domain=odl.rn(5))


# deepinv

def deepinv_physics() -> dict[str, tuple[Callable[[Any], Any], Space]]:
    real = Space((1, 8, 9))
    mask = (noise(1, 1, 8, 9) > 0).float()
    maps = noise(1, 3, 8, 9, dtype=torch.complex64)
    return {
        "inpainting": (lambda d: d.physics.Inpainting((1, 8, 9), mask=mask[0]), real),
        "blur": (lambda d: d.physics.Blur(noise(1, 1, 3, 3).float(), padding="reflect"), real),
        "blur by FFT": (lambda d: d.physics.BlurFFT((1, 8, 9), noise(1, 1, 3, 3).float()), real),
        "downsampling": (lambda d: d.physics.Downsampling((1, 8, 8), "bicubic", 2),
                         Space((1, 8, 8))),
        "MRI": (lambda d: d.physics.MRI(mask=mask, img_size=(2, 8, 9)),
                Space((1, 8, 9), torch.complex64)),
        "MRI of coils": (lambda d: d.physics.MultiCoilMRI(mask=mask, coil_maps=maps,
                                                          img_size=(2, 8, 9)),
                         Space((1, 8, 9), torch.complex64)),
        "MRI in two real channels": (lambda d: d.physics.MRI(mask=mask, img_size=(2, 8, 9)),
                                     Space((2, 8, 9))),
    }


@pytest.mark.parametrize("name", deepinv_physics())
def test_deepinv_physics_keep_the_contract(name: str) -> None:
    deepinv = pytest.importorskip("deepinv")
    build, domain = deepinv_physics()[name]
    physics = build(deepinv)
    A = from_deepinv(physics, domain)
    report = check(A, batches=((1,), (2, 2)))
    assert report.passed, str(report)
    x = noise(2, *domain.shape, dtype=domain.dtype)
    theirs = x if not domain.is_complex else torch.view_as_real(x[:, 0]).movedim(-1, 1)
    want = physics.A(theirs)
    got = A(x)
    if domain.is_complex:
        want = torch.complex(*want.unbind(1))
        got = got.reshape(want.shape)
    assert relative(got, want) < 1e-6
    assert relative(A(x.to(C128 if domain.is_complex else F64)).to(x.dtype), A(x)) < 1e-5


def test_deepinv_shapes_of_complex_measurements() -> None:
    deepinv = pytest.importorskip("deepinv")
    shapes = {name: from_deepinv(build(deepinv), domain).range for name, (build, domain) in
              deepinv_physics().items() if name.startswith("MRI")}
    assert shapes["MRI"] == Space((1, 8, 9), torch.complex64)
    assert shapes["MRI of coils"] == Space((3, 8, 9), torch.complex64)
    assert shapes["MRI in two real channels"] == Space((2, 8, 9))


@pytest.mark.parametrize("complex_as", ["channels", "dtype"])
@pytest.mark.parametrize("name", ["blur", "coils", "single coil", "downsampling", "clipping",
                                  "complex square"])
def test_deepinv_round_trip(name: str, complex_as: Any) -> None:
    deepinv = pytest.importorskip("deepinv")
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    cplx = Space((1, 4, 6), torch.complex64)
    built: dict[str, Callable[[], Operator]] = {
        "blur": lambda: Blur(noise(3, 3), Space((2, 5, 6)), "reflect"),
        "coils": lambda: CartesianMRI((4, 6), mask, noise(3, 4, 6, dtype=torch.complex64)),
        "single coil": lambda: CartesianMRI((4, 6), mask),
        "downsampling": lambda: Downsampling(Space((3, 6, 4)), 2),
        "clipping": lambda: Clipping(Space((1, 4, 4)), 2.0, -1.0),
        "complex square": lambda: from_nonlinear(lambda x: x**2, domain=cplx, range=cplx),
    }
    A = built[name]()
    physics = to_deepinv(A, complex_as)
    linear = isinstance(A, LinearOperator)
    assert isinstance(physics, deepinv.physics.LinearPhysics) == linear
    back = from_deepinv(physics, A.domain, complex_as=complex_as)
    assert back.range.shape == A.range.shape
    assert isinstance(back, LinearOperator) == linear
    for real in (torch.float32, F64):
        x = noise(2, 3, *A.domain.shape, dtype=real.to_complex() if A.domain.is_complex else real)
        y = A(x)
        v = noise(*y.shape, dtype=y.dtype, seed=1)
        assert back(x).dtype == y.dtype
        assert torch.equal(back(x), y)
        assert relative(back.vjp(x, v), A.vjp(x, v)) < 1e-6
    if not isinstance(A, LinearOperator):
        return
    z = noise(2, *A.domain.shape, dtype=A.domain.dtype)
    there = torch.view_as_real(z[:, 0]).movedim(-1, 1) if (
        complex_as == "channels" and z.is_complex()) else z
    # relative to one product of random images, which may be near 0: in single precision that
    # exceeds 1e-4 in one of 500
    adjoint_gap = physics.adjointness_test(there.to(torch.promote_types(there.dtype, F64)))
    assert abs(float(adjoint_gap)) < 1e-9
    # prox_l2: gamma / 2 ||A x - y||^2 + 1/2 ||x - z||^2 has this gradient at its minimum
    y = physics.A(there)
    for gamma in (0.7, torch.tensor([0.5, 2.0])):
        x = physics.prox_l2(0.3 * there, y + 0.1, gamma, max_iter=200, tol=1e-7)
        weight = gamma if isinstance(gamma, float) else gamma.view(2, *(1,) * (there.ndim - 1))
        gradient = weight * physics.A_adjoint(physics.A(x) - y - 0.1) + x - 0.3 * there
        assert float(gradient.abs().max()) < 1e-4 * float(there.abs().max())


def test_deepinv_refusals() -> None:
    deepinv = pytest.importorskip("deepinv")
    with pytest.raises(TypeError, match=r"want a deepinv\.physics\.Physics, got int"):
        from_deepinv(3)
    with pytest.raises(ValueError, match="does not say its img_size: pass domain"):
        from_deepinv(deepinv.physics.Blur(torch.ones(1, 1, 3, 3)))
    with pytest.raises(ValueError, match="complex_as 'channels' or 'dtype', got 'real'"):
        to_deepinv(Masking(torch.ones(4), Space((1, 4))), "real")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"want measurements \(B, 2, \.\.\.\) of a complex"):
        from_deepinv(deepinv.physics.LinearPhysics(A=lambda x: x[:, :1],
                                                   A_adjoint=lambda y: y.repeat(1, 2, 1, 1)),
                     Space((1, 4, 4), torch.complex64))


# SigPy

def test_sigpy_linops() -> None:
    sigpy = pytest.importorskip("sigpy")
    maps = noise(3, 4, 5, dtype=C128).numpy()
    linop = sigpy.linop.FFT((3, 4, 5), axes=(-1, -2)) * sigpy.linop.Multiply((4, 5), maps)
    A = from_sigpy(linop, Space((1, 4, 5), torch.complex64), Space((3, 4, 5), torch.complex64))
    check(A, precisions=(F64,)).raise_if_failed()
    x = noise(1, 4, 5, dtype=C128)
    assert relative(A(x), torch.from_numpy(linop(x[0].numpy()))) < 1e-14
    with pytest.raises(ValueError, match=r"want a range of \(3, 4, 5\), .* got \(2, 4, 5\)"):
        from_sigpy(linop, Space((1, 4, 5), torch.complex64), Space((2, 4, 5), torch.complex64))


def test_sigpy_wants_a_linop() -> None:
    with pytest.raises(TypeError, match=r"want a sigpy\.linop\.Linop, got int"):
        from_sigpy(3, REAL, REAL)
