"""The UNet of denoising-diffusion-pytorch (versions from 1.6 on), by its keys."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Predicts, Run, counted, wrapped
from recon.priors.loaders.states import Shapes, State, fill, refuse, under
from recon.priors.parameterisation import VariancePreserving

LAYOUT = "a UNet of denoising-diffusion-pytorch"
USES = ("schedule", "predicts")


def recognises(state: State) -> bool:
    """Whether these are keys of its Unet, by itself or in a GaussianDiffusion."""
    return any(f"{prefix}init_conv.weight" in state and f"{prefix}mid_attn.to_qkv.weight" in state
               for prefix in ("", "model."))


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in.

    A GaussianDiffusion keeps its schedule, and by its loss weights what it predicts; a bare Unet
    says neither.
    """
    inner = under(state, "model.")
    schedule, predicts = said.schedule, said.predicts
    if inner:
        outer = {k: v for k, v in state.items() if not k.startswith("model.")}
        refuse({k: v for k, v in outer.items() if v.ndim != 1}, name, LAYOUT)
        kept = Shapes(name, outer)
        kept("betas", 1)
        abar = (1 - outer["betas"].double()).cumprod(0)
        schedule = schedule or VariancePreserving(abar)
        found = _predicts(name, outer, abar)
        if predicts not in (None, found):
            raise CheckpointError(f"{name} was trained to predict {found!r}, by its loss weights, "
                                  f"not {predicts!r}: leave predicts= out")
        predicts = found
    if schedule is None or predicts is None:
        raise CheckpointError(f"{name} is a bare Unet of denoising-diffusion-pytorch, which says "
                              "neither its schedule nor what it predicts: pass schedule= and "
                              "predicts=, or open the trainer's model-N.pt")
    network = from_state(name, inner or state)
    channels = counted(name, network.channels, network.outputs, said)
    run = Run(network, said.precision, multiple=network.multiple)
    return wrapped(run, channels, predicts, schedule, said.max_batch)


def _predicts(name: str, outer: State, abar: Tensor) -> Predicts:
    """What the weight of the loss at the level of signal-to-noise near one half tells."""
    Shapes(name, outer)("loss_weight", 1)
    ratio = abar / (1 - abar)
    i = int((ratio - 0.5).abs().argmin())
    weight, half = float(outer["loss_weight"][i]), float(ratio[i])
    known: dict[Predicts, float] = {"eps": 1.0, "x0": half, "v": half / (1 + half)}
    for what, expected in known.items():
        if abs(weight - expected) <= 1e-3 * expected:
            return what
    raise CheckpointError(f"{name}: loss weight {weight:.3g} at signal-to-noise {half:.3g} is of "
                          "no known objective: the file is damaged or edited")


def from_state(name: str, state: State) -> "Unet":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    for key, what in (("time_mlp.0.weights", "a learned or random embedding of the time"),
                      ("downs.0.0.block1.norm.weight", "the group norms of old versions")):
        if key in shape:
            raise CheckpointError(f"{name} has {what} ({key}): want the sinusoidal embedding and "
                                  "RMS norms of denoising-diffusion-pytorch from 1.6 on")
    stages = len({k.split(".")[1] for k in state if k.startswith("downs.")})
    first, ends = shape("init_conv.weight", 4)[:2]
    outputs = shape("final_conv.weight", 4)[0]
    widths = [first, *(shape(f"downs.{i}.3.{'1.' * (i < stages - 1)}weight", 4)[0]
                       for i in range(stages))]
    attention = {}
    for place in (*(f"{part}.{i}.2" for part in ("downs", "ups") for i in range(stages)),
                  "mid_attn"):
        full = f"{place}.to_out.weight" in shape
        _, heads, a, b = shape(f"{place}.mem_kv", 4)
        attention[place] = (full, heads, *((b, a) if full else (a, b)))
    with torch.device("meta"):
        network = Unet(ends, outputs, widths, attention, wide=shape("time_mlp.1.weight", 2)[1],
                       time=shape("time_mlp.1.weight", 2)[0])
    fill(network, state, name, LAYOUT)
    return network


class Unet(nn.Module):
    """Two blocks and an attention to each size, on the way down and up.

    Parameters
    ----------
    ends
        Channels of its input: twice its outputs where it was trained to see its own estimate too,
        for which it is given zeros.
    attention
        By place: whether full or linear, heads, channels of each, and learned extra keys.
    """

    def __init__(self, ends: int, outputs: int, widths: list[int],
                 attention: dict[str, tuple[bool, int, int, int]], *, wide: int,
                 time: int) -> None:
        super().__init__()
        self.sees_itself = ends == 2 * outputs
        self.channels, self.outputs = (outputs if self.sees_itself else ends), outputs
        self.wide = wide
        stages = len(widths) - 1
        self.multiple = 2 ** (stages - 1)
        self.init_conv = nn.Conv2d(ends, widths[0], 7, padding=3)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(wide, time), nn.GELU(),
                                      nn.Linear(time, time))

        def attend(place: str, w: int) -> nn.Module:
            full, heads, head, extra = attention[place]
            return (_Attention if full else _LinearAttention)(w, heads, head, extra)

        def same(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 3, padding=1)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i in range(stages):
            a, b = widths[i], widths[i + 1]
            smaller = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * a, b, 1))
            self.downs.append(nn.ModuleList([
                _Residual(a, a, time), _Residual(a, a, time), attend(f"downs.{i}.2", a),
                smaller if i < stages - 1 else same(a, b)]))
        w = widths[-1]
        self.mid_block1, self.mid_block2 = _Residual(w, w, time), _Residual(w, w, time)
        self.mid_attn = attend("mid_attn", w)
        for i in range(stages):
            a, b = widths[stages - 1 - i], widths[stages - i]
            larger = nn.Sequential(nn.Upsample(scale_factor=2), same(b, a))
            self.ups.append(nn.ModuleList([
                _Residual(a + b, b, time), _Residual(a + b, b, time), attend(f"ups.{i}.2", b),
                larger if i < stages - 1 else same(b, a)]))
        self.final_res_block = _Residual(2 * widths[0], widths[0], time)
        self.final_conv = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        half = self.wide // 2
        steps = torch.arange(half, device=time.device, dtype=time.dtype)
        angles = time[:, None] * torch.exp(-math.log(10000) / (half - 1) * steps)
        t = self.time_mlp(torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype))
        if self.sees_itself:
            x = torch.cat([torch.zeros_like(x), x], 1)
        x = first = self.init_conv(x)
        skips = []
        for parts in self.downs:
            one, two, attend, smaller = parts.children()
            x = one(x, t)
            skips.append(x)
            x = two(x, t)
            x = attend(x) + x
            skips.append(x)
            x = smaller(x)
        x = self.mid_block1(x, t)
        x = self.mid_block2(self.mid_attn(x) + x, t)
        for parts in self.ups:
            one, two, attend, larger = parts.children()
            x = one(torch.cat([x, skips.pop()], 1), t)
            x = two(torch.cat([x, skips.pop()], 1), t)
            x = larger(attend(x) + x)
        out: Tensor = self.final_conv(self.final_res_block(torch.cat([x, first], 1), t))
        return out


class _Norm(nn.Module):
    """Each pixel's channels brought to root mean square one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.empty(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * (self.g * math.sqrt(x.shape[1]))


class _Half(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(a, b, 3, padding=1), _Norm(b)


class _Residual(nn.Module):
    def __init__(self, a: int, b: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * b))
        self.block1, self.block2 = _Half(a, b), _Half(b, b)
        self.res_conv = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.mlp(t)[..., None, None].chunk(2, 1)
        h = self.block1.norm(self.block1.proj(x)) * (scale + 1) + shift
        h = self.block2.norm(self.block2.proj(functional.silu(h)))
        out: Tensor = functional.silu(h) + self.res_conv(x)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head: int, extra: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.mem_kv = nn.Parameter(torch.empty(2, heads, extra, head))
        self.to_qkv = nn.Conv2d(width, 3 * heads * head, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mem_kv.shape[1]
        parts = self.to_qkv(self.norm(x)).flatten(2).chunk(3, 1)
        q, k, v = (a.unflatten(1, (heads, -1)).mT for a in parts)
        more = self.mem_kv.expand(len(x), -1, -1, -1, -1).transpose(0, 1)
        k, v = torch.cat([more[0], k], 2), torch.cat([more[1], v], 2)
        out = functional.scaled_dot_product_attention(q, k, v).mT
        mixed: Tensor = self.to_out(out.reshape(len(x), -1, *x.shape[2:]))
        return mixed


class _LinearAttention(nn.Module):
    def __init__(self, width: int, heads: int, head: int, extra: int) -> None:
        super().__init__()
        self.norm = _Norm(width)
        self.mem_kv = nn.Parameter(torch.empty(2, heads, head, extra))
        self.to_qkv = nn.Conv2d(width, 3 * heads * head, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * head, width, 1), _Norm(width))

    def forward(self, x: Tensor) -> Tensor:
        heads, head = self.mem_kv.shape[1:3]
        parts = self.to_qkv(self.norm(x)).flatten(2).chunk(3, 1)
        q, k, v = (a.unflatten(1, (heads, -1)) for a in parts)
        more = self.mem_kv.expand(len(x), -1, -1, -1, -1).transpose(0, 1)
        k, v = torch.cat([more[0], k], 3), torch.cat([more[1], v], 3)
        context = k.softmax(3) @ v.mT  # (n, heads, keys' channels, values' channels)
        out = context.mT @ (q.softmax(2) / math.sqrt(head))
        mixed: Tensor = self.to_out(out.reshape(len(x), -1, *x.shape[2:]))
        return mixed
