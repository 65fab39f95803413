"""EDM's two UNets (Karras et al. 2022): DDPM++ and NCSN++ redone, and ADM redone, by their keys."""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.adm import sinusoids
from recon.priors.loaders.declared import Declared, Run, counted, preconditioned
from recon.priors.loaders.resample import doubled, halved
from recon.priors.loaders.states import Shapes, State, fill, inside, refuse

LAYOUT = "a UNet of EDM"
USES = ("sigma_data",)
_FIRST = re.compile(r"(model\.)?enc\.(\d+)x\2_conv\.(weight|bias)")


def recognises(state: State) -> bool:
    """Whether these are keys of EDM, InverseBench or deepinv's NCSNpp and ADMUNet."""
    return any(_FIRST.fullmatch(k) for k in state) and not any(
        k.endswith("emb_gain") for k in state)


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in, with EDM's preconditioning."""
    if said.sigma_data is None:
        raise CheckpointError(f"{name} does not say the deviation its preconditioning was made "
                              "for: pass sigma_data=, which is 0.5 in EDM's and InverseBench's")
    state, beside = inside(state)
    if "u" in beside or "u" in state:
        raise CheckpointError(f"{name} has iDDPM's preconditioning (its levels 'u'): want EDM's")
    refuse(beside, name, LAYOUT)
    network = from_state(name, state)
    channels = counted(name, network.channels, network.outputs, said)
    run = Run(network, said.precision, multiple=network.multiple)
    return preconditioned(run, channels, said.sigma_data, said.max_batch)


def levels(name: str, state: State) -> tuple[list[int], int]:
    """Image sizes in the names of the levels, finest first, and the number of blocks of each."""
    found = [re.fullmatch(r"enc\.(\d+)x\1_(\w+?)(\d*)\..*", k) for k in state]
    sizes = sorted({int(m[1]) for m in found if m}, reverse=True)
    blocks = {int(m[3]) for m in found if m and m[2] == "block" and int(m[1]) == sizes[0]}
    if not blocks:
        raise CheckpointError(f"{name} has no blocks enc.{sizes[0]}x{sizes[0]}_block0: the file "
                              "is damaged or edited")
    return sizes, max(blocks) + 1


def from_state(name: str, state: State) -> "UNet":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    if "map_label.weight" in shape:
        raise CheckpointError(f"{name} is conditioned on {shape('map_label.weight')[1]} classes: "
                              "want an unconditional network")
    if any("_aux_skip." in k for k in state):
        raise CheckpointError(f"{name} has a skip encoder: want a residual or a standard one")
    sizes, blocks = levels(name, state)
    top = f"{sizes[0]}x{sizes[0]}"
    song = f"dec.{top}_aux_norm.weight" in shape
    filters = [v.shape[-1] for k, v in state.items() if k.endswith("resample_filter")]
    with torch.device("meta"):
        network = UNet(
            shape(f"enc.{top}_conv.weight", 4)[1],
            shape(f"dec.{top}_aux_conv.weight" if song else "out_conv.weight", 4)[0],
            shape(f"enc.{top}_conv.weight", 4)[0],
            {s: shape(f"enc.{s}x{s}_block0.conv0.weight", 4)[0] for s in sizes}, blocks, song=song,
            noise=shape("map_layer0.weight", 2)[1], time=shape("map_layer0.weight", 2)[0],
            augment=shape("map_augment.weight", 2)[1] if "map_augment.weight" in shape else 0,
            fourier="map_noise.freqs" in shape,
            residual=any(k.endswith("_aux_residual.weight") for k in state),
            attended={k.removesuffix(".qkv.weight") for k in state if k.endswith(".qkv.weight")},
            taps=filters[0] if filters else 2)
    fill(network, state, name, LAYOUT)
    return network


class UNet(nn.Module):
    """Both UNets of EDM; ``song`` says which: Song et al.'s, or Dhariwal & Nichol's.

    Parameters
    ----------
    widths
        By the image size in the names of the levels, finest first.
    attended
        Names of blocks with attention, ``"enc.16x16_block0"``.
    taps
        Length of the filter that halves and doubles; the filter itself lies in the file.
    """

    def __init__(self, channels: int, outputs: int, first: int, widths: dict[int, int],
                 blocks: int, *, song: bool, noise: int, time: int, augment: int, fourier: bool,
                 residual: bool, attended: set[str], taps: int) -> None:
        super().__init__()
        self.channels, self.outputs, self.song, self.noise = channels, outputs, song, noise
        sizes = list(widths)
        self.multiple = 2 ** (len(sizes) - 1)
        self.map_noise = _Frequencies(noise // 2) if fourier else None
        if augment:
            # told how images were augmented in training; at zero, as here, it adds nothing
            self.map_augment = nn.Linear(augment, noise, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, time), nn.Linear(time, time)

        def block(part: str, name: str, w_in: int, w_out: int, resample: str = "") -> nn.Module:
            heads = 0
            if f"{part}.{name}" in attended:
                heads = 1 if song else max(w_out // 64, 1)
            return _Block(w_in, w_out, time, song, heads, resample, taps)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        w, skips, pyramid = first, [first], channels
        for i, (size, wide) in enumerate(widths.items()):
            at = f"{size}x{size}"
            if i == 0:
                self.enc[f"{at}_conv"] = _Conv(channels, first, 3)
            else:
                self.enc[f"{at}_down"] = block("enc", f"{at}_down", w, w, "down")
                if residual:
                    self.enc[f"{at}_aux_residual"] = _Pyramid(pyramid, w, 3, "down", taps)
                    pyramid = w
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
        if song:
            self.dec[f"{sizes[0]}x{sizes[0]}_aux_norm"] = _norm(w, song)
            self.dec[f"{sizes[0]}x{sizes[0]}_aux_conv"] = _Conv(w, outputs, 3)
        else:
            self.out_norm, self.out_conv = _norm(w, song), _Conv(w, outputs, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = functional.silu(self.map_layer0(self._embedded(time).to(x.dtype)))
        t = functional.silu(self.map_layer1(t))
        skips: list[Tensor] = []
        pyramid = x
        for name, part in self.enc.items():
            if name.endswith("aux_residual"):
                x = pyramid = skips[-1] = (x + part(pyramid)) / math.sqrt(2)
            else:
                x = part(x, t) if isinstance(part, _Block) else part(x)
                skips.append(x)
        for name, part in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], 1)
            if isinstance(part, _Block):
                x = part(x, t)
            elif name.endswith("aux_norm"):
                x = functional.silu(part(x))
            else:
                x = part(x)
        if not self.song:
            x = self.out_conv(functional.silu(self.out_norm(x)))
        return x

    def _embedded(self, time: Tensor) -> Tensor:
        half = self.noise // 2
        if self.map_noise is not None:
            angles = 2 * math.pi * time[:, None] * self.map_noise.freqs
            return torch.cat([angles.sin(), angles.cos()], 1)
        if not self.song:
            return sinusoids(time, self.noise)
        # as DDPM++: the last frequency is 1e-4 itself; sines first
        powers = torch.arange(half, device=time.device, dtype=time.dtype) / (half - 1)
        angles = time[:, None] * 1e-4**powers
        return torch.cat([angles.sin(), angles.cos()], 1)


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(n))


def _norm(width: int, song: bool) -> nn.Module:
    return nn.GroupNorm(min(32, width // 4), width, eps=1e-6 if song else 1e-5)


class _Conv(nn.Module):
    """A convolution."""

    def __init__(self, w_in: int, w_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(w_out, w_in, size, size))
        self.bias = nn.Parameter(torch.empty(w_out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class _Resampled(_Conv):
    """A convolution of the halved or doubled image."""

    resample_filter: Tensor

    def __init__(self, w_in: int, w_out: int, size: int, resample: str, taps: int) -> None:
        super().__init__(w_in, w_out, size)
        self.up = resample == "up"
        self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((doubled if self.up else halved)(x, self.resample_filter[0, 0]))


class _Bare(nn.Module):
    """The halved or doubled image."""

    resample_filter: Tensor

    def __init__(self, resample: str, taps: int) -> None:
        super().__init__()
        self.up = resample == "up"
        self.register_buffer("resample_filter", torch.empty(1, 1, taps, taps))

    def forward(self, x: Tensor) -> Tensor:
        return (doubled if self.up else halved)(x, self.resample_filter[0, 0])


class _Pyramid(_Resampled):
    """The same, with the edge of the filtered image left for the convolution to use up."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.resample_filter.to(x.dtype)
        margin = kernel.shape[-1] // 2 - 1 + self.weight.shape[-1] // 2
        smooth = functional.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), padding=margin,
                                   groups=x.shape[1])
        return functional.conv2d(smooth, self.weight, self.bias, stride=2)


class _Block(nn.Module):
    def __init__(self, w_in: int, w_out: int, time: int, song: bool, heads: int, resample: str,
                 taps: int) -> None:
        super().__init__()
        self.heads, self.song = heads, song
        self.weigh = math.sqrt(0.5) if song else 1.0
        self.norm0, self.norm1 = _norm(w_in, song), _norm(w_out, song)
        self.conv0 = (_Resampled(w_in, w_out, 3, resample, taps) if resample else
                      _Conv(w_in, w_out, 3))
        self.affine = nn.Linear(time, w_out if song else 2 * w_out)
        self.conv1 = _Conv(w_out, w_out, 3)
        self.skip: nn.Module | None = None
        if resample and song:
            self.skip = _Resampled(w_in, w_out, 1, resample, taps)
        elif resample:
            self.skip = _Bare(resample, taps)
        elif w_in != w_out:
            self.skip = _Conv(w_in, w_out, 1)
        if heads:
            self.norm2 = _norm(w_out, song)
            self.qkv, self.proj = _Conv(w_out, 3 * w_out, 1), _Conv(w_out, w_out, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x)))
        told = self.affine(t)[..., None, None]
        if self.song:
            h = self.norm1(h + told)
        else:
            scale, shift = told.chunk(2, 1)
            h = self.norm1(h) * (1 + scale) + shift
        h = self.conv1(functional.silu(h))
        x = ((x if self.skip is None else self.skip(x)) + h) * self.weigh
        if not self.heads:
            return x
        # queries, keys and values alternate from channel to channel
        qkv = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = (a.mT for a in qkv.unbind(3))
        out = functional.scaled_dot_product_attention(q, k, v).mT
        return (self.proj(out.reshape(x.shape)) + x) * self.weigh
