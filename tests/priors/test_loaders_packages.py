"""Checkpoints written by the packages themselves: diffusers, denoising-diffusion-pytorch, deepinv,
ONNX."""

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recon.priors import (
    CheckpointError,
    DeepinvPrior,
    Flow,
    Interpolant,
    VarianceExploding,
    VariancePreserving,
    load,
)

IN_01: dict[str, Any] = {"value_range": (0, 1)}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) / math.sqrt(max(p[0].numel(), 4))
    return network.requires_grad_(False).eval()


# ---- denoising-diffusion-pytorch: the trainer's file, with its average by ema-pytorch

def trained(objective: str, schedule: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    net = GaussianDiffusion(Unet(8, channels=1, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4),
                            image_size=16, timesteps=100, objective=objective,
                            beta_schedule=schedule, **more)
    stirred(net.model, 0)
    ema = EMA(net)
    stirred(ema.ema_model.model, 1)
    return ema.ema_model, {"step": 3, "model": net.state_dict(), "opt": {"state": {}},
                           "ema": ema.state_dict(), "scaler": None, "version": "2"}


@pytest.mark.parametrize(("objective", "schedule", "more"), [
    ("pred_v", "sigmoid", {}), ("pred_noise", "linear", {"min_snr_loss_weight": True}),
    ("pred_x0", "cosine", {"min_snr_loss_weight": True})])
def test_lucidrains(objective: str, schedule: str, more: dict[str, Any], tmp_path: Path) -> None:
    theirs, held = trained(objective, schedule, **more)
    torch.save(held, tmp_path / "model-1.pt")
    prior = load(tmp_path / "model-1.pt", **IN_01)
    i = 40
    abar = theirs.alphas_cumprod[i].double()
    x, sigma = noise(2, 1, 16, 16), float(((1 - abar) / abar).sqrt())
    want = theirs.model_predictions(float(abar.sqrt()) * x, torch.full((2,), i)).pred_x_start
    got = prior(x, sigma)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-3
    if objective == "pred_v":
        raw = dict(held, ema=None)
        torch.save(raw, tmp_path / "raw.pt")
        assert float((load(tmp_path / "raw.pt", **IN_01)(x, sigma) - want).abs().max()) > 0.01
        with pytest.raises(CheckpointError, match="was trained to predict 'v', by its loss weights"
                                                  ", not 'eps': leave predicts= out"):
            load(tmp_path / "model-1.pt", predicts="eps", **IN_01)
        held["ema"] = None
        held["model"] = dict(held["model"], loss_weight=torch.full((100,), 7.0))
        torch.save(held, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=r"bad\.pt: loss weight 7 at .* no known objecti"):
            load(tmp_path / "bad.pt", **IN_01)
        held["model"] = dict(held["model"], more=torch.ones(2, 2))
        torch.save(held, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match="1 unexpected, first more"):
            load(tmp_path / "bad.pt", **IN_01)


def test_a_bare_unet_of_lucidrains(tmp_path: Path) -> None:
    theirs, _ = trained("pred_noise", "linear")
    torch.save(theirs.model.state_dict(), tmp_path / "unet.pt")
    with pytest.raises(CheckpointError, match="says neither its schedule nor what it predicts"):
        load(tmp_path / "unet.pt", **IN_01)
    prior = load(tmp_path / "unet.pt", predicts="eps", schedule=VariancePreserving.linear(),
                 **IN_01)
    assert prior(noise(1, 1, 16, 16), 0.3).shape == (1, 1, 16, 16)
    old = theirs.model.state_dict() | {"downs.0.0.block1.norm.weight": torch.ones(8)}
    torch.save(old, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="has the group norms of old versions"):
        load(tmp_path / "old.pt", predicts="eps", schedule=VariancePreserving.linear(), **IN_01)


# ---- diffusers

def unet(seed: int = 0, **more: Any) -> Any:
    from diffusers import UNet2DModel

    settings: dict[str, Any] = {
        "sample_size": 16, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16),
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return stirred(UNet2DModel(**settings | more), seed)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import DDPMScheduler

    folder = tmp_path_factory.mktemp("hub") / "ddpm"
    unet(0).save_pretrained(folder / "unet")
    unet(1).save_pretrained(folder / "unet_ema")
    DDPMScheduler(num_train_timesteps=200).save_pretrained(folder / "scheduler")
    return folder


def scheduled(folder: Path, **settings: Any) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", "num_train_timesteps": 200,
                                "beta_schedule": "linear"} | settings))


@pytest.mark.parametrize("settings", [
    {}, {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    {"trained_betas": [0.001 * i for i in range(1, 60)], "num_train_timesteps": 59}])
def test_diffusers(settings: dict[str, Any], pipeline: Path) -> None:
    from diffusers import DDPMScheduler

    scheduled(pipeline, **settings)
    prior = load(pipeline, **IN_01)
    theirs = DDPMScheduler(clip_sample=False, **{"num_train_timesteps": 200} | settings)
    i = 30
    abar = theirs.alphas_cumprod[i].double()
    x, sigma = noise(2, 1, 16, 16), float(((1 - abar) / abar).sqrt())
    z = float(abar.sqrt()) * x
    out = unet(1)(z, torch.tensor(float(i))).sample  # the average's
    want = theirs.step(out, i, z).pred_original_sample
    assert float((prior(x, sigma) - want).abs().max() / want.abs().max()) < 1e-3
    raw = theirs.step(unet(0)(z, torch.tensor(float(i))).sample, i, z).pred_original_sample
    assert float((prior(x, sigma) - raw).abs().max() / want.abs().max()) > 1e-2


def test_other_schedulers_of_diffusers(pipeline: Path) -> None:
    x, sigma = noise(1, 1, 16, 16), torch.tensor(0.4)
    network = unet(1)
    scheduled(pipeline, _class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000)
    t = sigma / (1 + sigma)
    want = (1 - t) * x - t * network((1 - t) * x, 1000 * t).sample
    assert torch.allclose(load(pipeline, **IN_01)(x, sigma), want, atol=1e-4)
    scheduled(pipeline, _class_name="ScoreSdeVeScheduler", sigma_min=0.01, sigma_max=50.0)
    want = x + sigma**2 * network(x, sigma).sample
    assert torch.allclose(load(pipeline, **IN_01)(x, sigma), want, atol=1e-4)
    scheduled(pipeline, _class_name="EDMEulerScheduler", sigma_data=0.7)
    whole = (sigma**2 + 0.49).sqrt()
    want = 0.49 / whole**2 * x + sigma * 0.7 / whole * network(x / whole, sigma.log() / 4).sample
    assert torch.allclose(load(pipeline, **IN_01)(x, sigma), want, atol=1e-4)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"beta_schedule": "odd"}, "beta_schedule 'odd' is unknown: want linear"),
        ({"rescale_betas_zero_snr": True}, "its last level is noise alone"),
        ({"prediction_type": "odd"}, "prediction_type 'odd' is unknown: want .* pass predicts="),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
         "its flow runs from noise to image .invert_sigmas., in time and velocity"),
        ({"beta_schedule": "linear", "beta_end": 2.0}, "its scheduler's betas make no schedule"),
    ]
    for settings, told in refused:
        scheduled(pipeline, **settings)
        with pytest.raises(CheckpointError, match=f"ddpm: {told}"):
            load(pipeline, **IN_01)
    (pipeline / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"scheduler_config.json is no JSON"):
        load(pipeline, **IN_01)


def test_words_come_before_a_scheduler_that_says_too_little(pipeline: Path) -> None:
    """Each refusal that asks for a word is cured by it; what is not said is the scheduler's."""
    linear, x = VariancePreserving.linear(), noise(1, 1, 16, 16)
    scheduled(pipeline, prediction_type="v_prediction")
    want = load(pipeline, schedule=linear, **IN_01)(x, 0.4)
    for settings in ({"rescale_betas_zero_snr": True}, {"beta_schedule": "sigmoid"}):
        scheduled(pipeline, prediction_type="v_prediction", **settings)
        with pytest.raises(CheckpointError, match="pass schedule="):
            load(pipeline, **IN_01)
        assert torch.equal(load(pipeline, schedule=linear, **IN_01)(x, 0.4), want)
    scheduled(pipeline, prediction_type="odd")
    assert torch.equal(load(pipeline, schedule=linear, predicts="v", **IN_01)(x, 0.4), want)
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "CMStochasticIterativeScheduler"}))
    for words in ({}, {"schedule": linear}, {"predicts": "v"}):
        with pytest.raises(CheckpointError, match="pass schedule= and predicts="):
            load(pipeline, **IN_01, **cast(Any, words))
    assert torch.equal(load(pipeline, schedule=linear, predicts="v", **IN_01)(x, 0.4), want)
    scheduled(pipeline, _class_name="FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    with pytest.raises(CheckpointError, match="invert_sigmas"):  # the velocity is reversed as well
        load(pipeline, schedule=Flow(time=lambda t: 1 - t), **IN_01)


def test_times_that_are_logarithms_of_levels(pipeline: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    settings = {"prediction_type": "v_prediction", "timestep_type": "continuous",
                "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    theirs = EulerDiscreteScheduler(**settings)
    scheduled(pipeline, _class_name="EulerDiscreteScheduler", num_train_timesteps=1000, **settings)
    prior = load(pipeline, **IN_01)
    assert (prior.sigma_min, prior.sigma_max) == (0.002, 700.0)
    theirs.set_timesteps(10)
    sigma, time = theirs.sigmas[4], theirs.timesteps[4]
    x = sigma * noise(1, 1, 16, 16)
    out = unet(1)(theirs.scale_model_input(x, time), time).sample
    want = theirs.step(out, time, x).pred_original_sample
    assert float((prior(x, sigma) - want).abs().max() / want.abs().max()) < 1e-5
    scheduled(pipeline, num_train_timesteps=1000, prediction_type="v_prediction")
    wrong = load(pipeline, **IN_01)(x, sigma)  # told the index
    assert float((wrong - want).abs().max() / want.abs().max()) > 1e-2


def test_first_names_and_constants_of_diffusers(tmp_path: Path) -> None:
    """What ``from_pretrained`` renames or makes itself: attention's keys, filters of K blocks."""
    scheduled(tmp_path)
    x, home = noise(1, 1, 16, 16), tmp_path / "unet"
    unet(0).save_pretrained(home)
    want = load(tmp_path, **IN_01)(x, 0.4)
    path = home / "diffusion_pytorch_model.safetensors"
    old = {}
    for key, value in load_file(path).items():
        for now, first in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                           ("to_out.0", "proj_attn")):
            key = key.replace(f".{now}.", f".{first}.")
        old[key] = value
    assert "mid_block.attentions.0.query.weight" in old
    save_file(old, path)
    assert torch.equal(load(tmp_path, **IN_01)(x, 0.4), want)
    blocks = {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2,
              "block_out_channels": (32, 64)}
    theirs = unet(0, **blocks)
    theirs.save_pretrained(home)
    told = load(tmp_path, schedule=VarianceExploding(0.01, 50.0), **IN_01)
    with torch.no_grad():
        assert torch.allclose(told(x, 0.4), x - 0.4 * theirs(x, torch.tensor(0.4)).sample,
                              atol=1e-6)


def test_a_folder_of_a_unet_alone(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).write_bytes((pipeline / "unet" / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"alone has no scheduler/scheduler_config.json"):
        load(folder, **IN_01)
    words: dict[str, Any] = {"predicts": "eps", "schedule": VariancePreserving.linear(), **IN_01}
    assert load(folder, **words).channels == 1
    config = json.loads((folder / "config.json").read_text())
    for change, told in [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel: want a UNet2DM"),
        ({"num_class_embeds": 10}, "is conditioned on classes"),
        ({"time_embedding_type": "learned"}, "knows its trained times alone"),
        ({"layers_per_block": 2}, "looks like a UNet2DModel but its tensors do not .* missing"),
        ({"block_out_channels": [8]}, "its config.json describes no network"),
    ]:
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=told) as caught:
            load(folder, **words)
        assert str(tmp_path) not in str(caught.value)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="alone has no diffusion_pytorch_model"):
        load(folder, **words)


# ---- deepinv

def test_drunet_of_deepinv(tmp_path: Path) -> None:
    from deepinv.models import DRUNet

    theirs = stirred(DRUNet(in_channels=2, out_channels=2, nc=(8, 8, 16, 16), nb=1,
                            pretrained=None))
    torch.save(theirs.state_dict(), tmp_path / "drunet.pth")
    with pytest.raises(CheckpointError, match="does not say which noise it was trained for"):
        load(tmp_path / "drunet.pth")
    schedule = VarianceExploding(0.01, 0.5)
    prior = load(tmp_path / "drunet.pth", schedule=schedule, max_batch=1)
    x = noise(2, 2, 32, 32)
    want = torch.cat([theirs(a[None], 0.2) for a in x])
    assert torch.allclose(prior(x, 0.2), want, atol=1e-5)
    assert (prior.sigma_min, prior.sigma_max) == (0.01, 0.5)
    z = torch.complex(x[:, :1], x[:, 1:])
    made = load(tmp_path / "drunet.pth", schedule=schedule, is_complex=True)(z, 0.2)
    assert torch.allclose(made, torch.complex(want[:, :1], want[:, 1:]), atol=1e-5)
    object_ = DeepinvPrior(theirs, 2, sigma_min=0.01, sigma_max=0.5)
    assert torch.allclose(object_(x, torch.tensor([0.1, 0.4])), torch.cat(
        [theirs(x[:1], 0.1), theirs(x[1:], 0.4)]), atol=1e-5)
    assert load(tmp_path / "drunet.pth", schedule=schedule, value_range=cast(Any, [0, 1]))
    with pytest.raises(CheckpointError, match=r"of images in .0, 1.: leave value_range= out"):
        load(tmp_path / "drunet.pth", schedule=schedule, value_range=(-1, 1))


@pytest.mark.parametrize(("kind", "settings"), [
    ("TVDenoiser", {"n_it_max": 20}), ("TGVDenoiser", {"n_it_max": 20}),
    ("WaveletDictDenoiser", {"max_iter": 5})])
def test_iterating_denoisers_of_deepinv_forget(kind: str, settings: dict[str, int]) -> None:
    """Total variations go on from the last image; all stop by the norm of the whole batch."""
    from deepinv import models

    if kind == "WaveletDictDenoiser":
        pytest.importorskip("ptwt")  # deepinv's own extra
    denoiser = getattr(models, kind)(**settings)
    prior = DeepinvPrior(denoiser, 1, sigma_min=0.01, sigma_max=0.5)
    x, sigma = noise(3, 1, 16, 16), torch.tensor([0.02, 0.1, 0.3])
    alone = torch.cat([getattr(models, kind)(**settings)(a[None], float(s))
                       for a, s in zip(x, sigma, strict=True)])
    assert torch.allclose(prior(x, sigma), alone, atol=1e-6)
    assert torch.equal(prior(x[:1], sigma[0]), prior(x, sigma)[:1])
    prior.max_batch = 1
    assert torch.allclose(prior(x, sigma), alone, atol=1e-6)
    denoiser(x, sigma)
    assert not torch.allclose(denoiser(x, sigma), alone, atol=1e-4)  # what it would do by itself


def test_attributes_of_others_do_not_count_as_iterations() -> None:
    class Unrolled(nn.Module):
        max_iter, calls = 10, 0

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
            self.calls += 1
            return x

    network = Unrolled()
    DeepinvPrior(network, 1, sigma_min=0.01, sigma_max=0.5)(torch.ones(4, 1, 16, 16), 0.1)
    assert network.calls == 1


def test_deepinv_networks_are_evaluated() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002
            return cast(Tensor, self.drop(x))

    x = torch.ones(1, 1, 16, 16)
    assert torch.equal(DeepinvPrior(Dropping(), 1, sigma_min=0.01, sigma_max=0.5)(x, 0.1), x)


# ---- ONNX

def exported(path: Path, rank: int = 1, channels: int | str = 1, kind: str = "FLOAT",
             images: list[Any] | None = None) -> Path:
    """A network ``z * w + time`` as a file, told the time in numbers of a ``kind``."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [helper.make_node("Mul", ["z", "w"], ["a"]),
             helper.make_node("Cast", ["time"], ["told"], to=TensorProto.FLOAT)]
    kept = [numpy_helper.from_array(np.array(0.25, np.float32), "w")]
    if rank:
        nodes.append(helper.make_node("Reshape", ["told", "shape"], ["t"]))
        kept.append(numpy_helper.from_array(np.array([-1, 1, 1, 1], np.int64), "shape"))
    nodes.append(helper.make_node("Add", ["a", "t" if rank else "told"], ["out"]))
    images = images or ["n", channels, "h", "w_"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("z", TensorProto.FLOAT, images),
                     helper.make_tensor_value_info("time", getattr(TensorProto, kind),
                                                   images[:1] * rank)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, images)], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, path)
    return path


@pytest.mark.parametrize("rank", [0, 1])
def test_onnx(rank: int, tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", rank)
    prior = load(path, predicts="x0", schedule=Flow(), **IN_01)
    x, sigma = noise(3, 1, 8, 8), torch.tensor([0.1, 0.5, 2.0])
    t = (sigma / (1 + sigma)).view(-1, 1, 1, 1)
    want = 0.25 * (1 - t) * x + t
    assert torch.allclose(prior(x, sigma), want, atol=1e-6)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="an ONNX network, which has no gradients: use a"):
        torch.autograd.grad(prior(x, sigma).sum(), x)


@pytest.mark.parametrize("rank", [0, 1])
def test_onnx_as_exported_without_dynamic_axes(rank: int, tmp_path: Path) -> None:
    """Of one image of one size: items go one by one, other sizes are refused."""
    path = exported(tmp_path / "x.onnx", rank, images=[1, 1, 8, 8])
    prior = load(path, predicts="x0", schedule=Flow(), **IN_01)
    x, sigma = noise(3, 1, 8, 8), torch.tensor([0.1, 0.5, 2.0])
    t = (sigma / (1 + sigma)).view(-1, 1, 1, 1)
    assert torch.allclose(prior(x, sigma), 0.25 * (1 - t) * x + t, atol=1e-6)
    assert prior.space is not None
    assert prior.space.shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"want \(\*batch, 1, 8, 8\), got \(1, 1, 16, 16\)"):
        prior(noise(1, 1, 16, 16), 0.1)
    half = exported(tmp_path / "y.onnx", rank, images=["n", 1, 8, "w_"])
    with pytest.raises(ValueError, match=r"ONNX network refuses images of .1, 1, 16, 16. "):
        load(half, predicts="x0", schedule=Flow(), **IN_01)(noise(1, 1, 16, 16), 0.1)
    with pytest.raises(CheckpointError, match="takes 4 images at a time: export it for one, or"):
        load(exported(tmp_path / "z.onnx", images=[4, 1, 8, 8]), predicts="x0", schedule=Flow(),
             **IN_01)


@pytest.mark.parametrize("kind", ["INT64", "INT32", "DOUBLE", "FLOAT16"])
def test_times_of_onnx(kind: str, tmp_path: Path) -> None:
    """Whole numbers where the schedule has them; a flow's share of noise would become 0 or 1."""
    path = exported(tmp_path / "x.onnx", kind=kind)
    x, sigma = noise(3, 1, 8, 8), torch.tensor([0.1, 0.5, 2.0])
    for schedule in (VariancePreserving.linear(), Flow(time=lambda t: 1000 * t)):
        time = schedule.time(sigma).view(-1, 1, 1, 1)
        told = time.round() if "INT" in kind else time
        got = load(path, predicts="x0", schedule=schedule, **IN_01)(x, sigma)
        want = 0.25 * schedule.scale(sigma).view(-1, 1, 1, 1) * x + told
        assert torch.allclose(got, want, rtol=1e-3 if kind == "FLOAT16" else 1e-6, atol=1e-5)
    for plan in (Flow(), VarianceExploding(0.01, 50.0),
                 Interpolant(image=lambda t: 1 - t, noise=lambda t: t)):
        words: dict[str, Any] = {"predicts": "x0", "schedule": plan, **IN_01}
        if "INT" in kind:
            with pytest.raises(CheckpointError, match=f"whole numbers, .* {type(plan).__name__} a"):
                load(path, **words)
        else:
            t = plan.time(sigma).view(-1, 1, 1, 1)
            want = 0.25 * plan.scale(sigma).view(-1, 1, 1, 1) * x + t
            assert torch.allclose(load(path, **words)(x, sigma), want, atol=1e-3)
    if kind == "INT64":
        with pytest.raises(CheckpointError, match=r"tensor\(bool\): want images of floats, then"):
            load(exported(tmp_path / "y.onnx", kind="BOOL"), predicts="x0", schedule=Flow(),
                 **IN_01)
    half = load(path, predicts="x0", schedule=VariancePreserving.linear(), **IN_01)
    assert half(x.bfloat16(), 0.5).dtype == torch.bfloat16


def test_refusals_of_onnx(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", channels="c")
    words: dict[str, Any] = {"predicts": "x0", "schedule": Flow(), **IN_01}
    with pytest.raises(CheckpointError, match=r"x\.onnx does not say what it predicts at which"):
        load(path, **IN_01)
    with pytest.raises(CheckpointError, match=r"does not say how many channels .* pass channels="):
        load(path, **words)
    assert load(path, channels=1, **words).channels == 1
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"bad\.onnx is damaged or no ONNX file") as caught:
        load(bad, **words)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(("package", "extra"), [("diffusers", "diffusers"),
                                                ("onnxruntime", "onnx")])
def test_missing_packages_name_their_extra(package: str, extra: str, pipeline: Path,
                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(Any, __import__("sys").modules), package, None)
    path = pipeline if extra == "diffusers" else exported(tmp_path / "x.onnx")
    with pytest.raises(ImportError, match=rf"install recon\[{extra}\]"):
        load(path, predicts="x0", schedule=Flow(), **IN_01)
