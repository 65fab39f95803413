"""DDS as a door: units, phase, batches, seeds, resuming, calls counted, memory, warnings.

Numerical checks take the sampler as an argument and refuse faulty ones (``tests/conftest.py``).
"""

import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.guidance import proximal
from recon.integrators import DDIM, Euler, Integrator, Step, schedules
from recon.noise import per_draw
from recon.operators import LinearOperator, Masking, Space, from_functions
from recon.operators.mri import CartesianMRI
from recon.priors import Gaussian
from recon.samplers import dds

Method = Callable[..., Tensor]
Refused = Callable[..., None]
Cases = dict[str, tuple[LinearOperator, Gaussian]]
ALL = pytest.mark.parametrize("case", ["coils", "real to complex", "real"])
F64 = torch.float64
STD = torch.tensor([0.1, 0.02, 0.5, 0.1, 0.3])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def single(prior: Gaussian) -> Gaussian:
    """In single precision."""
    return Gaussian(prior.mean.to(torch.complex64 if prior.is_complex else torch.float32),
                    spectrum=prior.eigenvalues.float())


def measured(A: LinearOperator, prior: Gaussian, batch: int = 1) -> Tensor:
    """``batch`` different items, single precision."""
    y = A(prior.sample(batch, seeded(5)))
    return (y + 0.1 * noise(*y.shape, seed=6, dtype=y.dtype)).to(A.range.dtype)


@ALL
@pytest.mark.parametrize("std", [0.1, 0.0])
def test_a_solved_item_stays(cases: Cases, refused: Refused, case: str, std: float) -> None:
    """A start that equals the data has no residual: 0 / 0 must not reach it, nor its neighbour."""
    A, prior = cases[case][0], single(cases[case][1])
    settings: dict[str, Any] = {"steps": 10, "cg_iterations": 4, "eta": 0.0, "noise_std": std}
    level = schedules.vp(10)[0].float()
    x = torch.stack([torch.zeros_like(prior.mean), level * prior.sample(1, seeded())[0]])[None]
    y = torch.stack([torch.zeros_like(A(x[0, 0])), measured(A, prior)[0]])

    def check(method: Method) -> None:
        both = method(y, A, prior, start=Step(0, level, x, x), **settings)
        alone = method(y[1:], A, prior, start=Step(0, level, x[:, 1:], x[:, 1:]), **settings)
        assert torch.equal(both[0, 0], x[0, 0])
        assert relative(both[:, 1:], alone) < 1e-5

    refused(check, "0 / 0")
    # solved up to rounding, which conjugate gradients must not amplify
    two = torch.full_like(x[:, 0], 2.0)
    stays = dds(A(two[0]), A, prior.rescaled(1.0, 2.0), start=Step(0, level, two, two), **settings)
    assert relative(stays, two) < 1e-5


@pytest.mark.parametrize("integrator", [None, DDIM(0.0), DDIM(1.0), Euler()])
def test_resumes_bit_for_bit(cases: Cases, integrator: Integrator | None) -> None:
    A, prior = cases["coils"][0], single(cases["coils"][1])
    y, source = measured(A, prior, 2), seeded()
    settings: dict[str, Any] = {"noise_std": 0.1, "samples": 2, "steps": 8,
                                "integrator": integrator}
    seen = []
    for step in dds.steps(y, A, prior, generator=source, **settings):
        seen.append((step, step.x.clone(), source.get_state()))
    assert [s.index for s, _, _ in seen] == list(range(1, 9))
    assert [float(s.sigma) for s, _, _ in seen] == schedules.vp(8).float()[1:].tolist()
    for k in (0, 4, 6):
        saved, _, state = seen[k]
        later = torch.Generator()
        later.set_state(state)
        assert torch.equal(dds(y, A, prior, generator=later, start=saved, **settings),
                           seen[-1][0].x0)
    assert all(torch.equal(step.x, x) for step, x, _ in seen)  # never written to
    whole = dds(y, A, prior, generator=seeded(), **settings)
    assert torch.equal(whole, seen[-1][0].x0)


def test_integrators_drive_the_guided_prediction(cases: Cases) -> None:
    A, prior = cases["coils"][0], single(cases["coils"][1])
    y = measured(A, prior)
    settings: dict[str, Any] = {"noise_std": 0.1, "steps": 12, "cg_iterations": 8}
    ddim, euler = (dds(y, A, prior, integrator=i, generator=seeded(), **settings)
                   for i in (DDIM(0.0), Euler()))
    assert relative(ddim, euler) < 1e-4
    paper = dds(y, A, prior, eta=0.0, generator=seeded(), **settings)
    assert relative(paper, ddim) > 1e-2  # its noise is predicted before the data
    consistent = proximal(y, A, torch.tensor(0.1), gamma=None, cg_iterations=8)
    sigmas = schedules.vp(12).float()
    x = sigmas[0] * prior_noise(y)
    for s, r in itertools.pairwise(sigmas):
        x0 = consistent(prior(x, s), s)
        x = x0 + r / s * (x - x0)
    assert relative(ddim, x) < 1e-4
    scale = torch.tensor([1.0, 4.0])
    two = dds(torch.cat([y, 4 * y]), A, prior.rescaled(scale), integrator=DDIM(0.0), steps=12,
              noise_std=0.1 * scale, cg_iterations=8, generator=[seeded(), seeded()])
    assert relative(two[:, :1], ddim) < 1e-4
    assert relative(two[:, 1:] / 4, ddim) < 1e-4


def prior_noise(y: Tensor) -> Tensor:
    return torch.view_as_complex(noise(1, len(y), 1, 8, 8, 2))


def test_callback(cases: Cases) -> None:
    A, prior = cases["real"][0], single(cases["real"][1])
    y, seen = measured(A, prior), list[Step]()
    got = dds(y, A, prior, noise_std=0.1, steps=6, generator=seeded(), callback=seen.append)
    assert [step.index for step in seen] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(seen[-1].x0, got)
    assert torch.equal(seen[-1].x, got)  # no noise is left
    assert "callback" in inspect.signature(dds).parameters
    early = next(dds.steps(y, A, prior, noise_std=0.1, steps=6, generator=seeded()))
    assert torch.equal(early.x0, seen[0].x0)


@pytest.mark.parametrize("steps", [1, 7])
def test_calls_are_counted(cases: Cases, steps: int) -> None:
    """T11: a network call a level; a normal operator a CG step and one for its residual.

    One product of functions, of which nothing is known, shows whether they are of single items.
    """
    A, prior = cases["coils"][0], single(cases["coils"][1])
    calls = {"forward": 0, "adjoint": 0, "network": 0}

    def counted(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            calls[name] += 1
            return function(x)
        return call

    B = from_functions(counted("forward", A), counted("adjoint", A.adjoint), domain=A.domain,
                       range=A.range)
    grads = []

    def called(*args: Any) -> None:
        calls["network"] += 1
        grads.append(torch.is_grad_enabled() or args[1][0].requires_grad)

    prior.register_forward_pre_hook(called)
    y = measured(A, prior).requires_grad_()
    got = dds(y, B, prior, noise_std=1e-3, steps=steps, cg_iterations=3, generator=seeded())
    assert calls == {"forward": 4 * steps + 1, "adjoint": 4 * steps + 1, "network": steps}
    assert not any(grads)
    assert not got.requires_grad
    assert got.grad_fn is None
    assert torch.is_grad_enabled()


def test_warns_where_steps_are_too_few(cases: Cases) -> None:
    A, prior = cases["coils"][0], single(cases["coils"][1])
    y = measured(A, prior, 3)
    with pytest.warns(UserWarning, match=r"5 CG steps may be too few for gamma = 100: about 1\d "
                                         "bring") as caught:
        dds(y, A, prior, gamma=100.0, steps=2)
    assert caught[0].filename == __file__
    assert isinstance(A, CartesianMRI)
    assert A.maps is not None
    each = CartesianMRI((8, 8), A.mask, torch.stack([A.maps, 10 * A.maps, 0 * A.maps]))
    with pytest.warns(UserWarning, match="gamma = 1"):  # of the item whose maps are large
        dds(y, each, prior, gamma=1.0, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dds(y, A, prior, gamma=1.0, steps=2)
        dds(y, A, prior, gamma=100.0, steps=2, cg_iterations=20)
        dds(y[:, :1], CartesianMRI((8, 8), A.mask), prior, gamma=1e6, steps=2)  # closed form
        space = Space((1, 8, 8), torch.complex64)
        dds(0 * y[:, :1], from_functions(lambda x: 0 * x, domain=space, range=space), prior,
            gamma=1e6, steps=2)


def test_weight_in_double_precision() -> None:
    """1 / gamma once passed through single precision."""
    A, prior = Masking(torch.ones(2, 2), Space((1, 2, 2))), torch.full((1, 2, 2), 3.0, dtype=F64)
    move = proximal(0 * prior, A, torch.tensor(1.0), gamma=0.3, cg_iterations=1)
    got = move(prior, torch.tensor(1.0))
    assert float(got[0, 0, 0]) == pytest.approx(3 / 1.3, rel=1e-14)
    assert math.isfinite(float(got.sum()))


@ALL
def test_weight_is_of_the_operators_square(cases: Cases, case: str) -> None:
    """``gamma`` is a number, not one in units of the operator: ``gamma / c^2`` for ``c A``."""
    A, prior = cases[case]
    y = A(prior.sample(2, seeded(5)))
    y = y + 0.1 * noise(*y.shape, seed=6, dtype=y.dtype)
    settings: dict[str, Any] = {"steps": 10, "samples": 2, "cg_iterations": 20}
    want = dds(y, A, prior, noise_std=0.1, gamma=0.05, generator=seeded(), **settings)
    got = dds(10 * y, 10 * A, prior, noise_std=1.0, gamma=5e-4, generator=seeded(), **settings)
    assert relative(got, want) < 1e-9
    same = dds(10 * y, 10 * A, prior, noise_std=1.0, gamma=0.05, generator=seeded(), **settings)
    assert relative(same, want) > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_same_on_a_gpu(cases: Cases) -> None:
    A, prior = cases["coils"][0], single(cases["coils"][1])
    scale = torch.tensor([1.0, 4.0])
    y = measured(A, prior, 2) * scale.view(-1, 1, 1, 1)
    runs = []
    for device in ("cpu", "cuda"):
        there, on = scale.to(device), A.to(device)
        runs.append(dds(y.to(device), on, prior.to(device).rescaled(there), samples=2, steps=10,
                        noise_std=0.1 * there, generator=per_draw(0, range(2), range(2))).cpu())
    A.cpu()
    assert relative(runs[1], runs[0]) < 1e-3
