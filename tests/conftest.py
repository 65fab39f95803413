"""What holds for every test, and DDS written out a second time, with faults to be found."""

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.integrators.base import Rule, ddim_noise
from recon.noise import Noise
from recon.operators import LinearOperator, Space, from_functions
from recon.operators.mri import CartesianMRI, masks
from recon.priors import Gaussian, Prior
from recon.samplers import dds

Method = Callable[..., Tensor]
Cases = dict[str, tuple[LinearOperator, Gaussian]]
F64, C128 = torch.float64, torch.complex128


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


LONGEST = ("test_examples.py", "test_smc.py", "test_evaluate.py", "test_contract.py",
           "test_every_sampler.py", "test_guided_posterior.py", "test_cone.py", "test_ads.py",
           "test_train.py", "test_real_codec.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A process takes whole files: the longest first, or one of them would end long after all."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The tensors are small: on a shared machine of few cores two threads wait for each other."""
    torch.set_num_threads(1)


def written_out(fault: str = "") -> Method:
    """DDS a second time, plainly, with a fault to be found."""

    def method(y: Tensor, A: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
               samples: int = 1, steps: int = 50, cg_iterations: int = 5,
               gamma: float | None = None, eta: float = 0.85, rule: Rule = "ddim",
               generator: Any = None, start: Step | None = None) -> Tensor:
        real, nd = y.dtype.to_real(), len(A.domain.shape)
        dims, ones = tuple(range(-nd, 0)), (1,) * nd
        shape = (samples, *A.range.batch_of(y), *A.domain.shape)
        noisy = Noise(generator[0] if fault == "one stream" and generator else generator, 1, nd)
        scale = torch.as_tensor(1.0 if fault == "unscaled levels" else prior.scale, dtype=F64)
        grid = (schedules.vp(steps).view(-1, *(1,) * scale.ndim) * scale).to(real)
        std = torch.as_tensor(noise_std, dtype=real)
        std = std.mean() if fault == "one noise level" else std
        if fault == "released":
            rule = "released"
        x = grid[0].reshape(*scale.shape, *ones) * noisy.like(
            torch.empty(shape, dtype=y.dtype if A.domain.is_complex else real))
        x = x if start is None else start.x
        pulled = A.adjoint(y).expand(shape)
        pulled = {"(1 + i)": (1 + 1j) * pulled, "real part": pulled.real + 0 * pulled,
                  "half the data": pulled / 2}.get(fault, pulled)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            products = a * b if fault == "unconjugated" else (a.conj() * b).real
            return products.sum(None if fault == "shared step" else dims, keepdim=True)

        def quotient(a: Tensor, b: Tensor) -> Tensor:
            return a / b if fault == "0 / 0" else (a / b).nan_to_num(0)

        for level, after in itertools.pairwise(grid):
            s, r = level.reshape(*scale.shape, *ones), after.reshape(*scale.shape, *ones)
            predicted = prior(x, level)
            shift = ((std / level).square() if gamma is None else torch.tensor(1 / gamma)).to(real)
            if fault == "gamma of deviations":
                shift = shift.sqrt()
            shift = shift.reshape(*shift.shape, *ones)
            x0 = predicted
            residual = p = pulled - A.normal(x0) + shift * (predicted - x0)
            for _ in range(cg_iterations):
                rr, Ap = dot(residual, residual), A.normal(p) + shift * p
                if fault == "absolute epsilon" and float(rr.abs().max()) < 1e-10:
                    break
                alpha = quotient(rr, dot(p, Ap))
                x0, residual = x0 + alpha * p, residual - alpha * Ap
                p = residual + quotient(dot(residual, residual), rr) * p
            eps = (x - (x0 if fault == "eps after the data" else predicted)) / s
            kept, fresh = ddim_noise(s, r, eta, rule)
            x = x0 + kept * eps
            if eta > 0:
                x = x + fresh * noisy.like(x)
        return prior(x0, grid[-2]) if fault == "one level more" else x0

    return method


@pytest.fixture
def twin() -> Method:
    """DDS a second time."""
    return written_out()


@pytest.fixture
def refused() -> Callable[..., None]:
    """``refused(check, *faults)``: it passes the sampler and its twin, and none of the faulty."""

    def run(check: Callable[[Method], None], *faults: str) -> None:
        check(dds)
        check(written_out())
        for fault in faults:
            with pytest.raises(AssertionError):
                check(written_out(fault))

    return run


def scanner(n: int = 8, coils: int = 4) -> CartesianMRI:
    """Smooth coils whose squares add up to one; half the columns."""
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    turn = (torch.arange(coils) * 2 * math.pi / coils).view(-1, 1, 1)
    far = (u - turn.cos()).square() + (v - turn.sin()).square()
    maps = torch.exp(-far / 1.2 + 1j * (turn + u))
    mask = masks.random(n, 0.25, 2, seed=0)
    return CartesianMRI((n, n), mask, maps / maps.abs().square().sum(0).sqrt())


def smooth(n: int, dtype: torch.dtype, mean: float = 0.0) -> Gaussian:
    f = torch.fft.fftfreq(n, dtype=F64)
    spectrum = 3 / (1 + 40 * (f[:, None].square() + f.square()))[None]
    return Gaussian(mean + torch.zeros(1, n, n, dtype=dtype), spectrum=spectrum)


def edges(n: int) -> LinearOperator:
    """Real images to complex measurements; adjoint by autograd."""
    weight = torch.where(torch.arange(n) % 3 > 0, 1.0, 0.3)
    space, to = Space((1, n, n)), Space((1, n, n), torch.complex64)
    return from_functions(lambda x: weight * torch.fft.fft2(x, norm="ortho"), domain=space,
                          range=to)


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Operators and exact priors of 8 x 8 images: names in ``CASES`` of the tests."""
    space = Space((1, 8, 8))
    shifted = from_functions(lambda x: x + 0.5 * x.roll(1, -1), domain=space, range=space)
    return {"coils": (scanner(), smooth(8, C128)), "real to complex": (edges(8), smooth(8, F64)),
            "real": (shifted, smooth(8, F64))}


@pytest.fixture
def recon(monkeypatch: pytest.MonkeyPatch,
          capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command line in this process, as its users call it."""
    from recon.cli import main

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["recon", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Ran(code, *capsys.readouterr())

    return run
