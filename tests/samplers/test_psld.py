"""PSLD and latent DPS against the published update in VP units, and one against the other."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.integrators import DDIM, Step, integrate, schedules
from recon.noise import Noise
from recon.operators import LinearOperator, Masking, Operator, Space, from_nonlinear
from recon.operators.mri import CartesianMRI
from recon.priors import Codec, Gaussian, Prior
from recon.samplers import dps, latent_dps, psld
from tests.samplers.comparing import F64, noise, relative, seeded
from tests.samplers.latents import IMAGE, LATENT, blurred, decode, linearly, mixture

Method = Callable[..., Tensor]
C128 = torch.complex128


def encode(x: Tensor) -> Tensor:
    linear = linearly(x)
    return linear - 0.1 * linear.sin()


def codec(encode: Callable[[Tensor], Tensor] = encode) -> Codec:
    return Codec(encode, decode, image=IMAGE, latent=LATENT)


def written_out(fault: str = "") -> Method:
    """PSLD in VP units, by autograd of its loss in ``Z``, as published."""

    def method(y: Tensor, A: LinearOperator, prior: Prior, *, codec: Codec, steps: int,
               omega: float, gamma: float, eta: float, samples: int,
               generator: torch.Generator) -> Tensor:
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
        visited = [*abar[:: 1000 // steps].flip(0), torch.ones((), dtype=F64)]
        draw, dims = Noise(generator, 1), (-3, -2, -1)
        Z = (1 - visited[0]).sqrt() * draw.like(torch.empty(samples, len(y), 1, 1, 4, dtype=F64))

        def norm(r: Tensor) -> Tensor:
            if fault == "norm of the batch":
                return r.square().sum().sqrt()
            return r.square().sum(dims).sqrt().sum()

        for a, s in itertools.pairwise(visited):
            with torch.enable_grad():
                Z = Z.detach().requires_grad_()
                z0 = prior(Z / a.sqrt(), ((1 - a) / a).sqrt())
                x = codec.decode(z0)
                Ax = A(x)
                back = Ax if fault == "blur not transposed" else A.H(Ax)
                pulled = y if fault == "blur not transposed" else A.H(y)
                gap = codec.encode(pulled + x - back) - z0
                if fault == "fixed gluing":
                    gap = gap.detach() - z0 + z0.detach()
                (grad,) = torch.autograd.grad(omega * norm(Ax - y) + gamma * norm(gap), Z)
            z0, Z = z0.detach(), Z.detach()
            e = (Z - a.sqrt() * z0) / (1 - a).sqrt()
            fresh = eta * ((1 - s) / (1 - a) * (1 - a / s)).sqrt()
            Z = s.sqrt() * z0 + (1 - s - fresh.square()).clamp(min=0).sqrt() * e
            if fault != "no gradient":
                Z = Z - grad
            if eta > 0:
                Z = Z + fresh * draw.like(Z)
        return codec.decode(Z)

    return method


@pytest.mark.parametrize(("omega", "gamma", "eta"), [
    (1.0, 0.1, 0.0), (0.3, 0.5, 0.0), (0.1, 0.1, 0.7), (0.5, 0.0, 0.0)])
def test_variance_preserving_form(omega: float, gamma: float, eta: float) -> None:
    A, prior, y = blurred(), mixture(), noise(2, 1, 2, 3, seed=1)
    settings: dict[str, Any] = {"codec": codec(), "steps": 20, "eta": eta, "samples": 3}
    got = psld(y, A, prior, omega=omega, gamma=gamma, generator=seeded(), **settings)

    def check(method: Method) -> None:
        want = method(y, A, prior, omega=omega, gamma=gamma, generator=seeded(), **settings)
        assert relative(got, want) < 1e-8

    check(written_out())
    for fault in ("norm of the batch", "no gradient",
                  *["blur not transposed", "fixed gluing"] * (gamma > 0)):
        with pytest.raises(AssertionError):
            check(written_out(fault))
    if gamma == 0:
        assert torch.equal(latent_dps(y, A, prior, zeta=omega, generator=seeded(), **settings), got)
    with pytest.raises(AssertionError):
        check(lambda *args, **given: psld(*args, **given | {"omega": 0.9 * omega}))


@pytest.mark.parametrize("kind", ["real", "complex", "nonlinear"])
def test_pixels_as_latents_is_dps(kind: str) -> None:
    """Without a codec, ancestral."""
    space = Space((1, 8, 8), torch.complex64 if kind == "complex" else torch.float32)
    mean = torch.zeros(1, 8, 8, dtype=C128 if kind == "complex" else F64)
    prior = Gaussian(mean, spectrum=0.1 + torch.fft.fftfreq(8, dtype=F64).square()[None]
                     ).rescaled(2.0)
    A: Operator = Masking(torch.arange(8) % 2, space)
    if kind == "complex":
        A = CartesianMRI((8, 8), torch.arange(8) % 2)
    if kind == "nonlinear":
        A = from_nonlinear(lambda x: x.square(), domain=space, range=space)
    y = A(prior.of.sample(2, seeded(5)))  # type: ignore[operator, union-attr]
    settings: dict[str, Any] = {"steps": 30, "samples": 2, "zeta": 0.5}
    want = dps(y, A, prior, generator=seeded(), **settings)

    def check(**other: Any) -> None:
        got = latent_dps(y, A, prior, generator=seeded(), **settings | {"eta": 1.0} | other)
        assert relative(got, want) < 1e-9

    check()
    check(codec=Codec.identity(space))
    for wrong in ({"eta": 0.5}, {"zeta": 0.4}):
        with pytest.raises(AssertionError):
            check(**wrong)


def test_without_weights_is_ddim() -> None:
    A, prior, y = blurred(), mixture(), noise(1, 2, 3, seed=1)
    sigmas = schedules.vp(30)
    z = sigmas[0] * noise(3, 1, 1, 4)
    want = codec().decode(integrate(prior, z, sigmas, DDIM()))
    settings: dict[str, Any] = {"codec": codec(), "samples": 3, "sigmas": sigmas,
                                "start": Step(0, sigmas[0], z, z)}
    assert relative(psld(y, A, prior, omega=0.0, gamma=0.0, **settings), want) < 1e-12
    assert relative(latent_dps(y, A, prior, zeta=0.0, **settings), want) < 1e-12
    with pytest.raises(AssertionError):
        assert relative(psld(y, A, prior, omega=0.0, gamma=0.1, **settings), want) < 1e-12


def test_gluing_keeps_what_is_measured() -> None:
    """S8: the encoder sees y where the mask measures and the decoded image elsewhere."""
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    seen: list[Tensor] = []

    def spied(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return encode(x)

    y = noise(1, 2, 3, seed=1)

    def check(A: LinearOperator, given: Tensor) -> None:
        seen.clear()
        for step in psld.steps(given, A, mixture(), codec=codec(spied), steps=4,
                               generator=seeded()):
            torch.testing.assert_close(mask * seen[-1][0], mask * y)
            if step.index < 4:  # the last image has made its step
                torch.testing.assert_close((1 - mask) * seen[-1][0], (1 - mask) * step.x0[0])

    A = Masking(mask, IMAGE)
    check(A, mask * y)
    with pytest.raises(AssertionError):
        check(2 * A, 2 * mask * y)  # not a projection


@pytest.mark.parametrize("method", [psld, latent_dps])
@pytest.mark.parametrize("c", [1e-6, 1e6, torch.tensor([1e-6, 1.0, 1e6], dtype=F64)])
def test_units_with_a_codec(method: Method, c: Tensor | float) -> None:
    A, prior, y = blurred(), mixture(), noise(3, 1, 2, 3, seed=1)
    factor = c.view(3, 1, 1, 1) if isinstance(c, Tensor) else c
    settings: dict[str, Any] = {"steps": 10, "samples": 2}
    want = method(y, A, prior, codec=codec(), generator=seeded(), **settings)

    def check(codec: Codec, prior: Prior) -> None:
        got = method(factor * y, A, prior, codec=codec, generator=seeded(), **settings)
        assert relative(got / factor, want) < 1e-6

    check(codec().rescaled(c), prior)
    for wrong in ((codec().rescaled(c), prior.rescaled(c)), (codec(), prior)):
        with pytest.raises(AssertionError):
            check(*wrong)
    pixels = Gaussian(torch.zeros(1, 2, 3, dtype=F64), variance=1.0)
    one = method(y, A, pixels, generator=seeded(), **settings)
    for given in ({"prior": pixels.rescaled(c)},
                  {"prior": pixels, "codec": Codec.identity(IMAGE).rescaled(c)}):
        got = method(factor * y, A, **given, generator=seeded(), **settings)
        assert relative(got / factor, one) < 1e-6


@pytest.mark.parametrize("method", [psld, latent_dps])
def test_items_stand_alone_with_a_codec(method: Method) -> None:
    A, prior = blurred(), mixture()
    y = torch.tensor([1.0, 10, 0, 0.1], dtype=F64).view(4, 1, 1, 1) * noise(4, 1, 2, 3, seed=1)
    both = method(y, A, prior, codec=codec(), steps=10, samples=2,
                  generator=[seeded(i) for i in range(4)])
    for i in range(4):
        alone = method(y[i], A, prior, codec=codec(), steps=10, samples=2, generator=[seeded(i)])
        assert relative(both[:, i], alone) < 1e-8


def test_refusals() -> None:
    A, prior, y = blurred(), mixture(), noise(1, 2, 3)
    weights: list[tuple[Method, str]] = [(psld, "omega"), (psld, "gamma"), (latent_dps, "zeta")]
    for method, name in weights:
        for value in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{name} wants a finite number >= 0"):
                method(y, A, prior, codec=codec(), steps=2, **{name: value})
    with pytest.raises(ValueError, match=r"eta wants a number in \[0, 1\]"):
        psld(y, A, prior, codec=codec(), steps=2, eta=2.0)
    with pytest.raises(ValueError, match="pass a codec of the operator's images"):
        psld(noise(1, 2, 4), Masking(torch.ones(4), Space((1, 2, 4))), prior, codec=codec())
    drawn = codec(lambda x: encode(x) + torch.randn(len(x), 1, 1, 4, dtype=F64))
    with pytest.raises(ValueError, match="encode to the mean, not to a draw"):
        psld(y, A, prior, codec=drawn, steps=2)
    psld(y, A, prior, codec=drawn, steps=2, gamma=0.0)  # does not encode
    prior.is_latent = True
    for method in (psld, latent_dps):
        with pytest.raises(TypeError, match="codec="):
            method(y, A, prior)
