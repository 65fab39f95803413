"""UNet2DModel of diffusers and its scheduler, from a folder on this disk alone."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Predicts, Run, counted, preconditioned, wrapped
from recon.priors.loaders.files import called, read
from recon.priors.loaders.states import choose, fill
from recon.priors.parameterisation import Flow, Schedule, VarianceExploding, VariancePreserving

LAYOUT = "a folder of diffusers"
USES = ("schedule", "predicts", "sigma_data")
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PREDICTS: dict[Any, Predicts] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def recognises(folder: Path) -> bool:
    """Whether a folder is a pipeline, or its unet alone."""
    return any((folder / place).is_file()
               for place in ("unet/config.json", "unet_ema/config.json", "config.json"))


def build(folder: Path, said: Declared) -> Prior:
    """The prior of a pipeline's folder, or of a unet's, in the units it was trained in.

    Averaged weights in ``unet_ema`` come before ``unet``. A unet without ``scheduler`` beside it
    needs ``schedule`` and ``predicts``.
    """
    places = [folder / name for name in ("unet_ema", "unet", ".")]
    home = next(place for place in places if (place / "config.json").is_file())
    name = called(folder)
    config = _json(name, home / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"{name} holds a {config.get('_class_name')}: want a UNet2DModel")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        raise CheckpointError(f"{name} is conditioned on classes: want an unconditional network")
    if config.get("time_embedding_type") == "learned":
        raise CheckpointError(f"{name} knows its trained times alone (a learned embedding): want "
                              "a positional or a fourier one")
    network = _network(name, home, config)
    channels = counted(name, int(config.get("in_channels", 3)), int(config.get("out_channels", 3)),
                       said)
    run = Run(network, said.precision, multiple=2 ** (len(network.unet.config.block_out_channels)
                                                      - 1))
    kept = (folder if home != folder else folder.parent) / "scheduler" / "scheduler_config.json"
    kept = kept if kept.is_file() else folder / "scheduler_config.json"
    plan = _json(name, kept) if kept.is_file() else {}
    if said.sigma_data is not None or str(plan.get("_class_name", "")).startswith("EDM"):
        spread = said.sigma_data or float(plan.get("sigma_data", 0.5))
        if plan.get("prediction_type", "epsilon") != "epsilon":
            raise CheckpointError(f"{name}: EDM's preconditioning of {plan['prediction_type']} is "
                                  "unknown: want its 'epsilon'")
        return preconditioned(run, channels, spread, said.max_batch)
    schedule, predicts = said.schedule, said.predicts
    if (schedule is None or predicts is None) and not plan:
        raise CheckpointError(f"{name} has no scheduler/scheduler_config.json, so that its noise "
                              "levels and what it predicts are unknown: pass schedule= and "
                              "predicts=")
    predicts = predicts or _predicts(name, plan)
    schedule = schedule or _schedule(name, plan)
    return wrapped(run, channels, predicts, schedule, said.max_batch)


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: {path.name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{name}: {path.name} wants names and values, got "
                              f"{type(found).__name__}")
    return found


class _Unet(nn.Module):
    """A UNet2DModel called as every network here."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.unet(x, time, return_dict=False)[0]
        return out


def _network(name: str, home: Path, config: dict[str, Any]) -> _Unet:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("folders of diffusers want that library: install recon[diffusers]"
                          ) from error
    path = next((home / file for file in _WEIGHTS if (home / file).is_file()), None)
    if path is None:
        raise CheckpointError(f"{name} has no {' or '.join(_WEIGHTS)}: save the whole weights in "
                              "one file, of full precision")
    try:
        with torch.device("meta"):
            unet = _from_config(UNet2DModel, config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{name}: its config.json describes no network ({error})") from error
    state = {_renamed(key): value for key, value in choose(name, read(path)).items()}
    fill(unet, state, name, "a UNet2DModel")
    if any(buffer.is_meta for buffer in unet.buffers()):  # constants that files leave out
        unet = fill(_from_config(UNet2DModel, config), state, name, "a UNet2DModel")
    return _Unet(unet)


def _renamed(key: str) -> str:
    """Today's name of a tensor, where it is one of attention's first names."""
    found = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\..*)", key)
    return found[1] + _ATTENTION[found[2]] + found[3] if found else key


def _from_config(kind: Any, config: dict[str, Any]) -> Any:
    return kind.from_config(config)


def _predicts(name: str, plan: dict[str, Any]) -> Predicts:
    """What a scheduler's settings say that the network predicts."""
    kind = _kind(name, plan)
    if kind == "ScoreSdeVeScheduler":
        return "score"
    if kind.startswith("FlowMatch"):
        return "flow"
    wanted = plan.get("prediction_type", "epsilon")
    if wanted not in _PREDICTS:
        raise CheckpointError(f"{name}: prediction_type {wanted!r} is unknown: want "
                              f"{', '.join(_PREDICTS)}, or pass predicts=")
    return _PREDICTS[wanted]


def _schedule(name: str, plan: dict[str, Any]) -> Schedule:
    """What a scheduler's settings say of the network's noise levels and times."""
    kind = _kind(name, plan)
    steps = int(plan.get("num_train_timesteps", 1000))
    if kind == "ScoreSdeVeScheduler":
        return VarianceExploding(float(plan["sigma_min"]), float(plan["sigma_max"]))
    if kind.startswith("FlowMatch"):
        # a shift moves the levels of sampling; the network is told the moved ones all the same
        return Flow(time=_Times(steps))
    betas = _betas(name, plan, steps)
    told_levels = (plan.get("timestep_type") == "continuous"
                   and plan.get("prediction_type") == "v_prediction")
    try:
        abar = (1 - betas).cumprod(0)
        return _Logarithms(abar, plan) if told_levels else VariancePreserving(abar)
    except ValueError as error:
        raise CheckpointError(f"{name}: its scheduler's betas make no schedule ({error})"
                              ) from error


def _kind(name: str, plan: dict[str, Any]) -> str:
    """The scheduler's class, one that says both."""
    kind = str(plan.get("_class_name"))
    if kind.startswith("FlowMatch") and plan.get("invert_sigmas"):
        raise CheckpointError(f"{name}: its flow runs from noise to image (invert_sigmas), in time "
                              "and velocity: want one that runs from image to noise")
    if not (kind == "ScoreSdeVeScheduler" or kind.startswith("FlowMatch")
            or "beta_schedule" in plan or plan.get("trained_betas") is not None):
        raise CheckpointError(f"{name}: a {kind} says no schedule this package knows: pass "
                              "schedule= and predicts=")
    return kind


class _Logarithms(VariancePreserving):
    """Told a quarter of the level's logarithm in place of its index, as EDM's networks are."""

    def __init__(self, alphas_cumprod: Tensor, plan: dict[str, Any]) -> None:
        super().__init__(alphas_cumprod)
        # levels between the betas' are as good, and training may have gone beyond them
        self.sigma_min = float(plan.get("sigma_min") or self.sigma_min)
        self.sigma_max = float(plan.get("sigma_max") or self.sigma_max)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.clamp(self.sigma_min, self.sigma_max).log() / 4


class _Times:
    """The share of noise as diffusers counts it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, t: Tensor) -> Tensor:
        return t * self.steps


def _betas(name: str, plan: dict[str, Any], steps: int) -> Tensor:
    kind, given = plan.get("beta_schedule"), plan.get("trained_betas")
    low, high = float(plan.get("beta_start", 1e-4)), float(plan.get("beta_end", 0.02))
    if plan.get("rescale_betas_zero_snr"):
        raise CheckpointError(f"{name}: its last level is noise alone (rescale_betas_zero_snr), "
                              "where no image can be scaled to: pass schedule= of the levels "
                              "before it")
    if given is not None:
        return torch.tensor(given, dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(low, high, steps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(math.sqrt(low), math.sqrt(high), steps, dtype=torch.float64).square()
    if kind == "squaredcos_cap_v2":
        times = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = ((times + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise CheckpointError(f"{name}: beta_schedule {kind!r} is unknown: want linear, scaled_linear "
                          "or squaredcos_cap_v2, or pass schedule=")
