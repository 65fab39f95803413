"""NCSN++ (Song et al. 2021) as score_sde, Score-MRI and DiffusionMBIR keep it, by its keys."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Run, counted, smallest, wrapped
from recon.priors.loaders.resample import doubled, halved, separable
from recon.priors.loaders.states import Shapes, State, fill, without
from recon.priors.parameterisation import VarianceExploding

LAYOUT = "an NCSN++ of score_sde"
USES = ("schedule",)


def recognises(state: State) -> bool:
    """Whether these are keys of score_sde's numbered modules."""
    return "all_modules.0.W" in state or "all_modules.3.weight" in state


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in.

    Noise levels are those of the file's ``sigmas``, or of the schedule given. Where training
    images were not in [-1, 1] the network itself maps ``x`` to ``2 x - 1``, as score_sde does.
    """
    schedule = said.schedule
    if schedule is None:
        if "sigmas" not in state:
            raise CheckpointError(f"{name} does not say its noise levels (no 'sigmas'): pass "
                                  "schedule=VarianceExploding(sigma_min, sigma_max), which is "
                                  "0.01 to 378 for DiffusionMBIR's")
        levels = state["sigmas"].double()
        schedule = VarianceExploding(float(levels.min()), float(levels.max()))
    if not isinstance(schedule, VarianceExploding):
        raise CheckpointError(f"{name} is {LAYOUT}, which knows variance-exploding noise alone: "
                              f"pass a VarianceExploding schedule, not {type(schedule).__name__}")
    network = from_state(name, without(state, "sigmas"), centres=said.value_range != (-1, 1))
    channels = counted(name, network.channels, network.channels, said)
    run = Run(network, said.precision, multiple=network.multiple)
    return wrapped(run, channels, "score", schedule, said.max_batch)


def from_state(name: str, state: State, centres: bool = True) -> "NCSNpp":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    if "all_modules.0.W" not in shape:
        lost = not any(k.startswith("all_modules.0.") for k in state)
        raise CheckpointError(
            f"{name} lacks all_modules.0.W, the frequencies of its time embedding: take them from "
            "the full checkpoint" if lost else
            f"{name} embeds the time by position, as DDPM++ does: want an NCSN++, which has "
            "all_modules.0.W")
    numbers = {k.split(".")[1] for k in state if k.startswith("all_modules.")}
    kinds = [_kind(name, state, i) for i in range(len(numbers))]
    turns = [i for i, kind in enumerate(kinds) if kind == "pyramid"]
    if not turns or kinds[:4] != ["fourier", "linear", "linear", "conv"]:
        raise CheckpointError(f"{name}: want an NCSN++ with residual input pyramid and FIR filters "
                              "(Conv2d_0 after each halving); others say too little in their keys")
    blocks = kinds[4 : turns[0]].count("block") - 1
    starts = [4, *(i + 1 for i in turns)]
    widths = [shape(f"all_modules.{i}.Conv_0.weight", 4)[0] for i in starts]
    attended = {level for level, i in enumerate(starts) if kinds[i + 1 : i + 2] == ["attention"]}
    wide, channels = shape("all_modules.3.weight", 4)[:2]
    with torch.device("meta"):
        network = NCSNpp(channels, wide, widths, blocks, attended, centres,
                         frequencies=shape("all_modules.0.W", 1)[0],
                         time=shape("all_modules.1.weight", 2)[0])
    fill(network, state, name, LAYOUT)
    return network


def _kind(name: str, state: State, i: int) -> str:
    inside = {k.split(".", 2)[2] for k in state if k.startswith(f"all_modules.{i}.")}
    for mark, kind in (("W", "fourier"), ("NIN_0.W", "attention"), ("Conv2d_0.weight", "pyramid"),
                       ("Dense_0.weight", "block")):
        if mark in inside:
            return kind
    if "weight" in inside:
        ndim = state[f"all_modules.{i}.weight"].ndim
        return {1: "norm", 2: "linear", 4: "conv"}.get(ndim, "unknown")
    if not inside:
        raise CheckpointError(f"{name} lacks all_modules.{i}, which should come before "
                              f"all_modules.{i + 1}: the file is damaged or edited")
    return "unknown"


class NCSNpp(nn.Module):
    """The score of ``x0 + sigma n``, by BigGAN blocks and a residual pyramid of inputs.

    Parameters
    ----------
    attended
        Levels whose blocks have attention, besides the middle: by keys, not by image size.
    centres
        Whether it maps ``x`` to ``2 x - 1`` first.
    """

    def __init__(self, channels: int, width: int, widths: list[int], blocks: int,
                 attended: set[int], centres: bool, *, frequencies: int, time: int) -> None:
        super().__init__()
        self.channels, self.blocks, self.attended = channels, blocks, attended
        self.centres = centres
        self.levels = len(widths)
        self.multiple = 2 ** (self.levels - 1)
        parts: list[nn.Module] = [
            _Fourier(frequencies), nn.Linear(2 * frequencies, time), nn.Linear(time, time),
            nn.Conv2d(channels, width, 3, padding=1)]
        w, skips, pyramid = width, [width], channels
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                parts.append(_Block(w, wide, time))
                w = wide
                parts += [_Attention(w)] if level in attended else []
                skips.append(w)
            if level < self.levels - 1:
                parts += [_Block(w, w, time, halved), _Pyramid(pyramid, w)]
                pyramid = w
                skips.append(w)
        parts += [_Block(w, w, time), _Attention(w), _Block(w, w, time)]
        for level in range(self.levels - 1, -1, -1):
            for _ in range(blocks + 1):
                parts.append(_Block(w + skips.pop(), widths[level], time))
                w = widths[level]
            parts += [_Attention(w)] if level in attended else []
            parts += [_Block(w, w, time, doubled)] if level else []
        parts += [_norm(w), nn.Conv2d(w, channels, 3, padding=1)]
        self.all_modules = nn.ModuleList(parts)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        parts = iter(self.all_modules)
        fourier, first, second, conv = itertools.islice(parts, 4)
        sigma = sigma.clamp(min=smallest(sigma))
        t = second(functional.silu(first(fourier(sigma.log()).to(x.dtype))))
        t = functional.silu(t)
        pyramid = 2 * x - 1 if self.centres else x
        h = conv(pyramid)
        skips = [h]
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = next(parts)(h, t)
                h = next(parts)(h) if level in self.attended else h
                skips.append(h)
            if level < self.levels - 1:
                h = next(parts)(h, t)
                h = pyramid = (next(parts)(pyramid) + h) / math.sqrt(2)
                skips.append(h)
        h = next(parts)(h, t)
        h = next(parts)(h)
        h = next(parts)(h, t)
        for level in range(self.levels - 1, -1, -1):
            for _ in range(self.blocks + 1):
                h = next(parts)(torch.cat([h, skips.pop()], 1), t)
            h = next(parts)(h) if level in self.attended else h
            h = next(parts)(h, t) if level else h
        norm, last = parts
        out: Tensor = last(functional.silu(norm(h))) / sigma.view(-1, 1, 1, 1)
        return out


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(min(width // 4, 32), width, eps=1e-6)


class _Fourier(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(n))

    def forward(self, log_sigma: Tensor) -> Tensor:
        angles = 2 * math.pi * log_sigma[:, None] * self.W
        return torch.cat([angles.sin(), angles.cos()], 1)


class _Block(nn.Module):
    def __init__(self, w_in: int, w_out: int, time: int,
                 resample: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.GroupNorm_0, self.GroupNorm_1 = _norm(w_in), _norm(w_out)
        self.Conv_0 = nn.Conv2d(w_in, w_out, 3, padding=1)
        self.Dense_0 = nn.Linear(time, w_out)
        self.Conv_1 = nn.Conv2d(w_out, w_out, 3, padding=1)
        self.Conv_2 = nn.Conv2d(w_in, w_out, 1) if w_in != w_out or resample else None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = functional.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            kernel = _FIR.to(x.device)
            h, x = self.resample(h, kernel), self.resample(x, kernel)
        h = self.Conv_0(h) + self.Dense_0(t)[..., None, None]
        h = self.Conv_1(functional.silu(self.GroupNorm_1(h)))
        x = x if self.Conv_2 is None else self.Conv_2(x)
        return (x + h) / math.sqrt(2)


_FIR = separable((1.0, 3.0, 3.0, 1.0))


class _Inside(nn.Module):
    """A linear map over channels, ``W`` from input to output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(width, width))
        self.b = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.W.t()[..., None, None], self.b)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(width)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (_Inside(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (part(h).flatten(2).mT for part in (self.NIN_0, self.NIN_1, self.NIN_2))
        out = functional.scaled_dot_product_attention(q, k, v).mT
        return (x + self.NIN_3(out.reshape(x.shape))) / math.sqrt(2)


class _Pyramid(nn.Module):
    """A convolution of the halved input."""

    def __init__(self, w_in: int, w_out: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(w_in, w_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        # the filter first, of a margin that the convolution then uses up
        kernel = _FIR.to(x.device, x.dtype).expand(x.shape[1], 1, 4, 4)
        smooth = functional.conv2d(x, kernel, padding=2, groups=x.shape[1])
        return functional.conv2d(smooth, self.Conv2d_0.weight, self.Conv2d_0.bias, stride=2)
