"""OpenAI's guided-diffusion UNet (Dhariwal & Nichol 2021), of any size, as its keys describe it."""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Run, counted, preconditioned, wrapped
from recon.priors.loaders.states import Shapes, State, fill, inside, refuse, without
from recon.priors.parameterisation import VariancePreserving

LAYOUT = "a guided-diffusion UNet"
USES = ("schedule", "predicts", "sigma_data", "head_channels", "attention_order")
_KEPT_BY_DEEPINV = ("sqrt_1m_alphas_cumprod", "sqrt_alphas_cumprod")  # of its DiffUNet


def recognises(state: State) -> bool:
    """Whether these are such a network's keys, by themselves or under ``model.``."""
    return any(f"{prefix}input_blocks.0.0.weight" in state for prefix in ("", "model."))


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in.

    Public ones predict the noise of the linear schedule; another one may lie beside the network,
    as ``betas``. Where ``sigma_data`` is given the network stands in EDM's preconditioning instead
    (InverseBench).
    """
    inner, beside = inside(state)
    if inner is not state and said.sigma_data is None and said.predicts is None:
        raise CheckpointError(f"{name} is {LAYOUT} inside another network, by its keys 'model.': "
                              "say what that was, sigma_data=0.5 for EDM's preconditioning or "
                              "predicts='eps' for none")
    found = _schedule(name, beside) if said.sigma_data is None else None
    if found is not None:  # what is kept beside its betas, level by level, follows from them
        beside = {k: v for k, v in beside.items() if v.shape != beside["betas"].shape}
    refuse(beside, name, LAYOUT)
    network = from_state(name, without(inner, *_KEPT_BY_DEEPINV), said)
    channels = counted(name, network.channels, network.outputs, said)
    run = Run(network, said.precision, multiple=network.multiple)
    if said.sigma_data is not None:
        return preconditioned(run, channels, said.sigma_data, said.max_batch)
    return wrapped(run, channels, said.predicts or "eps",
                   said.schedule or found or VariancePreserving.linear(), said.max_batch)


def _schedule(name: str, beside: State) -> VariancePreserving | None:
    """The levels that a file keeps beside its network."""
    if "betas" not in beside:
        return None
    try:
        return VariancePreserving((1 - beside["betas"].double()).cumprod(0))
    except ValueError as error:
        raise CheckpointError(f"{name}: its betas make no schedule ({error})") from error


def from_state(name: str, state: State, said: Declared) -> "UNet":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    if "label_emb.weight" in shape:
        raise CheckpointError(f"{name} is conditioned on {shape('label_emb.weight')[0]} classes: "
                              "want an unconditional network")
    time, width = shape("time_embed.0.weight", 2)
    ins, outs = ([k for k in state if k.startswith(f"{side}_blocks.")]
                 for side in ("input", "output"))
    n_out = len({k.split(".")[1] for k in outs})
    up = re.compile(r"output_blocks\.(\d+)\.[1-9]\.(in_layers\.2|conv)\.weight")
    ups = sorted(int(found[1]) for found in map(up.fullmatch, outs) if found)
    blocks = ups[0] if ups else n_out - 1
    levels = n_out // (blocks + 1)
    if blocks < 1 or n_out != levels * (blocks + 1):
        raise CheckpointError(f"{name}: {n_out} output blocks do not make levels of {blocks + 1}: "
                              "the file is damaged or edited")
    widths = [shape(f"input_blocks.{1 + i * (blocks + 1)}.0.out_layers.3.weight", 4)[0]
              for i in range(levels)]
    attended = {k.removesuffix(".qkv.weight") for k in (*ins, *outs, "middle_block.1.qkv.weight")
                if k.endswith(".qkv.weight") and k in shape}
    heard = [shape(f"{place}.qkv.weight")[1] for place in attended]
    if any(w % 32 for w in (*widths, width)):
        raise CheckpointError(f"{name}: widths {widths} are no multiples of its norms' 32 groups: "
                              "the file is damaged or edited")
    residual = levels == 1 or f"input_blocks.{blocks + 1}.0.in_layers.0.weight" in shape
    first = "input_blocks.1.0"
    shifts = shape(f"{first}.emb_layers.1.weight", 2)[0] == 2 * widths[0]
    with torch.device("meta"):
        network = UNet(
            shape("input_blocks.0.0.weight", 4)[1], shape("out.2.weight", 4)[0], width, widths,
            blocks, time=time, attended=attended, resample_in_blocks=residual,
            scale_and_shift=shifts, head=_head(name, said, residual, heard),
            legacy=said.attention_order != "new")
    fill(network, state, name, LAYOUT)
    return network


def _head(name: str, said: Declared, residual: bool, widths: list[int]) -> int:
    if said.attention_order not in (None, "legacy", "new"):
        raise ValueError(f"attention_order wants 'legacy' or 'new', got {said.attention_order!r}")
    head = said.head_channels
    if head is None and widths and (not residual or any(w % 64 for w in widths)):
        # models before guided-diffusion's split into 4 heads: nothing in the file says so
        raise CheckpointError(f"{name} does not say how many channels its attention heads have: "
                              "pass head_channels=, which is 64 in guided-diffusion's and a "
                              "quarter of the width in improved-diffusion's")
    return 64 if head is None else head


class UNet(nn.Module):
    """Residual blocks told the time, with attention where ``attended`` names the place.

    Parameters
    ----------
    attended
        Names of attention blocks, ``"input_blocks.9.1"``: the published rule by image size does
        not hold for the 320-pixel knee model, whose keys have it in the middle alone.
    legacy
        Whether queries, keys and values stand together head by head, or head by head inside each.
    """

    def __init__(self, channels: int, outputs: int, width: int, widths: list[int], blocks: int, *,
                 time: int, attended: set[str], resample_in_blocks: bool, scale_and_shift: bool,
                 head: int, legacy: bool) -> None:
        super().__init__()
        self.channels, self.outputs, self.width = channels, outputs, width
        self.multiple = 2 ** (len(widths) - 1)

        def block(w_in: int, w_out: int, resample: str = "") -> nn.Module:
            return _Block(w_in, w_out, time, scale_and_shift, resample)

        def resampled(w: int, how: str) -> nn.Module:
            if resample_in_blocks:
                return block(w, w, how)
            return _Down(w) if how == "down" else _Up(w)

        def attention(place: str, w: int) -> list[nn.Module]:
            return [_Attention(w, head, legacy)] if place in attended else []

        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        w, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, w, 3, padding=1)])])
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                place = f"input_blocks.{len(self.input_blocks)}.1"
                self.input_blocks.append(nn.ModuleList([block(w, wide), *attention(place, wide)]))
                w = wide
                skips.append(w)
            if level < len(widths) - 1:
                self.input_blocks.append(nn.ModuleList([resampled(w, "down")]))
                skips.append(w)
        self.middle_block = nn.ModuleList([block(w, w), *attention("middle_block.1", w),
                                           block(w, w)])
        self.output_blocks = nn.ModuleList()
        for level in range(len(widths) - 1, -1, -1):
            for i in range(blocks + 1):
                wide, place = widths[level], f"output_blocks.{len(self.output_blocks)}.1"
                layers = [block(w + skips.pop(), wide), *attention(place, wide)]
                w = wide
                if level and i == blocks:
                    layers.append(resampled(w, "up"))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, w), nn.SiLU(),
                                 nn.Conv2d(w, outputs, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.time_embed(sinusoids(time, self.width).to(x.dtype))
        skips = []
        for layers in self.input_blocks:
            x = _through(layers, x, t)
            skips.append(x)
        x = _through(self.middle_block, x, t)
        for layers in self.output_blocks:
            x = _through(layers, torch.cat([x, skips.pop()], 1), t)
        out: Tensor = self.out(x)
        return out


def sinusoids(time: Tensor, width: int) -> Tensor:
    """``(n, width)``: cosines, then sines, of frequencies from 1 down to about 1e-4."""
    half = width // 2
    steps = torch.arange(half, device=time.device, dtype=time.dtype)
    angles = time[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], 1)


def _through(layers: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    for layer in layers.children():
        x = layer(x, t) if isinstance(layer, _Block) else layer(x)
    return x


class _Block(nn.Module):
    def __init__(self, w_in: int, w_out: int, time: int, scale_and_shift: bool,
                 resample: str) -> None:
        super().__init__()
        self.resample, self.scale_and_shift = resample, scale_and_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, w_in), nn.SiLU(),
                                       nn.Conv2d(w_in, w_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(),
                                        nn.Linear(time, (1 + scale_and_shift) * w_out))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, w_out), nn.SiLU(), nn.Identity(),
                                        nn.Conv2d(w_out, w_out, 3, padding=1))
        self.skip_connection = nn.Identity() if w_in == w_out else nn.Conv2d(w_in, w_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "up":
            h, x = (functional.interpolate(a, scale_factor=2.0) for a in (h, x))
        elif self.resample == "down":
            h, x = (functional.avg_pool2d(a, 2) for a in (h, x))
        h = self.in_layers[2](h)
        told = self.emb_layers(t)[..., None, None]
        if self.scale_and_shift:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        out: Tensor = self.skip_connection(x) + h
        return out


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class _Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, head: int, legacy: bool) -> None:
        super().__init__()
        if head < 1 or width % head:
            raise CheckpointError(f"attention over {width} channels does not split into heads of "
                                  f"{head}: pass another head_channels=")
        self.heads, self.legacy = width // head, legacy
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, *sizes = x.shape
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        # (n, heads, channels of a head, pixels) of each
        if self.legacy:
            q, k, v = qkv.unflatten(1, (self.heads, -1)).chunk(3, 2)
        else:
            q, k, v = (a.unflatten(1, (self.heads, -1)) for a in qkv.chunk(3, 1))
        out = functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        return (flat + self.proj_out(out.reshape(n, -1, flat.shape[2]))).unflatten(2, sizes)
