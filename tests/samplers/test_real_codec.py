"""STSL, PSLD and latent DPS with a trained autoencoder and prior: the identities S1 to S8.

The same that ``test_stsl.py`` and ``test_psld.py`` hold with codecs of a few numbers, here on a
piece of a real slice with the prior of ``examples/latent.py``. Each has something that must break
it.
"""

import math
import warnings
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recon import demo, priors
from recon.guidance import denoise_with_pullback
from recon.integrators import DDIM, Step, integrate, schedules
from recon.operators import Blur, LinearOperator, Masking, Space
from recon.operators.norm import squared_norm
from recon.priors import Autoencoder, Codec, Gaussian, LatentPrior, Prior
from recon.samplers import latent_dps, psld, stsl
from recon.samplers.stsl import LatentStep, trace_gradient
from tests.samplers.comparing import F64, Counting, noise, relative, seeded
from tests.samplers.latents import NO_TRACE, quiet

WEIGHTS = Path(__file__).parents[2] / "examples" / "brain-latent.safetensors"
Method = Callable[..., Tensor]
IMAGE, LATENT = Space((1, 32, 32), F64), (4, 8, 8)
NOISE = 0.15


@cache
def real() -> LatentPrior:
    """In double precision, so that identities are not a matter of rounding."""
    prior = priors.load(WEIGHTS).double()
    assert isinstance(prior, LatentPrior)
    return prior


def codec() -> Codec:
    return real().codec_of(IMAGE)


def exact() -> LatentPrior:
    """A Gaussian of the same latents, whose denoiser is linear."""
    f = torch.fft.fftfreq(8, dtype=F64)
    spectrum = (3 / (1 + 20 * (f[:, None].square() + f.square())))[None].expand(4, 8, 8)
    autoencoder = real().codec
    return LatentPrior(Gaussian(torch.zeros(LATENT, dtype=F64), spectrum=spectrum.contiguous()),
                       autoencoder)


def truth() -> Tensor:
    return demo.shipped_slice()[None, 40:72, 32:64].to(F64)


def mask() -> Masking:
    return Masking(torch.rand(32, 32, generator=seeded(5)) < 0.5, IMAGE)


def blur() -> Blur:
    """Not its own adjoint."""
    kernel = torch.tensor([[0.0, 0.1, 0.3], [0.1, 0.3, 0.1], [0.1, 0.0, 0.0]], dtype=F64)
    return Blur(kernel, IMAGE)


def measured(A: LinearOperator) -> Tensor:
    y = A(truth() + NOISE * noise(1, 32, 32, seed=1))
    assert isinstance(y, Tensor)
    return y


def test_decodes_what_it_encodes() -> None:
    """A real piece of a slice; without its last channel it is another image."""
    z, x = codec().encode(truth()), truth()

    def check(z: Tensor) -> None:
        assert -10 * math.log10(float((codec().decode(z) - x).square().mean())) > 24

    check(z)
    assert z.shape == LATENT
    with pytest.raises(AssertionError):
        check(z * torch.tensor([1.0, 1, 1, 0], dtype=F64).view(4, 1, 1))


@quiet
def test_s1_trace_term_of_a_gaussian_is_nothing() -> None:
    A = mask()
    y = measured(A)

    def check(prior: Prior) -> None:
        runs = [stsl(y, A, prior, noise_std=NOISE, steps=3, inner_steps=1, hessian_weight=w,
                     generator=seeded()) for w in (0.0, 0.02, 5.0)]
        assert max(relative(other, runs[0]) for other in runs[1:]) < 1e-8

    check(exact())
    with pytest.raises(AssertionError):
        check(real())


@quiet
def test_s2_without_inner_steps_is_ddim_and_inverts_it() -> None:
    """There and back, 0.229, 0.126 and 0.071 of the image are lost with 20, 40 and 80 levels: in
    proportion to a level, as with exact denoisers.
    """
    A = blur()
    y = measured(A)
    first = codec().decode(codec().encode(A.solve_cg(A.adjoint(y), 0.0).x))

    def errors(*steps: int, **settings: Any) -> list[float]:
        return [relative(stsl(y, A, real(), noise_std=NOISE, steps=n, inner_steps=0,
                              generator=seeded(), **settings)[0], first) for n in steps]

    def check(found: list[float]) -> None:
        assert all(0.45 < b / a < 0.65 for a, b in pairwise(found))
        assert found[-1] < 0.15

    check(errors(20, 40, 80))
    with pytest.raises(AssertionError):
        check(errors(20, 40, start_noise=0.3))
    z, sigmas = 30 * noise(2, *LATENT), schedules.karras(8, 0.02, 30.0)
    settings: dict[str, Any] = {"samples": 2, "sigmas": sigmas, "noise_std": NOISE}
    got = stsl(y, A, real(), inner_steps=0, start=LatentStep(0, sigmas[0], z, z, 0, 0, z),
               **settings)
    want = codec().decode(integrate(real(), z, sigmas, DDIM()))
    assert relative(got, want) < 1e-10
    weights: list[dict[str, Any]] = [{"omega": 0.0, "gamma": 0.1}, {"omega": 0.1, "gamma": 0.0}]
    for wrong in weights:
        moved = psld(y, A, real(), start=Step(0, sigmas[0], z, z), **wrong, **settings)
        with pytest.raises(AssertionError):
            assert relative(moved, want) < 1e-10
    still = psld(y, A, real(), omega=0.0, gamma=0.0, start=Step(0, sigmas[0], z, z), **settings)
    assert relative(still, want) < 1e-10


def written_out(fault: str = "") -> Method:
    """STSL without trace, one inner step: latent DPS of the squared norm, by autograd in ``Z``."""

    def method(y: Tensor, A: LinearOperator, prior: LatentPrior, z: Tensor, steps: int) -> Tensor:
        gain, codec = squared_norm(A, A.adjoint(y)), prior.codec_of(A.domain)
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
        visited = [*abar[:: 1000 // steps].flip(0), torch.ones((), dtype=F64)]
        Z, dims = z * visited[0].sqrt(), (-3, -2, -1)
        for a, s in pairwise(visited):
            sigma2, next2 = (1 - a) / a, (1 - s) / s
            with torch.enable_grad():
                Z = Z.detach().requires_grad_()
                z0 = prior(Z / a.sqrt(), sigma2.sqrt())
                rest = A(codec.decode(z0)) - y
                norm = rest.square().sum(dims, keepdim=True).sqrt()
                (in_z0,) = torch.autograd.grad(norm.sum(), z0, retain_graph=True)
                (in_Z,) = torch.autograd.grad(norm.sum(), Z)
            if fault == "no network":  # the prediction taken for the latent itself
                in_Z = in_z0 / a.sqrt()
            known = (a.sqrt() * in_z0 * in_Z).sum(dims, keepdim=True).clamp(min=0)
            steep = a * in_Z.square().sum(dims, keepdim=True)
            size = A.adjoint(rest.detach() / norm.detach()).square().sum(dims, keepdim=True)
            step = (sigma2 - next2) / 2 / (NOISE**2 + sigma2 * known)
            step = torch.minimum(step, size / gain / torch.maximum(known, steep))
            share = 0.5 if fault == "half the data" else 1.0
            Z = Z.detach() - share * a * step * norm.detach() * in_Z
            z0 = prior(Z / a.sqrt(), sigma2.sqrt())
            e = (Z - a.sqrt() * z0) / (1 - a).sqrt()
            Z = s.sqrt() * z0 + (1 - s).sqrt() * e
        return codec.decode(Z)

    return method


@quiet
def test_s3_one_inner_step_is_latent_dps_of_the_squared_norm() -> None:
    A = blur()
    y, sigmas = measured(A), schedules.vp(10)
    z = sigmas[0] * noise(2, *LATENT, seed=2)
    got = stsl(y, A, real(), noise_std=NOISE, samples=2, steps=10, inner_steps=1, **NO_TRACE,
               start=LatentStep(0, sigmas[0], z, z, 0, 0, z))

    def check(method: Method) -> None:
        assert relative(method(y, A, real(), z, 10), got) < 1e-6

    check(written_out())
    for fault in ("half the data", "no network"):
        with pytest.raises(AssertionError):
            check(written_out(fault))


def test_s4_probe_estimates_the_trace() -> None:
    """Over one probe along each latent number the mean is the trace of the denoiser's Jacobian,
    which is that of the score's but for known factors.

    The network is piecewise linear: where the probe crosses no kink the trace does not change with
    the latent, and the gradient of the term is zero; the paper's probe of 1 crosses many.
    """
    sigma = torch.tensor(0.5, dtype=F64)
    size = (4, 4, 4)
    z = noise(*size, seed=4)
    with torch.enable_grad():
        at = z.clone().requires_grad_()
        x0 = real()(at, sigma).flatten()
        rows = [torch.autograd.grad(one, at, retain_graph=True)[0].flatten() for one in x0]
    want = float(torch.stack(rows).trace())
    eps = 8 * torch.eye(64, dtype=F64).view(64, *size)  # of the norm that random probes have

    def value(delta: float, fault: str = "") -> float:
        change = real()(z + delta * eps, sigma) - (0 if fault == "one-sided" else real()(z, sigma))
        return float((eps * change).sum((1, 2, 3)).mean()) / delta

    assert value(1e-5) == pytest.approx(want, rel=1e-4)
    for wrong in (value(1e-5, "one-sided"), value(1e-5) / 2, value(3.0)):
        assert wrong != pytest.approx(want, rel=1e-4)

    def gradient(probe: float) -> float:
        one = z.expand(64, *size)
        pull = denoise_with_pullback(real(), one, sigma)[1]
        return float(trace_gradient(real(), one, sigma, eps, probe, pull).abs().max())

    assert gradient(1e-9) * 1e-9 < 1e-3 * gradient(1.0)


@quiet
def test_s5_discrepancy_holds_the_residual() -> None:
    A = mask()
    y = measured(A)

    def check(**settings: Any) -> None:
        step = stsl.run(y, A, real(), noise_std=NOISE, steps=10, inner_steps=2, **NO_TRACE,
                        **settings)
        found = float((A(step.x0) - y).square().sum()) / (int(A.mask.sum()) * NOISE**2)
        assert found == pytest.approx(float((step.residual / NOISE).square()), rel=1e-6)
        assert 0.8 < found < 1.2

    check(discrepancy=1.0)
    with pytest.raises(AssertionError):
        check(discrepancy=2.0)


def test_s5_warns_where_noise_is_fitted() -> None:
    A = Masking(torch.rand(32, 32, generator=seeded(5)) < 0.05, IMAGE)  # few, and easy to fit
    y = measured(A)
    with pytest.warns(UserWarning, match="of noise_std in an item: noise is fitted"):
        stsl(y, A, real(), noise_std=1.0, steps=5, guidance=math.inf, **NO_TRACE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stsl(y, A, real(), noise_std=NOISE, steps=5, discrepancy=1.0, **NO_TRACE)


@quiet
def test_s6_counts_what_it_calls() -> None:
    counting = Counting(real().of)
    calls, prior = counting.calls, LatentPrior(counting, real().codec)
    A = mask()
    for inner, weight in ((2, 0.02), (2, 0.0), (0, 0.02)):
        calls.update(forward=0, backward=0)
        last = stsl.run(measured(A), A, prior, noise_std=NOISE, steps=3, inner_steps=inner,
                        hessian_weight=weight, generator=seeded())
        assert calls == {"forward": last.forwards, "backward": last.backwards}
        assert last.forwards == 3 * inner * (2 if weight else 1) + 3 + 3
    for method in (psld, latent_dps):
        calls.update(forward=0, backward=0)
        method(measured(A), A, prior, steps=3)
        assert calls == {"forward": 3, "backward": 3}


@quiet
def test_s7_what_is_random() -> None:
    A = mask()
    y = measured(A)

    def check(**settings: Any) -> None:
        state = torch.get_rng_state()
        draws = stsl(y, A, real(), noise_std=NOISE, samples=2, steps=3, inner_steps=2, **settings)
        assert torch.equal(torch.get_rng_state(), state)
        assert relative(draws[0], draws[1]) < 1e-12
        again = stsl(y, A, real(), noise_std=NOISE, samples=2, steps=3, inner_steps=2, **settings)
        assert torch.equal(again, draws)

    check(**NO_TRACE)
    for wrong in ({"hessian_weight": 0.02}, {"start_noise": 0.1, **NO_TRACE}):
        with pytest.raises(AssertionError):
            check(**wrong)
    first, second = (psld(y, A, real(), steps=3, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("make", [mask, blur])
def test_s8_adjoints_and_gluing(make: Callable[[], LinearOperator]) -> None:
    """Exact adjoints; the encoder sees what a mask measures as it is, the decoded image elsewhere;
    ``gamma`` 0 is latent DPS; two items are as each alone.
    """
    A = make()
    y = measured(A)
    u, v = noise(1, 32, 32, seed=2), noise(*A.range.shape, seed=3)
    assert float((A(u) * v).sum()) == pytest.approx(float((u * A.adjoint(v)).sum()), rel=1e-10)
    one, seen = real().codec, list[Tensor]()
    assert isinstance(one, Autoencoder)

    def spied(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return one.encode(x)

    watched = LatentPrior(real().of, Autoencoder(spied, one.decode, channels=1, latent_channels=4,
                                                 factor=4))
    if isinstance(A, Masking):
        for step in psld.steps(y, A, watched, steps=3, generator=seeded()):
            torch.testing.assert_close(A(seen[-1]), y[None])
            if step.index < 3:
                torch.testing.assert_close(torch.where(A.mask, 0, seen[-1]),
                                           torch.where(A.mask, 0, step.x0[0][None]))
    else:
        psld(y, A, watched, steps=3, generator=seeded())
        with pytest.raises(AssertionError):
            torch.testing.assert_close(A(seen[-1]), y[None])  # no projection
    settings: dict[str, Any] = {"steps": 3, "samples": 2}
    plain = latent_dps(y, A, real(), zeta=0.7, generator=seeded(), **settings)

    def check(gamma: float) -> None:
        got = psld(y, A, real(), omega=0.7, gamma=gamma, generator=seeded(), **settings)
        assert relative(got, plain) < 1e-10

    check(0.0)
    with pytest.raises(AssertionError):
        check(0.1)
    both = psld(torch.stack([y, 3 * y]), A, real(), generator=[seeded(0), seeded(1)], **settings)
    for i in range(2):
        alone = psld((1, 3)[i] * y, A, real(), generator=[seeded(i)], **settings)
        assert relative(both[:, i], alone) < 1e-8
    with pytest.raises(AssertionError):
        assert relative(both[:, 0], both[:, 1]) < 1e-8
