"""EDM2's magnitude-preserving UNet (Karras et al. 2024, Figure 21), by its keys."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Run, counted, preconditioned
from recon.priors.loaders.edm import levels
from recon.priors.loaders.states import Shapes, State, fill, refuse, under, without

LAYOUT = "a UNet of EDM2"
USES = ("sigma_data",)


def recognises(state: State) -> bool:
    """Whether these are keys of EDM2, by themselves or under ``unet.``."""
    return any(k in state for k in ("unet.out_gain", "out_gain")) and any(
        k.endswith("emb_gain") for k in state)


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in."""
    if said.sigma_data is None:
        raise CheckpointError(f"{name} does not say the deviation its preconditioning was made "
                              "for: pass sigma_data=, which is 0.5 in EDM2's")
    inner = under(state, "unet.")
    if inner:
        # how sure training was of each noise level is beside the point here
        known = {k for k in state if k.startswith(("unet.", "logvar_fourier.", "logvar_linear."))}
        refuse(without(state, *known), name, LAYOUT)
        state = inner
    network = from_state(name, state)
    channels = counted(name, network.channels, network.outputs, said)
    run = Run(network, said.precision, multiple=network.multiple)
    return preconditioned(run, channels, said.sigma_data, said.max_batch)


def from_state(name: str, state: State) -> "UNet":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    if "emb_label.weight" in shape:
        raise CheckpointError(f"{name} is conditioned on {shape('emb_label.weight')[1]} classes: "
                              "want an unconditional network")
    sizes, blocks = levels(name, state)
    top = f"{sizes[0]}x{sizes[0]}"
    attended = {k.removesuffix(".attn_qkv.weight") for k in state
                if k.endswith(".attn_qkv.weight")}
    with torch.device("meta"):
        network = UNet(
            shape(f"enc.{top}_conv.weight", 4)[1] - 1, shape("out_conv.weight", 4)[0],
            {s: shape(f"enc.{s}x{s}_block0.conv_res0.weight", 4)[0] for s in sizes}, blocks,
            noise=shape("emb_noise.weight", 2)[1], time=shape("emb_noise.weight", 2)[0],
            attended=attended)
    fill(network, state, name, LAYOUT)
    return network


class UNet(nn.Module):
    """Blocks that keep the magnitude of what passes; equation numbers are the paper's."""

    def __init__(self, channels: int, outputs: int, widths: dict[int, int], blocks: int, *,
                 noise: int, time: int, attended: set[str]) -> None:
        super().__init__()
        self.channels, self.outputs = channels, outputs
        sizes = list(widths)
        self.multiple = 2 ** (len(sizes) - 1)
        self.out_gain = nn.Parameter(torch.empty(()))
        self.emb_fourier = _Fourier(noise)
        self.emb_noise = _Map(noise, time)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

        def block(part: str, name: str, w_in: int, w_out: int, resample: str = "") -> nn.Module:
            heads = max(w_out // 64, 1) if f"{part}.{name}" in attended else 0
            return _Block(w_in, w_out, time, part, heads, resample)

        w = widths[sizes[0]]
        skips = [w]
        for i, (size, wide) in enumerate(widths.items()):
            at = f"{size}x{size}"
            if i == 0:
                self.enc[f"{at}_conv"] = _Map(channels + 1, w, 3)
            else:
                self.enc[f"{at}_down"] = block("enc", f"{at}_down", w, w, "down")
                skips.append(w)
            for j in range(blocks):
                self.enc[f"{at}_block{j}"] = block("enc", f"{at}_block{j}", w, wide)
                w = wide
                skips.append(w)
        for i, size in reversed(list(enumerate(sizes))):
            at, wide = f"{size}x{size}", widths[size]
            if i == len(sizes) - 1:
                for name in (f"{at}_in0", f"{at}_in1"):
                    self.dec[name] = block("dec", name, w, w)
            else:
                self.dec[f"{at}_up"] = block("dec", f"{at}_up", w, w, "up")
            for j in range(blocks + 1):
                self.dec[f"{at}_block{j}"] = block("dec", f"{at}_block{j}", w + skips.pop(), wide)
                w = wide
        self.out_conv = _Map(w, outputs, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = _silu(self.emb_noise(self.emb_fourier(time).to(x.dtype)))
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        skips = []
        for part in self.enc.values():
            x = part(x, t) if isinstance(part, _Block) else part(x)
            skips.append(x)
        for name, part in self.dec.items():
            if "_block" in name:
                x = _joined(x, skips.pop())
            x = part(x, t)
        out: Tensor = self.out_conv(x) * self.out_gain
        return out


def _unit(x: Tensor, dims: list[int]) -> Tensor:
    """Of root mean square one over ``dims`` (Equation 30), but for what is almost zero."""
    size = x.square().mean(dims, keepdim=True).sqrt()
    return x / (size + 1e-4)  # the paper's epsilon: these are its own units


def _silu(x: Tensor) -> Tensor:
    return functional.silu(x) / 0.596  # Equation 81


def _sum(a: Tensor, b: Tensor, share: float = 0.3) -> Tensor:
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)  # Equation 88


def _joined(a: Tensor, b: Tensor) -> Tensor:
    """Channels side by side, each half as loud (Equation 103 at one half)."""
    n, m = a.shape[1], b.shape[1]
    loud = math.sqrt((n + m) / 2)
    return torch.cat([a * (loud / math.sqrt(n)), b * (loud / math.sqrt(m))], 1)


class _Fourier(nn.Module):
    freqs: Tensor
    phases: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(n))
        self.register_buffer("phases", torch.empty(n))

    def forward(self, time: Tensor) -> Tensor:
        return math.sqrt(2) * (time[:, None] * self.freqs + self.phases).cos()  # Equation 75


class _Map(nn.Module):
    """A convolution, or a linear map without ``size``, of unit weights (Equation 47)."""

    def __init__(self, w_in: int, w_out: int, size: int = 0) -> None:
        super().__init__()
        kernel = (size, size) if size else ()
        self.weight = nn.Parameter(torch.empty(w_out, w_in, *kernel))

    def forward(self, x: Tensor) -> Tensor:
        weight = _unit(self.weight, list(range(1, self.weight.ndim)))
        weight = weight / math.sqrt(self.weight[0].numel())
        if weight.ndim == 2:
            return x @ weight.to(x.dtype).T
        return functional.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)


class _Block(nn.Module):
    def __init__(self, w_in: int, w_out: int, time: int, part: str, heads: int,
                 resample: str) -> None:
        super().__init__()
        self.encodes, self.heads, self.resample = part == "enc", heads, resample
        self.emb_gain = nn.Parameter(torch.empty(()))
        self.conv_res0 = _Map(w_out if self.encodes else w_in, w_out, 3)
        self.emb_linear = _Map(time, w_out)
        self.conv_res1 = _Map(w_out, w_out, 3)
        self.conv_skip = _Map(w_in, w_out, 1) if w_in != w_out else None
        if heads:
            self.attn_qkv, self.attn_proj = _Map(w_out, 3 * w_out, 1), _Map(w_out, w_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.resample == "down":
            x = functional.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = functional.interpolate(x, scale_factor=2.0)
        if self.encodes:
            x = _unit(x if self.conv_skip is None else self.conv_skip(x), [1])
        h = self.conv_res0(_silu(x))
        told = self.emb_linear(t) * self.emb_gain + 1
        h = self.conv_res1(_silu(h * told[..., None, None]))
        if not self.encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = _sum(x, h)
        if self.heads:
            # queries, keys and values alternate from channel to channel, each of unit size
            qkv = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))
            q, k, v = (a.mT for a in _unit(qkv, [2]).unbind(3))
            out = functional.scaled_dot_product_attention(q, k, v).mT
            x = _sum(x, self.attn_proj(out.reshape(x.shape)))
        return x.clamp(-256, 256)
