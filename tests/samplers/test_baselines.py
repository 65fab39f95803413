"""Total variation and wavelets against closed forms, other solvers and optimality conditions.

Every check is a function of the sampler, and is shown to refuse planted mistakes.
"""

import functools
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from numpy.typing import NDArray
from skimage.data import shepp_logan_phantom
from skimage.restoration import denoise_tv_chambolle
from skimage.transform import resize
from torch import Tensor

from recon.operators import Identity, Masking, Space
from recon.operators.mri import CartesianMRI, masks
from recon.operators.norm import squared_norm
from recon.samplers.base import Sampler
from recon.samplers.tv import differences_adjoint, tv
from recon.samplers.wavelet import wavelet

# by name: the package may hold the functions under the names of these modules
tv_module = importlib.import_module("recon.samplers.tv")
wavelet_module = importlib.import_module("recon.samplers.wavelet")

BOTH = pytest.mark.parametrize("method", [tv, wavelet], ids=["tv", "wavelet"])
Array = NDArray[Any]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor | Array, want: Tensor | Array) -> float:
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@functools.cache
def phantom(n: int) -> Tensor:
    """Shepp-Logan with a smooth phase, ``(1, n, n)``."""
    image = torch.tensor(resize(shepp_logan_phantom(), (n, n)))  # type: ignore[no-untyped-call]
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64)] * 2, indexing="ij")
    return (image * torch.exp(1j * (u + 0.7 * v**2)))[None]


def scanner(n: int, coils: int, acceleration: int) -> CartesianMRI:
    """Coils on a ring, their maps' squares adding up to one."""
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    turn = (torch.arange(coils) * 2 * math.pi / coils).view(-1, 1, 1)
    far = (u - 1.1 * turn.cos()).square() + (v - 1.1 * turn.sin()).square()
    maps = torch.exp(-far / 1.2 + 1j * (turn + u))
    maps = maps / maps.abs().square().sum(0).sqrt()
    return CartesianMRI((n, n), masks.random(n, 0.08, acceleration, seed=0), maps)


def acquired(n: int = 32, coils: int = 3) -> tuple[CartesianMRI, Tensor]:
    """A three-fold scan and three items of noisy k-space in double precision."""
    A = scanner(n, coils, 3)
    x = torch.stack([phantom(n), 40 * phantom(n).roll(3, -1), 1e-3j * phantom(n).mT])
    size = x.abs().amax((1, 2, 3), keepdim=True)
    return A, A(x) + 0.01 * size * A.mask * noise(3, coils, n, n, dtype=torch.complex128)


def total_variation(x: Array) -> float:
    steps = [np.diff(x, axis=a, append=np.take(x, [-1], a)) for a in range(x.ndim)]
    return float(np.sqrt(sum(np.abs(s) ** 2 for s in steps)).sum())


def pdhg(matrix: Array, y: Array, lam: float, n: int, steps: int) -> tuple[Array, float]:
    """Chambolle-Pock with dense matrices; the minimiser and how far its objective may be off."""
    one = np.eye(n, k=1) - np.eye(n)
    one[-1] = 0
    D = np.concatenate([np.kron(one, np.eye(n)), np.kron(np.eye(n), one)])
    H = matrix.conj().T
    sigma, tau = 0.1, 1.25  # their product 1 / ||D||^2
    solve = np.linalg.inv(tau * H @ matrix + np.eye(n * n))
    x, p = np.zeros(n * n, y.dtype), np.zeros(2 * n * n, y.dtype)

    def length(p: Array) -> Array:
        size: Array = np.linalg.norm(p.reshape(2, -1), axis=0)
        return size

    for _ in range(steps):
        new = solve @ (x - tau * (D.T @ p - H @ y))
        p = p + sigma * (D @ (2 * new - x))
        p = p / np.tile(np.maximum(1, length(p) / lam), 2)
        x = new
    # p is a subgradient of lam TV at x up to `slack`, and the gradients cancel up to `left`
    left = np.linalg.norm(H @ (matrix @ x - y) + D.T @ p)
    slack = lam * length(D @ x).sum() - np.vdot(p, D @ x).real
    return x.reshape(n, n), float(slack + left * np.linalg.norm(x))


def details_shrunk(x: Array, lam: float, name: str, levels: int) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # all coefficients at the border: meant here
        c = pywt.wavedecn(x, name, "periodization", levels)
    array, slices = pywt.coeffs_to_array(c)
    size = np.abs(array)
    small = array * (1 - lam / np.maximum(size, lam))
    small[slices[0]] = array[slices[0]]
    c = pywt.array_to_coeffs(small, slices, "wavedecn")
    return np.asarray(pywt.waverecn(c, name, "periodization"))


@functools.cache
def small_scan() -> tuple[CartesianMRI, Tensor, float, Array, float]:
    """A scan of 10 x 10 pixels, its regularisation, the minimiser, and how far that may be off."""
    n = 10
    A = scanner(n, 2, 2)
    y = A(phantom(n)) + 0.02 * A.mask * noise(2, n, n, dtype=torch.complex128)
    lam = 0.02 * float(A.adjoint(y).abs().max())
    matrix = A(torch.eye(n * n, dtype=y.dtype).view(-1, 1, n, n)).flatten(1).T
    return A, y, lam, *pdhg(np.asarray(matrix), np.asarray(y).ravel(), lam, n, 2500)


def check_tv_minimiser(method: Sampler[Any, Any] = tv) -> None:
    A, y, lam, want, gap = small_scan()

    def objective(x: Array) -> float:
        misfit = A(torch.from_numpy(x)[None]) - y
        return 0.5 * float(misfit.abs().square().sum()) + lam * total_variation(x)

    assert gap < 1e-8 * objective(want)
    got = np.asarray(method(y, A, weight=0.02, iterations=400, rtol=1e-9)[0, 0])
    assert abs(objective(got) / objective(want) - 1) < 1e-6
    assert relative(got, want) < 1e-3


def check_wavelet_minimiser(method: Sampler[Any, Any] = wavelet) -> None:
    A, y = acquired()
    y, weight = y[0], 3e-3
    got = method(y, A, weight=weight, levels=3, shifts=False, iterations=600)[0]
    pulled = A.adjoint(y)
    lam = weight * float(pulled.abs().max())
    down = np.asarray(got - (A.normal(got) - pulled))[0]
    again = details_shrunk(down, lam, "db4", 3)  # a minimiser stays where it is
    assert relative(got[0], again) < 1e-5


def check_scale(method: Sampler[Any, Any]) -> None:
    A, y = acquired()
    y = y.to(torch.complex64)
    want = method(y, A, weight=2e-3, iterations=30)
    for c in (1e-6, 1.0, 1e6):
        got = method(c * y, A, weight=2e-3, iterations=30)
        size = want.abs().amax((-1, -2), keepdim=True)
        assert float(((got / c - want) / size).abs().max()) < 1e-4
    got = method(3 * y, 3 * A, weight=2e-3, iterations=30)  # the operator's unit
    assert float(((got - want) / size).abs().max()) < 1e-4


def check_phase(method: Sampler[Any, Any]) -> None:
    A, y = acquired()
    turn = complex(math.cos(0.7), math.sin(0.7))
    got = method(turn * y, A, weight=5e-3, iterations=30)
    want = turn * method(y, A, weight=5e-3, iterations=30)
    size = want.abs().amax((-1, -2), keepdim=True)
    assert float(((got - want) / size).abs().max()) < 1e-9


def check_items(method: Sampler[Any, Any]) -> None:
    A, y = acquired()
    y = torch.cat([y, torch.zeros_like(y[:1])]).to(torch.complex64)
    # each item's own mask and norm too, so that a norm of the whole batch would show
    gains = torch.arange(1, 5).view(-1, 1, 1, 1) * torch.ones(1, 32, 32, dtype=torch.complex64)
    columns = [masks.random(32, 0.1 * k, 2, seed=k).view(1, 1, -1) for k in (1, 2, 3, 4)]
    B = CartesianMRI(A.domain.shape, torch.stack(columns), gains)
    z = B(A.adjoint(y))
    for operator, data in ((A, y), (B, z)):
        together = method(data, operator, weight=5e-3, iterations=60)
        assert together.shape == (1, 4, 1, 32, 32)
        assert not bool(together[:, 3].any())
        for i in range(3):
            own = operator if operator is A else CartesianMRI(A.domain.shape, columns[i], gains[i])
            alone = method(data[i], own, weight=5e-3, iterations=60)
            assert relative(together[:, i], alone) < 1e-5


def _parts_apart(values: Tensor, length: Tensor, threshold: Tensor) -> Tensor:
    real, imag = values.real, values.imag
    return torch.complex(real.sign() * (real.abs() - threshold).clamp(min=0),
                         imag.sign() * (imag.abs() - threshold).clamp(min=0)) + 0 * length


def _hard(values: Tensor, length: Tensor, threshold: Tensor) -> Tensor:
    return values * (length > threshold)


def _batch_peak(x: Tensor, item_ndim: int) -> Tensor:
    return x.abs().amax().expand(x.shape[: x.ndim - item_ndim] + (1,) * item_ndim)


MISTAKES: list[tuple[Sampler[Any, Any], str, Callable[..., Any], Callable[[Any], None]]] = [
    (tv, "lengths", lambda d, ndim: d.abs(), check_tv_minimiser),  # noqa: ARG005 anisotropic
    (tv, "differences_adjoint", lambda d, ndim: differences_adjoint(d.conj(), ndim),
     check_tv_minimiser),
    (tv, "differences_adjoint", lambda d, ndim: -differences_adjoint(d, ndim), check_tv_minimiser),
    (tv, "shrink", _parts_apart, check_phase),
    (tv, "shrink", _hard, check_tv_minimiser),
    (tv, "peak", _batch_peak, check_items),
    (tv, "peak", lambda x, _: torch.ones_like(x.real[..., :1, :1]), check_scale),
    (tv, "squared_norm", lambda A, x: squared_norm(A, x).mean(), check_items),
    (wavelet, "shrink", _parts_apart, check_phase),
    (wavelet, "shrink", _hard, check_wavelet_minimiser),
    (wavelet, "_orthogonal", lambda _: pywt.Wavelet("bior4.4"), check_wavelet_minimiser),
    (wavelet, "peak", _batch_peak, check_items),
    (wavelet, "peak", lambda x, _: torch.ones_like(x.real[..., :1, :1]), check_scale),
    (wavelet, "squared_norm", lambda A, x: squared_norm(A, x).mean(), check_items),
]


@pytest.mark.parametrize(("method", "name", "mistake", "check"), MISTAKES)
def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch, method: Sampler[Any, Any], name: str,
                              mistake: Callable[..., Any], check: Callable[[Any], None]) -> None:
    module = tv_module if method is tv else wavelet_module
    monkeypatch.setattr(module, name, mistake)
    with pytest.raises(AssertionError):
        check(method)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.4, 0.5, 2.0])
def test_tv_of_two_pixels(weight: float) -> None:
    y = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    got = tv(y, Identity(Space((1, 2))), weight=weight, iterations=200, rtol=0.0)
    low = min(weight, 0.5)
    assert relative(got, torch.tensor([[[low, 1 - low]]], dtype=torch.float64)) < 1e-8


def test_tv_of_a_step() -> None:
    y = torch.tensor([1.0] * 3 + [-2.0] * 5, dtype=torch.float64)
    got = tv(y[None], Identity(Space((1, 8))), weight=0.15, iterations=200, rtol=0.0)
    lam = 0.15 * 2  # of the largest magnitude
    want = torch.tensor([1 - lam / 3] * 3 + [-2 + lam / 5] * 5, dtype=torch.float64)
    assert relative(got[0, 0], want) < 1e-8


@pytest.mark.parametrize("shape", [(24, 17), (5, 6, 7), (40,)])
def test_tv_denoises_as_scikit_image(shape: tuple[int, ...]) -> None:
    y = noise(1, *shape)
    lam = 0.5
    got = tv(y, Identity(Space((1, *shape))), weight=lam / float(y.abs().max()), iterations=500,
             rtol=1e-8)[0, 0]
    want = denoise_tv_chambolle(  # type: ignore[no-untyped-call]
        np.asarray(y[0]), weight=lam, eps=1e-14, max_num_iter=3000)

    def objective(x: Array) -> float:
        return 0.5 * float(((x - np.asarray(y[0])) ** 2).sum()) + lam * total_variation(x)

    assert relative(got, want) < 2e-3  # its fixed step is slow
    assert objective(np.asarray(got)) < objective(want) * (1 + 1e-8)


def test_tv_is_the_minimiser() -> None:
    check_tv_minimiser()


def test_tv_stops_items_when_they_stand() -> None:
    A, y = acquired()
    y = y[:2]
    steps = list(tv.steps(y, A, weight=3e-3, iterations=500, rtol=1e-3))
    assert len(steps) < 200
    longer = tv(y, A, weight=3e-3, iterations=200, rtol=0.0)
    assert relative(steps[-1].x0[0, 0], longer[0, 0]) < 3e-2
    on = list(tv.steps(y, A, weight=3e-3, iterations=500, rtol=1e-3, start=steps[-1]))
    assert len(on) == 1
    assert torch.equal(on[0].x0, steps[-1].x0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_haar_details_are_shrunk_softly(dtype: torch.dtype) -> None:
    y = noise(1, 8, 8, dtype=dtype)
    got = wavelet(y, Identity(Space((1, 8, 8), dtype)), weight=0.2, wavelet="haar", levels=1,
                  shifts=False, iterations=1)[0, 0]
    pairs = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 1) / math.sqrt(2)
    H = torch.cat([pairs, pairs * torch.tensor([1, -1] * 4)]).to(dtype)  # sums, then differences
    c = H @ y[0] @ H.T
    shrunk = c * (1 - 0.2 * y.abs().max() / c.abs()).clamp(min=0)
    shrunk[:4, :4] = c[:4, :4]
    assert relative(got, H.T @ shrunk @ H) < 1e-12


@pytest.mark.parametrize(("name", "levels"), [("haar", 3), ("db4", 2), ("sym8", 4)])
def test_levels_are_those_of_pywavelets(name: str, levels: int) -> None:
    y = noise(1, 128, 128)
    got = wavelet(y, Identity(Space((1, 128, 128))), weight=0.1, wavelet=name, levels=levels,
                  shifts=False, iterations=3)
    want = details_shrunk(np.asarray(y[0]), 0.1 * float(y.abs().max()), name, levels)
    assert relative(got[0, 0], want) < 1e-10


def test_wavelet_is_the_minimiser() -> None:
    check_wavelet_minimiser()


@pytest.mark.parametrize("shape", [(21, 19), (17,), (4, 9, 6)])
def test_sizes_that_do_not_halve(shape: tuple[int, ...]) -> None:
    y = noise(2, 1, *shape)
    A = Identity(Space((1, *shape)))
    assert relative(wavelet(y, A, weight=0.0, levels=2, iterations=2)[0], y) < 1e-12
    got = wavelet(y, A, weight=0.1, levels=2)
    assert got.shape == (1, *y.shape)
    assert float(got.square().sum()) < float(y.square().sum())


@BOTH
def test_scale(method: Sampler[Any, Any]) -> None:
    check_scale(method)


@BOTH
def test_phase(method: Sampler[Any, Any]) -> None:
    check_phase(method)


@BOTH
def test_items_are_apart(method: Sampler[Any, Any]) -> None:
    check_items(method)


@BOTH
def test_better_than_zero_filling(method: Sampler[Any, Any]) -> None:
    A, x = scanner(96, 8, 4), phantom(96).to(torch.complex64)
    n = noise(8, 96, 96, dtype=torch.complex64)
    y = A(x) + 0.01 * math.sqrt(2) * A.mask * n

    def psnr(got: Tensor) -> float:
        return -10 * math.log10(float((got - x).abs().square().mean()))

    assert psnr(method(y, A, weight=3e-3)[0]) > psnr(A.adjoint(y)) + 3


@BOTH
def test_resumes_to_the_bit(method: Sampler[Any, Any]) -> None:
    A, y = acquired()
    steps = list(method.steps(y, A, weight=2e-3, iterations=12))
    assert [step.index for step in steps] == list(range(1, 13))
    assert all(float(step.sigma) == 0 for step in steps)
    again = method(y, A, weight=2e-3, iterations=12, start=steps[4])
    assert torch.equal(again, steps[-1].x0)


@BOTH
def test_real_images_and_no_measurements(method: Sampler[Any, Any]) -> None:
    space = Space((1, 16, 16))
    got = method(noise(2, 1, 16, 16, dtype=torch.float32), 2 * Identity(space), weight=0.01)
    assert got.dtype == torch.float32
    assert got.shape == (1, 2, 1, 16, 16)
    nothing = method(torch.zeros(1, 16, 16), 0 * Identity(space), weight=0.01)
    assert not bool(nothing.any())


@BOTH
@pytest.mark.parametrize(("change", "match"), [
    ({"weight": -1e-3}, r"weight wants a finite number >= 0, got -0.001"),
    ({"weight": math.nan}, r"weight wants a finite number >= 0, got nan"),
    ({"iterations": 0}, r"iterations wants at least 1, got 0"),
    ({"noise_std": -1.0}, r"noise_std wants finite numbers >= 0"),
])
def test_bad_settings(method: Sampler[Any, Any], change: dict[str, Any], match: str) -> None:
    settings = {"weight": 1e-3, **change}
    with pytest.raises(ValueError, match=match):
        method(torch.ones(1, 16, 16), Identity(Space((1, 16, 16))), **settings)


@BOTH
def test_bad_measurements_and_start(method: Sampler[Any, Any]) -> None:
    A = Masking(torch.ones(16, 16), Space((1, 16, 16)))
    y = torch.ones(3, 1, 16, 16)
    (last,) = method.steps(y, A, weight=1e-3, iterations=1)
    with pytest.raises(ValueError, match="iterations wants more than the 1 that start has done"):
        method(y, A, weight=1e-3, iterations=1, start=last)
    y[1, 0, 2, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity in slice 1"):
        method(y, A, weight=1e-3)
    with pytest.raises(ValueError, match="rtol wants a number >= 0, got -1"):
        tv(torch.ones(1, 16, 16), A, weight=1e-3, rtol=-1)


@BOTH
def test_an_operator_of_other_items_is_refused(method: Sampler[Any, Any]) -> None:
    """One slice with the masks of three once came back as three."""
    each = Masking(noise(3, 1, 16, 16) > 0, Space((1, 16, 16)))
    y = each(noise(3, 1, 16, 16, seed=1))
    for some in (y[1], y[:1], y[:2]):
        with pytest.raises(ValueError, match=r"each of the items \(3,\), y is of items"):
            method(some, each, weight=1e-3)
    assert method(y, each, weight=1e-3, iterations=2).shape == (1, 3, 1, 16, 16)


@pytest.mark.parametrize(("settings", "match"), [
    ({"wavelet": "daub4"}, "wavelet wants a name PyWavelets knows.*'daub4'"),
    ({"wavelet": "morl"}, "wavelet wants"),
    ({"wavelet": "bior4.4"}, "wavelet wants an orthogonal one.*'bior4.4' is not"),
    ({"levels": 5}, r"levels wants 1 to 4 for images \(16, 31\), got 5"),
    ({"levels": 0}, "levels wants 1 to 4"),
])
def test_bad_wavelets(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        wavelet(torch.ones(1, 16, 31), Identity(Space((1, 16, 31))), weight=1e-3, **settings)
