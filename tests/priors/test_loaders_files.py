"""Checkpoints fabricated in every layout: opened as trained, averages first; damage is refused."""

import json
import math
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recon.priors import (
    CheckpointError,
    EDMPrior,
    Flow,
    Prior,
    VarianceExploding,
    VariancePreserving,
    card,
    from_network,
    load,
)
from recon.priors.loaders import adm, edm, edm2, ncsnpp, ncsnv2
from recon.priors.loaders.declared import Declared
from recon.priors.loaders.states import State, choose

Words = dict[str, Any]
SCRIPTS = Path(__file__).parents[2] / "scripts"


def drawn(network: nn.Module, seed: int = 0) -> State:
    """Weights for a network on the meta device, by its names."""
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) / math.sqrt(max(v[0].numel(), 4)
                                                                     if v.ndim else 4)
            for k, v in network.state_dict().items()}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adm_state(seed: int = 0, outputs: int = 2) -> State:
    with torch.device("meta"):
        network = adm.UNet(1, outputs, 32, [32, 32], 1, time=64,
                           attended={"middle_block.1", "output_blocks.1.1"},
                           resample_in_blocks=True, scale_and_shift=True, head=32, legacy=True)
    return drawn(network, seed)


def ncsnpp_state(seed: int = 0) -> State:
    with torch.device("meta"):
        network = ncsnpp.NCSNpp(1, 8, [8, 16], 1, {1}, True, frequencies=8, time=32)
    return drawn(network, seed)


def ncsnv2_state(seed: int = 0) -> State:
    with torch.device("meta"):
        network = ncsnv2.NCSNv2(1, 4, ("1", "2", "3", "31", "4", "5"), True)
    return drawn(network, seed)


def edm_state(seed: int = 0) -> State:
    with torch.device("meta"):
        network = edm.UNet(1, 1, 8, {16: 8, 8: 16}, 1, song=False, noise=8, time=32, augment=0,
                           fourier=False, residual=False, attended={"dec.8x8_in0"}, taps=2)
    return drawn(network, seed)


def edm2_state(seed: int = 0) -> State:
    with torch.device("meta"):
        network = edm2.UNet(1, 1, {16: 8, 8: 16}, 1, noise=8, time=16, attended={"dec.8x8_in0"})
    return drawn(network, seed)


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{k}": v for k, v in state.items()}


SIGMAS = torch.logspace(0, -2, 20, dtype=torch.float64) * 50
RAW, EMA = 0, 1  # seeds of the weights as trained and of their average
IN_01: Words = {"value_range": (0, 1)}

# ---- every layout: what the file holds, what is declared, and the exact denoiser


def after_adm(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    said = Declared(head_channels=32)
    network = adm.from_state("x", adm_state(seed), said)
    scale = (1 + sigma**2).rsqrt()
    eps = network(scale * x, VariancePreserving.linear().time(sigma))[:, :1]
    return x - sigma * eps


def after_ncsnpp(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    state = ncsnpp_state(seed)
    state["all_modules.0.W"] = ncsnpp_state(RAW)["all_modules.0.W"]  # in no average
    return x + sigma**2 * ncsnpp.from_state("x", state)(x, sigma)


def after_ncsnv2(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    return x + sigma**2 * ncsnv2.from_state("x", ncsnv2_state(seed))(x, sigma)


def after_edm(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    network = edm.from_state("x", edm_state(seed))
    whole = sigma**2 + 0.25
    return (0.25 / whole * x + sigma * 0.5 / whole.sqrt()
            * network(x / whole.sqrt(), sigma.log() / 4))


def after_edm2(x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    network = edm2.from_state("x", edm2_state(seed))
    return EDMPrior(network, 1, sigma_data=0.5)(x, sigma)


Denoiser = Callable[[Tensor, Tensor, int], Tensor]
LAYOUTS: dict[str, tuple[Callable[[], Any], Words, Denoiser, int]] = {
    "guided-diffusion": (lambda: adm_state(EMA), IN_01 | {"head_channels": 32}, after_adm, EMA),
    "guided-diffusion, wrapped": (
        lambda: {"state_dict": adm_state(RAW), "ema": adm_state(EMA), "step": 7},
        IN_01 | {"head_channels": 32}, after_adm, EMA),
    "guided-diffusion, compiled": (
        lambda: {"model": prefixed("module._orig_mod.", adm_state(EMA))},
        IN_01 | {"head_channels": 32}, after_adm, EMA),
    "score_sde": (
        lambda: {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "step": 100,
                 "model": prefixed("module.", ncsnpp_state(RAW) | {"sigmas": SIGMAS}),
                 "ema": {"decay": 0.999, "num_updates": 9, "shadow_params": [
                     v for k, v in ncsnpp_state(EMA).items() if k != "all_modules.0.W"]}},
        IN_01, after_ncsnpp, EMA),
    "NCSNv2": (
        lambda: [prefixed("module.", ncsnv2_state(RAW) | {"sigmas": SIGMAS.float()}),
                 {"state": {}, "param_groups": [{"lr": 1e-4}]}, 12, 3400, ncsnv2_state(EMA)],
        IN_01, after_ncsnv2, EMA),
    "EDM": (lambda: prefixed("model.", edm_state(EMA)), IN_01 | {"sigma_data": 0.5}, after_edm,
            EMA),
    "InverseBench": (
        lambda: {"net": prefixed("model.", edm_state(RAW)),
                 "ema": prefixed("model.", edm_state(EMA)), "optimizer_state": {"state": {}}},
        IN_01 | {"sigma_data": 0.5}, after_edm, EMA),
    "EDM2": (
        lambda: prefixed("unet.", edm2_state(EMA)) | {
            "logvar_fourier.freqs": torch.ones(4), "logvar_fourier.phases": torch.ones(4),
            "logvar_linear.weight": torch.ones(1, 4)},
        IN_01 | {"sigma_data": 0.5}, after_edm2, EMA),
}


def write(path: Path, held: Any) -> Path:
    torch.save(held, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(layout: str, tmp_path: Path) -> None:
    hold, words, denoise, seed = LAYOUTS[layout]
    prior = load(write(tmp_path / "x.pt", hold()), **words)
    x, sigma = noise(1, 1, 16, 16), torch.tensor([0.7])
    want = denoise(x, sigma, seed)
    got = prior(x, sigma)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    raw = denoise(x, sigma, 1 - seed)
    assert not torch.allclose(got, raw, rtol=1e-2, atol=1e-2)
    assert (prior.channels, prior.is_complex, prior.training) == (1, False, False)
    assert not any(p.requires_grad for p in prior.parameters())


def test_precision_batches_and_dtypes(tmp_path: Path) -> None:
    path, words = write(tmp_path / "x.pt", edm_state()), IN_01 | {"sigma_data": 0.5}
    x, sigma = noise(3, 1, 16, 16), torch.tensor([0.1, 0.7, 5.0])
    prior = load(path, **words)
    want = prior(x, sigma)
    assert torch.allclose(want[1:2], after_edm(x[1:2], sigma[1:2], RAW), atol=1e-5)
    assert prior(x.double(), sigma).dtype == torch.float64
    half = load(path, precision=torch.bfloat16, max_batch=1, **words)
    assert half.max_batch == 1
    assert 1e-5 < float((half(x, sigma) - want).abs().max() / want.abs().max()) < 0.1
    assert (prior.sigma_min, prior.sigma_max) == (0.002, 80.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_noise_is_no_change(layout: str, tmp_path: Path) -> None:
    hold, words, _, _ = LAYOUTS[layout]
    prior, x = load(write(tmp_path / "x.pt", hold()), **words), noise(2, 1, 16, 16)
    for sigma in (0.0, 1e-30, 1e-20):
        assert torch.allclose(prior(x, sigma), x, rtol=1e-5, atol=1e-5), sigma
    mixed = prior(x, torch.tensor([0.0, 0.7]))
    assert torch.allclose(mixed[1:], prior(x[1:], 0.7), atol=1e-5)


def test_a_network_of_half_precision_is_told_the_exact_time(tmp_path: Path) -> None:
    """Between 512 and 1024 bfloat16 knows every fourth index alone."""
    path, x = write(tmp_path / "x.pt", adm_state()), noise(2, 1, 16, 16)
    words: Words = IN_01 | {"head_channels": 32}
    sigma, schedule = torch.tensor(4.0), VariancePreserving.linear()
    want = load(path, **words)(x, sigma)
    got = load(path, **words).bfloat16()(x, sigma)
    network = adm.from_state("x", adm_state(), Declared(head_channels=32)).bfloat16()
    z, time = (schedule.scale(sigma) * x).bfloat16(), schedule.time(sigma).expand(2)

    def denoised(index: Tensor) -> Tensor:
        return x - sigma * network(z, index)[:, :1].float()

    def error(made: Tensor) -> float:
        return float((made - want).norm() / want.norm())

    assert error(got) == pytest.approx(error(denoised(time)), rel=1e-3)
    assert error(denoised(time.bfloat16())) > 3 * error(got)
    own, told = Own().bfloat16(), []
    own.register_forward_pre_hook(lambda _, given: told.append(given[1].dtype))
    from_network(own, 1, predicts="x0", schedule=schedule, **IN_01)(x, sigma)
    assert told == [torch.bfloat16]  # of one's own it is called as it was trained


def test_other_files_of_the_same_tensors(tmp_path: Path) -> None:
    words, x = IN_01 | {"head_channels": 32}, noise(1, 1, 16, 16)
    want = load(write(tmp_path / "x.pt", adm_state()), **words)(x, 0.5)
    torch.save(adm_state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(adm_state(), tmp_path / "x.safetensors")
    for name in ("old.pth", "x.safetensors"):
        assert torch.equal(load(tmp_path / name, **words)(x, 0.5), want), name


def test_half_precision_torsos_are_opened_exactly(tmp_path: Path) -> None:
    """As 256x256_diffusion_uncond.pt's trainer keeps them: convolutions in half precision."""
    torso = {k: v.half() if v.ndim > 2 and not k.startswith("out.") else v
             for k, v in adm_state().items()}
    words, x = IN_01 | {"head_channels": 32}, noise(1, 1, 16, 16)
    got = load(write(tmp_path / "half.pt", torso), **words)(x, 0.5)
    rounded = {k: v.float() for k, v in torso.items()}
    assert torch.equal(got, load(write(tmp_path / "x.pt", rounded), **words)(x, 0.5))
    assert not torch.equal(got, load(write(tmp_path / "y.pt", adm_state()), **words)(x, 0.5))


def test_noise_levels_of_the_file(tmp_path: Path) -> None:
    hold = LAYOUTS["score_sde"][0]
    prior = load(write(tmp_path / "x.pth", hold()), **IN_01)
    assert prior.sigma_min == pytest.approx(0.5)
    assert prior.sigma_max == pytest.approx(50)
    told = load(tmp_path / "x.pth", **IN_01, schedule=VarianceExploding(0.01, 378.0))
    assert (told.sigma_min, told.sigma_max) == (0.01, 378.0)
    held = hold()
    held["model"].pop("module.sigmas")
    with pytest.raises(CheckpointError, match=r"y\.pth does not say its noise levels .no 'sigmas'.:"
                                              r" pass schedule=VarianceExploding.* 0.01 to 378"):
        load(write(tmp_path / "y.pth", held), **IN_01)
    alone = dict(ncsnpp_state())
    frequencies = alone.pop("all_modules.0.W")
    with pytest.raises(CheckpointError, match=r"z\.pth lacks all_modules\.0\.W, the frequencies"):
        load(write(tmp_path / "z.pth", alone | {"sigmas": SIGMAS}), **IN_01)
    positional = alone | {"sigmas": SIGMAS, "all_modules.0.weight": frequencies}
    with pytest.raises(CheckpointError, match=r"embeds the time by position, as DDPM.. does"):
        load(write(tmp_path / "z.pth", positional), **IN_01)


# ---- units

def test_units(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", adm_state())
    x, sigma = noise(2, 1, 16, 16), 0.3

    def prior(**words: Any) -> Prior:
        return load(path, head_channels=32, **words)

    as_trained = prior(value_range=(0, 1))
    assert not as_trained.normalised
    want = (as_trained(2 * x - 1, 2 * sigma) + 1) / 2
    assert torch.allclose(prior(value_range=(-1, 1))(x, sigma), want, atol=1e-5)
    whole = prior(value_range="normalised")
    assert whole.normalised
    assert torch.equal(whole(x, sigma), as_trained(x, sigma))
    with pytest.raises(CheckpointError, match=r"x\.pt does not say which values its training"):
        prior()
    for bad in ((1, 0), "[0, 1]", (0, float("nan")), 3):
        with pytest.raises(ValueError, match="value_range wants the values of black and white"):
            prior(value_range=bad)
    with pytest.raises(ValueError, match="wants an even number of channels"):
        prior(value_range="normalised", is_complex=True)
    with pytest.raises(ValueError, match=r"multiples of 2, got .15, 16.: crop or pad"):
        as_trained(x[..., :15, :], sigma)


RANGES: dict[str, Callable[[tuple[int, int]], Any]] = {
    "list": list, "floats": lambda v: tuple(map(float, v)), "array": np.array,
    "tensor": lambda v: torch.tensor(v, dtype=torch.float32)}


@pytest.mark.parametrize("family", ["score_sde", "NCSNv2", "EDM"])
def test_values_in_any_sequence(family: str, tmp_path: Path) -> None:
    """Score networks centre images that are not in [-1, 1]: not those of a list by mistake."""
    state, words = FAMILIES[family]
    path, x = write(tmp_path / "x.pt", state()), noise(1, 1, 16, 16)
    want = load(path, **(words | {"value_range": (-1, 1)}))(x, 1.0)
    for form in RANGES.values():
        given = form((-1, 1))
        assert torch.equal(load(path, **(words | {"value_range": given}))(x, 1.0), want)
    assert not torch.equal(load(path, **words)(x, 1.0), want)
    own: Words = {"predicts": "flow", "schedule": Flow()}
    network = Own()
    assert torch.equal(from_network(network, 1, value_range=given, **own)(x, 1.0),
                       from_network(network, 1, value_range=(-1, 1), **own)(x, 1.0))


def test_complex_units(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = adm.UNet(2, 4, 32, [32], 1, time=64, attended=set(), resample_in_blocks=True,
                           scale_and_shift=True, head=32, legacy=True)
    path = write(tmp_path / "knee.pt", drawn(network))
    words: Words = {"is_complex": True, "head_channels": 32}
    x = torch.complex(noise(1, 1, 8, 8), noise(1, 1, 8, 8, seed=2))
    real = load(path, value_range=(0, 1), head_channels=32)
    parts = real(torch.cat([x.real, x.imag], 1), 0.4)
    prior = load(path, value_range="normalised", **words)
    assert prior.normalised
    assert torch.allclose(prior(x, 0.4), torch.complex(parts[:, :1], parts[:, 1:]), atol=1e-6)
    halved = load(path, value_range=(-2, 2), **words)
    assert torch.allclose(halved(x / 2, 0.2), prior(x, 0.4) / 2, atol=1e-6)
    with pytest.raises(ValueError, match=r"of complex images wants .-a, a. .* must stay zero"):
        load(path, value_range=(0, 1), **words)


# ---- what must be declared, and what must not

@pytest.mark.parametrize(("layout", "words", "told"), [
    ("EDM", {}, "does not say the deviation .* pass sigma_data=, which is 0.5 in EDM's and Inv"),
    ("EDM2", {}, "does not say the deviation .* pass sigma_data="),
    ("guided-diffusion", {}, "does not say how many channels its attention heads have"),
    ("guided-diffusion", {"channels": 3}, "is of images of 1 channel.s., not of the 3 asked for"),
    ("NCSNv2", {"sigma_data": 0.5}, "sigma_data= says nothing about x.pt, which is an NCSNv2"),
    ("EDM", {"predicts": "eps"}, "predicts= says nothing about x.pt, which is a UNet of EDM"),
    ("score_sde", {"schedule": VariancePreserving.linear()}, "variance-exploding noise alone"),
    ("guided-diffusion", {"predicts": "noise"}, "predicts wants one of eps, score, v, x0, flow"),
    ("guided-diffusion", {"precision": torch.float64}, "precision wants float32, bfloat16 or"),
    ("guided-diffusion", {"entry": "ema"}, "x.pt has no entry 'ema': it holds 'time_embed"),
])
def test_declarations(layout: str, words: Words, told: str, tmp_path: Path) -> None:
    hold, needed, _, _ = LAYOUTS[layout]
    path = write(tmp_path / "x.pt", hold())
    words = IN_01 | ({"head_channels": 32} if "precision" in words or ("predicts" in words
                     and "guided" in layout) or "channels" in words else {}) | words
    assert needed is not None
    with pytest.raises(ValueError, match=told) as caught:
        load(path, **words)
    assert "\n" not in str(caught.value)


def test_conditioned_networks_are_refused(tmp_path: Path) -> None:
    for state, told in [
        (adm_state() | {"label_emb.weight": torch.ones(10, 64)}, "conditioned on 10 classes"),
        (edm_state() | {"map_label.weight": torch.ones(32, 7)}, "conditioned on 7 classes"),
        (edm2_state() | {"emb_label.weight": torch.ones(16, 5)}, "conditioned on 5 classes"),
        (edm_state() | {"u": torch.ones(1001)}, "iDDPM's preconditioning"),
        (prefixed("model.", edm_state()) | {"u": torch.ones(1001)}, "iDDPM's preconditioning"),
    ]:
        with pytest.raises(CheckpointError, match=told):
            load(write(tmp_path / "x.pt", state), **IN_01, sigma_data=0.5)


def test_guided_diffusion_inside_another_network(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", prefixed("model.", adm_state()))
    words: Words = IN_01 | {"head_channels": 32}
    with pytest.raises(CheckpointError, match=r"inside another network, by its keys 'model.'"):
        load(path, **words)
    x = noise(1, 1, 16, 16)
    assert torch.allclose(load(path, predicts="eps", **words)(x, 0.3),
                          after_adm(x, torch.tensor([0.3]), RAW), atol=1e-5)
    with pytest.raises(CheckpointError, match="maps 1 channels to 2: want as many: it is made for"):
        load(path, sigma_data=0.5, **words)
    one = adm_state(outputs=1)
    write(path, prefixed("model.", one))
    want = EDMPrior(adm.from_state("x", one, Declared(head_channels=32)), 1, sigma_data=0.5)
    assert torch.allclose(load(path, sigma_data=0.5, **words)(x, 0.3), want(x, 0.3), atol=1e-5)
    write(path, adm_state(outputs=3))
    with pytest.raises(CheckpointError, match="maps 1 channels to 3: want as many, or twice as"):
        load(path, **words)


@pytest.mark.parametrize("prefix", ["ema_model.", "ema.module.", "model_ema.", "ema."])
def test_averages_beside_a_wrapped_network(prefix: str, tmp_path: Path) -> None:
    """As a trainer's module keeps both; its raw weights would pass for the average unseen."""
    x, sigma = noise(1, 1, 16, 16), torch.tensor([0.3])
    counted = {"ema.n_averaged": torch.tensor(3), f"{prefix}decay": torch.tensor(0.999)}

    def held(raw: State, average: State) -> dict[str, Any]:
        return {"state_dict": prefixed("model.", raw) | prefixed(prefix, average) | counted,
                "epoch": 3, "global_step": 7}

    words: Words = IN_01 | {"sigma_data": 0.5}
    path = write(tmp_path / "edm.ckpt", held(edm_state(RAW), edm_state(EMA)))
    assert torch.allclose(load(path, **words)(x, sigma), after_edm(x, sigma, EMA), atol=1e-5)
    assert not torch.allclose(after_edm(x, sigma, RAW), after_edm(x, sigma, EMA), atol=1e-2)
    bare = {k: v for k, v in edm_state(EMA).items() if not k.endswith("resample_filter")}
    path = write(tmp_path / "bare.ckpt", held(edm_state(RAW), bare))
    whole = write(tmp_path / "whole.pt", edm_state(RAW) | bare)
    assert torch.equal(load(path, **words)(x, sigma), load(whole, **words)(x, sigma))
    betas = torch.linspace(1e-3, 0.05, 100)
    found = held(adm_state(RAW), adm_state(EMA))
    found["state_dict"] |= {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0)}
    path = write(tmp_path / "adm.ckpt", found)
    words = IN_01 | {"predicts": "eps", "head_channels": 32}
    schedule = VariancePreserving((1 - betas.double()).cumprod(0))
    network = adm.from_state("x", adm_state(EMA), Declared(head_channels=32))
    want = x - sigma * network(schedule.scale(sigma) * x, schedule.time(sigma))[:, :1]
    assert torch.allclose(load(path, **words)(x, sigma), want, atol=1e-5)
    assert not torch.allclose(after_adm(x, sigma, EMA), want, atol=1e-2)  # the linear schedule's
    told = load(path, schedule=VariancePreserving.linear(), **words)
    assert torch.allclose(told(x, sigma), after_adm(x, sigma, EMA), atol=1e-5)


def test_what_is_beside_a_wrapped_network_is_accounted_for(tmp_path: Path) -> None:
    def refused(state: State, told: str, **words: Any) -> None:
        with pytest.raises(CheckpointError, match=told):
            load(write(tmp_path / "x.ckpt", state), **IN_01, **words)

    short = prefixed("ema_model.", edm_state(EMA))
    short.popitem()
    refused(prefixed("model.", edm_state()) | short,
            r"do not fit: \d+ unexpected, first ema_model\.", sigma_data=0.5)
    refused(prefixed("model.", edm_state()) | {"other": torch.ones(3, 3)},
            "do not fit: 1 unexpected, first other: ", sigma_data=0.5)
    refused(prefixed("model.", edm_state()) | {"sigma_data": torch.tensor(0.3)},
            "1 unexpected, first sigma_data", sigma_data=0.5)
    numbers = {"step": torch.tensor(7), "val_loss.total": torch.tensor(0.1)}
    load(write(tmp_path / "x.ckpt", prefixed("model.", edm_state()) | numbers), **IN_01,
         sigma_data=0.5)
    inner, words = prefixed("model.", adm_state()), {"head_channels": 32, "predicts": "eps"}
    refused(inner | {"other": torch.ones(3)}, "1 unexpected, first other: ", **words)
    refused(inner | {"betas": torch.full((9,), 0.1), "other": torch.ones(3)},
            "1 unexpected, first other: ", **words)
    refused(inner | {"betas": torch.full((9,), 2.0)}, "its betas make no schedule", **words)
    refused(prefixed("model.", adm_state(outputs=1)) | {"betas": torch.full((9,), 0.1)},
            "1 unexpected, first betas: ", head_channels=32, sigma_data=0.5)


# ---- damage: one sentence each, naming the file and what is wrong

def first_of(state: State, ending: str) -> str:
    return next(k for k in state if k.endswith(ending))


FAMILIES: dict[str, tuple[Callable[[], State], Words]] = {
    "guided-diffusion": (adm_state, IN_01 | {"head_channels": 32}),
    "score_sde": (lambda: ncsnpp_state() | {"sigmas": SIGMAS}, IN_01),
    "NCSNv2": (lambda: ncsnv2_state() | {"sigmas": SIGMAS}, IN_01),
    "EDM": (edm_state, IN_01 | {"sigma_data": 0.5}),
    "EDM2": (edm2_state, IN_01 | {"sigma_data": 0.5}),
}
MODULES: dict[str, Any] = {"guided-diffusion": adm, "score_sde": ncsnpp, "NCSNv2": ncsnv2,
                           "EDM": edm, "EDM2": edm2}
PLACES = {"guided-diffusion": "middle_block.0.in_layers.2.weight",
          "score_sde": "all_modules.9.Conv_0.weight", "NCSNv2": "res4.0.conv1.weight",
          "EDM": "dec.8x8_in1.conv1.weight", "EDM2": "dec.8x8_in1.conv_res1.weight"}


def reshaped(state: State, key: str) -> None:
    state[key] = state[key][:-1].clone()


def spoilt(state: State, key: str) -> None:
    state[key].view(-1)[1] = float("nan")


DAMAGE: dict[str, tuple[Callable[[State, str], object], str]] = {
    "missing": (lambda s, k: s.pop(k), "do not fit: 1 missing, first {key}: the file is damaged"),
    "extra": (lambda s, k: s.update({f"{k}s": s[k]}), "1 unexpected, first {key}s: the file"),
    "shape": (reshaped, r"1 of wrong shape or kind, first {key} \(\("),
    "integers": (lambda s, k: s.update({k: s[k].int()}), "of wrong shape or kind, first {key}"),
    "NaN": (spoilt, "{key} holds NaN or infinity, and so do 0 more: copy the file again"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tensors(family: str, damage: str, tmp_path: Path) -> None:
    build, words = FAMILIES[family]
    spoil, told = DAMAGE[damage]
    state = {k: v.clone() for k, v in build().items()}
    spoil(state, PLACES[family])
    path = write(tmp_path / "bad.pt", state)
    with pytest.raises(CheckpointError, match=told.format(key=PLACES[family])) as caught:
        load(path, **words)
    assert str(caught.value).startswith("bad.pt")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_can_be_lost_unseen(family: str) -> None:
    """Whichever tensor is missing, the error is one of ours and says so."""
    build, words = FAMILIES[family]
    whole = build()
    said = Declared(**words)
    for key in list(whole)[::11]:
        state = {k: v for k, v in whole.items() if k != key}
        with pytest.raises(CheckpointError) as caught:
            MODULES[family].build("bad.pt", state, said)
        assert "\n" not in str(caught.value)


def truncated(path: Path) -> None:
    torch.save(adm_state(), path)
    path.write_bytes(path.read_bytes()[:-200])


def truncated_old(path: Path) -> None:
    torch.save(adm_state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:3000])


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, r"bad\.pt is damaged or no checkpoint \(.*\): copy it again"),
    "truncated, old": (truncated_old, r"bad\.pt is (damaged or no|a pickled) checkpoint"),
    "empty": (lambda p: p.touch(), r"bad\.pt is empty: copy it again"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html>"), "is a web page, not the weights"),
    "pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
                "is a git-lfs pointer, not the weights: run git lfs pull"),
    "text": (lambda p: p.write_text("hello"), "is damaged or no checkpoint"),
    "zip of nothing": (lambda p: p.write_bytes(b"PK\x05\x06" + bytes(18)), "damaged or no check"),
    "one tensor": (lambda p: torch.save(torch.ones(3), p), "holds a Tensor: want tensors by name"),
    "no tensors": (lambda p: torch.save({"step": 3}, p), "holds 'step': want one network and at"),
    "numbers": (lambda p: torch.save([1, 2], p), "holds a list of int, int: want tensors by name"),
    "unknown entry": (lambda p: torch.save({"weird": adm_state(), "step": 1}, p),
                      "holds 'weird' of unknown meaning .* say which .* with entry='weird'"),
    "two networks": (lambda p: torch.save({"net": adm_state(), "unet": adm_state()}, p),
                     "holds 'net', 'unet': want one network and at most one average"),
    "strange average": (lambda p: torch.save({"net": adm_state(), "ema": edm_state()}, p),
                        "the average and the network differ in .* tensors, first"),
    "short average": (lambda p: torch.save(
        {"model": ncsnpp_state(), "ema": {"shadow_params": [torch.ones(3)]}}, p),
        "its average lists 1 tensors for the network's"),
    "unknown layout": (lambda p: torch.save({"a.weight": torch.ones(3, 3)}, p),
                       "its 1 tensors, first a.weight, are of no layout known here: a guided-diff"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    spoil, told = FILES[name]
    path = tmp_path / "bad.pt"
    spoil(path)
    with pytest.raises(CheckpointError, match=told) as caught:
        load(path, **IN_01)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_link_is_called_by_its_own_name(tmp_path: Path) -> None:
    """As the cache of a hub has them: names that point to blobs called by a checksum."""
    (tmp_path / "blobs").mkdir()
    write(tmp_path / "blobs" / "3f9ac1d2", edm_state())
    (tmp_path / "knee.pt").symlink_to(tmp_path / "blobs" / "3f9ac1d2")
    with pytest.raises(CheckpointError, match=r"^knee\.pt does not say which values"):
        load(tmp_path / "knee.pt", sigma_data=0.5)


def test_cards_are_of_files_that_have_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", adm_state())
    with pytest.raises(CheckpointError, match=r"^x\.pt has no card: priors that ship with"):
        card(path)
    save_file(adm_state(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"^x\.safetensors has no card"):
        card(tmp_path / "x.safetensors")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^unet has no card"):
        card(tmp_path / "unet")


def test_absent_files() -> None:
    with pytest.raises(CheckpointError, match=r"no prior 'no/such.pt': want one of brain-mri"):
        load("no/such.pt", **IN_01)


def test_an_entry_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", {"weird": adm_state(EMA), "net": adm_state(RAW)})
    x = noise(1, 1, 16, 16)
    got = load(path, entry="weird", head_channels=32, **IN_01)(x, 0.7)
    assert torch.allclose(got, after_adm(x, torch.tensor([0.7]), EMA), atol=1e-5)


def test_averages_that_miss_parameters_are_refused() -> None:
    """A mixture of averaged and raw weights would pass for the average."""
    raw, average = adm_state(RAW), adm_state(EMA)
    average.pop("out.2.bias")
    with pytest.raises(CheckpointError, match=r"differ in 1 tensors, first out\.2\.bias"):
        choose("x.pt", {"model": raw, "ema": average})
    held = {"model": ncsnpp_state(RAW) | {"sigmas": SIGMAS},
            "ema": {k: v for k, v in ncsnpp_state(EMA).items() if k != "all_modules.0.W"}}
    chosen = choose("x.pt", held)
    assert torch.equal(chosen["all_modules.0.W"], ncsnpp_state(RAW)["all_modules.0.W"])
    assert torch.equal(chosen["all_modules.3.bias"], ncsnpp_state(EMA)["all_modules.3.bias"])
    # a linear map's W is a parameter, the first module's is none
    held["ema"].pop("all_modules.8.NIN_0.W")
    with pytest.raises(CheckpointError, match=r"first all_modules\.8\.NIN_0\.W"):
        choose("x.pt", held)


# ---- no code is run

class Payload:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_no_payload_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    held = {"ema": Payload(trap), "net": adm_state()}
    torch.save(held, tmp_path / "zip.pt")
    torch.save(held, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(held))
    (tmp_path / "network-snapshot.pkl").write_bytes(pickle.dumps({"ema": nn.Linear(2, 2)}))
    (tmp_path / "as.safetensors").write_bytes(pickle.dumps(held))
    for name in ("zip.pt", "old.pth", "plain.pkl", "network-snapshot.pkl", "as.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name} is a pickled checkpoint, which can run "
                                                  r"code .* with scripts/convert_pickle\.py"):
            load(tmp_path / name, **IN_01)
    assert not trap.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert trap.exists()  # the trap is live


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_pickle.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPTS / "convert_pickle.py"), run_name="__main__")


def test_the_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "ran"
    source, target = tmp_path / "x.pkl", tmp_path / "x.safetensors"
    source.write_bytes(pickle.dumps({"ema": nn.Linear(2, 3), "loss_fn": Payload(trap)}))
    with pytest.raises(SystemExit, match=r"x\.pkl runs code when opened: say --run-its-code"):
        convert(monkeypatch, source, target)
    assert not trap.exists()
    convert(monkeypatch, source, target, "--run-its-code")
    assert trap.exists()
    assert {k: tuple(v.shape) for k, v in load_file(target).items()} == {"weight": (3, 2),
                                                                         "bias": (3,)}
    with pytest.raises(SystemExit, match="exists: choose another name"):
        convert(monkeypatch, source, target, "--run-its-code")
    torch.save({"odd": adm_state()}, tmp_path / "y.pt")
    with pytest.raises(SystemExit, match=r"want one of ema, .*, got odd: say --entry"):
        convert(monkeypatch, tmp_path / "y.pt", tmp_path / "y.safetensors", "--run-its-code")
    torch.save({"model": adm_state(), "ema": {"shadow_params": list(adm_state().values())}},
               tmp_path / "z.pt")
    with pytest.raises(SystemExit, match=r"entry 'ema' holds no tensors by name .*: say --e"):
        convert(monkeypatch, tmp_path / "z.pt", tmp_path / "z.safetensors", "--run-its-code")
    assert not (tmp_path / "z.safetensors").exists()
    convert(monkeypatch, tmp_path / "y.pt", tmp_path / "y.safetensors", "--entry", "odd",
            "--run-its-code")
    assert load(tmp_path / "y.safetensors", head_channels=32, **IN_01).channels == 1


# ---- networks of one's own

class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.conv(z) * t.view(-1, 1, 1, 1)


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    trained = Own()
    path = write(tmp_path / "x.pt", {"model": Own().state_dict(), "ema": trained.state_dict()})
    x = noise(2, 1, 8, 8)
    prior = load(path, network=Own(), channels=1, predicts="flow",
                 schedule=Flow(time=lambda t: 1 - t), **IN_01)
    t = 0.6 / 1.6
    with torch.no_grad():
        want = (1 - t) * x - t * trained((1 - t) * x, torch.full((2,), 1 - t))
    assert torch.allclose(prior(x, 0.6), want, atol=1e-6)
    with pytest.raises(CheckpointError, match="a network of one's own wants channels= too"):
        load(path, network=Own(), **IN_01)
    with pytest.raises(ValueError, match="wants predicts= and schedule=, or sigma_data="):
        load(path, network=Own(), channels=1, **IN_01)
    with pytest.raises(CheckpointError, match="looks like the network given but its tensors do"):
        load(path, network=nn.Linear(2, 2), channels=1, predicts="x0", schedule=Flow(), **IN_01)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        dropped: Tensor = self.drop(z)
        return dropped


def test_a_network_of_ones_own_is_evaluated() -> None:
    """Two calls agree, dropout or not."""
    prior = from_network(Dropping(), 1, predicts="x0", schedule=Flow(), value_range=(0, 1))
    x = torch.ones(1, 16, 16)
    assert torch.equal(prior(x, 1.0), x / 2)
    prior.train()
    assert not torch.equal(prior(x, 1.0), x / 2)


def test_files_that_say_all_about_themselves() -> None:
    with pytest.raises(CheckpointError, match=r"brain-mri.safetensors says all about itself: leave "
                                              "value_range= out"):
        load("brain-mri", **IN_01)
    with pytest.raises(CheckpointError, match=r"is of images of 2 channel.s., not of the 1 asked"):
        load("brain-mri", channels=1)
    assert json.dumps(load("brain-mri", channels=2).channels) == "1"


# ---- words kept beside the file

def test_words_beside_the_file(tmp_path: Path) -> None:
    path, beside = write(tmp_path / "x.pt", {"odd": adm_state()}), tmp_path / "x.pt.json"
    beside.write_text(json.dumps({"value_range": [-1, 1], "head_channels": 32, "entry": "odd",
                                  "schedule": [0.01, 50], "predicts": "eps"}))
    words: Words = {"entry": "odd", "head_channels": 32, "predicts": "eps",
                    "schedule": VarianceExploding(0.01, 50.0)}
    x = noise(1, 1, 16, 16)
    assert torch.equal(load(path)(x, 0.3), load(path, value_range=(-1, 1), **words)(x, 0.3))
    said = load(path, value_range=(0, 1))
    assert torch.equal(said(x, 0.3), load(path, **words, **IN_01)(x, 0.3))
    for text, told in [("{", r"x\.pt\.json is no JSON"),
                       ("[" * 100_000, r"x\.pt\.json is no JSON"),
                       ("[1]", "all of it is not understood"),
                       ('{"range": 1}', "range is not understood: want some of value_range, is_"),
                       ('{"is_complex": 1}', "is_complex is not understood"),
                       ('{"schedule": "cosine"}', "schedule wants linear, flow or .sigma_min"),
                       ('{"schedule": [2, 1]}', "schedule wants linear, flow or"),
                       ('{"value_range": [1, 0]}', "x.pt.json: value_range wants the values of")]:
        beside.write_text(text)
        with pytest.raises(CheckpointError, match=told):
            load(path)
