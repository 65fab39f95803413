"""Networks rebuilt from their keys, against other implementations; the public models' counts."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors import CheckpointError
from recon.priors.loaders import adm, deepinv_networks, edm, edm2, lucidrains, ncsnpp, ncsnv2
from recon.priors.loaders.declared import Declared
from recon.priors.loaders.states import State

SAID = Declared(value_range=(0, 1))


def spread(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that let every path through the network be heard."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        size = 1 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.3
        p.data = size * torch.randn(p.shape, generator=generator)
    return network.requires_grad_(False).eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def differ(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def agree(mine: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor],
          x: Tensor, time: Tensor) -> None:
    with torch.no_grad():
        assert differ(mine(x, time), theirs(x, time)) < 1e-5


# ---- the public models' sizes (T27)

SIX = (1, 1, 2, 2, 4, 4)
AT_16 = {"input_blocks.9.1", "middle_block.1", "output_blocks.2.1", "output_blocks.3.1"}
IMAGENET = ({f"input_blocks.{i}.1" for i in (10, 11, 13, 14, 16, 17)} | {"middle_block.1"}
            | {f"output_blocks.{i}.1" for i in range(9)})


@pytest.mark.parametrize(("ends", "width", "blocks", "attended", "parameters", "keys"), [
    ((1, 2), 256, 1, AT_16, 374_022_658, 362),  # AAPM256_1M.pt
    ((2, 4), 256, 1, {"middle_block.1"}, 361_428_228, 344),  # fastmri_knee_320_complex_1m.pt
    ((3, 6), 128, 1, AT_16, 93_563_910, 362),  # ffhq_10m.pt
    ((3, 6), 256, 2, IMAGENET, 552_814_086, 566),  # 256x256_diffusion_uncond.pt
])
def test_counts_of_guided_diffusion(ends: tuple[int, int], width: int, blocks: int,
                                    attended: set[str], parameters: int, keys: int) -> None:
    with torch.device("meta"):
        network = adm.UNet(*ends, width, [width * m for m in SIX], blocks, time=4 * width,
                           attended=attended, resample_in_blocks=True, scale_and_shift=True,
                           head=64, legacy=True)
    assert sum(p.numel() for p in network.parameters()) == parameters
    state = network.state_dict()
    assert len(state) == keys
    # the layout is read back from the keys and shapes alone
    shape = {k: torch.empty(1).expand(v.shape) for k, v in state.items()}
    again = _unfilled(adm, lambda: adm.from_state("x.pt", shape, SAID))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape
                                                                   for k, v in state.items()}


@pytest.mark.parametrize(("channels", "parameters"), [(1, 61_433_601), (2, 61_437_058)])
def test_counts_of_ncsnpp(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        network = ncsnpp.NCSNpp(channels, 128, [128, 256, 256, 256], 4, set(), True,
                                frequencies=128, time=512)
    assert sum(p.numel() for p in network.parameters()) == parameters
    state = network.state_dict()
    assert len(state) + 1 == 522  # sigmas besides
    assert len([k for k in state if k != "all_modules.0.W"]) == 520
    assert len(network.all_modules) == 54
    assert "all_modules.27.NIN_0.W" in state
    shape = {k: torch.empty(1).expand(v.shape) for k, v in state.items()}
    again = _unfilled(ncsnpp, lambda: ncsnpp.from_state("x.pth", shape))
    assert again.state_dict().keys() == state.keys()


def _unfilled(module: Any, build: Callable[[], nn.Module]) -> nn.Module:
    """The network without its weights, which would take gigabytes."""
    filled = module.fill
    module.fill = lambda network, *_: network
    try:
        return build()
    finally:
        module.fill = filled


# ---- guided-diffusion, against deepinv's blocks

def assembled(widths: list[int], blocks: int, attended: set[str], *, residual: bool, shifts: bool,
              order: str) -> nn.Module:
    """The network put together from deepinv's port of the original blocks, as the paper says."""
    from deepinv.models import diffunet as d

    time, w, skips = 4 * widths[0], widths[0], [widths[0]]

    def block(a: int, b: int, **how: bool) -> nn.Module:
        return cast(nn.Module, d.ResBlock(a, time, 0.0, out_channels=b,
                                          use_scale_shift_norm=shifts, **how))

    def attention(place: str, width: int) -> list[nn.Module]:
        return [d.AttentionBlock(width, num_head_channels=32, use_new_attention_order=order == "new"
                                 )] if place in attended else []

    def sequence(*layers: nn.Module) -> nn.Module:
        return cast(nn.Module, d.TimestepEmbedSequential(*layers))

    net: Any = nn.Module()
    net.time_embed = nn.Sequential(nn.Linear(w, time), nn.SiLU(), nn.Linear(time, time))
    ins: list[nn.Module] = [sequence(nn.Conv2d(2, w, 3, padding=1))]
    outs: list[nn.Module] = []
    for level, wide in enumerate(widths):
        for _ in range(blocks):
            ins.append(sequence(block(w, wide), *attention(f"input_blocks.{len(ins)}.1", wide)))
            w = wide
            skips.append(w)
        if level < len(widths) - 1:
            ins.append(sequence(block(w, w, down=True) if residual else d.Downsample(w, True)))
            skips.append(w)
    net.input_blocks = nn.ModuleList(ins)
    net.middle_block = sequence(block(w, w), *attention("middle_block.1", w), block(w, w))
    for level in range(len(widths) - 1, -1, -1):
        for i in range(blocks + 1):
            layers = [block(w + skips.pop(), widths[level]),
                      *attention(f"output_blocks.{len(outs)}.1", widths[level])]
            w = widths[level]
            if level and i == blocks:
                layers.append(block(w, w, up=True) if residual else d.Upsample(w, True))
            outs.append(sequence(*layers))
    net.output_blocks = nn.ModuleList(outs)
    net.out = nn.Sequential(nn.GroupNorm(32, w), nn.SiLU(), nn.Conv2d(w, 4, 3, padding=1))

    def run(x: Tensor, t: Tensor) -> Tensor:
        embedded = net.time_embed(d.timestep_embedding(t, widths[0]))
        kept = []
        for part in ins:
            x = part(x, embedded)
            kept.append(x)
        x = net.middle_block(x, embedded)
        for part in outs:
            x = part(torch.cat([x, kept.pop()], 1), embedded)
        return cast(Tensor, net.out(x))

    net.forward = run
    return spread(net)


ADM_CASES: dict[str, tuple[list[int], int, set[str], bool, bool, str]] = {
    "as published": ([32, 64], 1, {"input_blocks.3.1", "middle_block.1", "output_blocks.0.1",
                                   "output_blocks.1.1"}, True, True, "legacy"),
    "attention in the middle alone": ([32, 64], 1, {"middle_block.1"}, True, True, "legacy"),
    "no attention": ([32, 32], 2, set(), True, True, "legacy"),
    "new order": ([32, 64], 1, {"input_blocks.1.1", "middle_block.1"}, True, True, "new"),
    "improved-diffusion": ([32, 64, 64], 2, {"middle_block.1", "output_blocks.2.1"}, False, False,
                           "legacy"),
    "one level": ([32], 2, {"middle_block.1"}, True, True, "legacy"),
}


@pytest.mark.parametrize("case", ADM_CASES)
def test_guided_diffusion(case: str) -> None:
    widths, blocks, attended, residual, shifts, order = ADM_CASES[case]
    theirs = assembled(widths, blocks, attended, residual=residual, shifts=shifts, order=order)
    said = SAID._replace(head_channels=32,
                         attention_order=cast(Literal["legacy", "new"], order))
    mine = adm.from_state("x.pt", theirs.state_dict(), said)
    x, t = noise(2, 2, 16, 16), torch.tensor([3.0, 712.5])
    agree(mine, theirs, x, t)
    if len(widths) > 1 and attended:
        other = said._replace(attention_order="new" if order == "legacy" else "legacy")
        wrong = adm.from_state("x.pt", theirs.state_dict(), other)
        assert differ(wrong(x, t), theirs(x, t)) > 1e-4


def test_heads_that_no_file_tells() -> None:
    narrow = assembled([32], 1, {"middle_block.1"}, residual=True, shifts=True, order="legacy")
    with pytest.raises(CheckpointError, match=r"x\.pt does not say how many channels its attention "
                                              "heads have: pass head_channels=, which is 64 in"):
        adm.from_state("x.pt", narrow.state_dict(), SAID)
    deaf = assembled([32], 1, set(), residual=True, shifts=True, order="legacy")
    agree(adm.from_state("x.pt", deaf.state_dict(), SAID), deaf, noise(1, 2, 8, 8), torch.ones(1))
    with pytest.raises(CheckpointError, match="32 channels does not split into heads of 24"):
        adm.from_state("x.pt", narrow.state_dict(), SAID._replace(head_channels=24))
    with pytest.raises(ValueError, match="attention_order wants 'legacy' or 'new', got 'old'"):
        adm.from_state("x.pt", narrow.state_dict(), SAID._replace(attention_order=cast(Any, "old")))


# ---- NCSN++, against deepinv's redoing of it under EDM's names

def ncsnpp_of(theirs: nn.Module, blocks: int, levels: int, attended: set[int],
              size: int) -> State:
    """score_sde's numbered modules from EDM's named ones."""
    state, found = theirs.state_dict(), {}
    place = iter(range(1000))

    def take(names: dict[str, str], kept: str) -> None:
        i = next(place)
        for new, old in names.items():
            for end in ("weight", "bias"):
                found[f"all_modules.{i}.{new}{end}"] = state[f"{kept}{old}{end}"]

    def block(kept: str) -> None:
        names = {"GroupNorm_0.": "norm0.", "Conv_0.": "conv0.", "Dense_0.": "affine.",
                 "GroupNorm_1.": "norm1.", "Conv_1.": "conv1."}
        if f"{kept}skip.weight" in state:
            names["Conv_2."] = "skip."
        take(names, kept)

    def attention(kept: str) -> None:
        i, width = next(place), state[f"{kept}proj.bias"].shape[0]
        base = f"all_modules.{i}."
        for end in ("weight", "bias"):
            found[f"{base}GroupNorm_0.{end}"] = state[f"{kept}norm2.{end}"]
        qkv = state[f"{kept}qkv.weight"].view(width, 3, width)
        bias = state[f"{kept}qkv.bias"].view(width, 3)
        for j in range(3):
            found[f"{base}NIN_{j}.W"], found[f"{base}NIN_{j}.b"] = qkv[:, j].T, bias[:, j]
        found[f"{base}NIN_3.W"] = state[f"{kept}proj.weight"][..., 0, 0].T
        found[f"{base}NIN_3.b"] = state[f"{kept}proj.bias"]

    found[f"all_modules.{next(place)}.W"] = state["map_noise.freqs"]
    take({"": ""}, "map_layer0.")
    take({"": ""}, "map_layer1.")
    take({"": ""}, f"enc.{size}x{size}_conv.")
    for level in range(levels):
        at = f"{size >> level}x{size >> level}"
        if level:
            block(f"enc.{at}_down.")
            take({"Conv2d_0.": ""}, f"enc.{at}_aux_residual.")
        for j in range(blocks):
            block(f"enc.{at}_block{j}.")
            if level in attended:
                attention(f"enc.{at}_block{j}.")
    block(f"dec.{at}_in0.")
    attention(f"dec.{at}_in0.")
    block(f"dec.{at}_in1.")
    for level in range(levels - 1, -1, -1):
        at = f"{size >> level}x{size >> level}"
        if level < levels - 1:
            block(f"dec.{at}_up.")
        for j in range(blocks + 1):
            block(f"dec.{at}_block{j}.")
        if level in attended:
            attention(f"dec.{at}_block{blocks}.")
    take({"": ""}, f"dec.{size}x{size}_aux_norm.")
    take({"": ""}, f"dec.{size}x{size}_aux_conv.")
    return found


@functools.cache
def song(kind: str = "ncsn", attention: tuple[int, ...] = (4,)) -> Any:
    from deepinv.models import NCSNpp

    with torch.device("meta"):  # its own first weights take long to draw
        net = NCSNpp(model_type=kind, img_resolution=8, in_channels=1, out_channels=1,
                     augment_dim=3 * (kind == "ddpm"), model_channels=128, channel_mult=(1, 1),
                     num_blocks=1, attn_resolutions=attention, pretrained=None)
    return real(net)


def real(net: nn.Module) -> nn.Module:
    """A network of deepinv off the meta device, its filters and frequencies with it."""
    net.to_empty(device="cpu")
    for key, value in net.named_buffers():
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if value.shape[-1] == 4 else [1.0, 1.0])
        filtering = key.endswith("resample_filter")
        value.copy_(torch.outer(taps, taps) / taps.sum().square() if filtering else
                    16 * noise(*value.shape))
    return spread(net)


@pytest.mark.parametrize("attention", [(), (4,)])
def test_ncsnpp(attention: tuple[int, ...]) -> None:
    theirs = song("ncsn", attention)
    state = ncsnpp_of(theirs, 1, 2, {1} if attention else set(), 8)
    x, sigma = noise(2, 1, 8, 8), torch.tensor([0.05, 30.0])

    def score(z: Tensor, s: Tensor) -> Tensor:
        return cast(Tensor, theirs.forward_unet(2 * z - 1, s.log())) / s.view(-1, 1, 1, 1)

    mine = ncsnpp.from_state("x.pth", state)
    agree(mine, score, x, sigma)
    assert differ(ncsnpp.from_state("x.pth", state, centres=False)(x, sigma), score(x, sigma)) > .01


def test_ncsnpp_is_not_told_the_image_size() -> None:
    """Attention by image size would be looked for at 16 pixels where the keys have none."""
    mine = ncsnpp.from_state("x.pth", ncsnpp_of(song("ncsn", ()), 1, 2, set(), 8))
    assert mine(noise(1, 1, 16, 20), torch.ones(1)).shape == (1, 1, 16, 20)


# ---- EDM's two networks, against deepinv's

@pytest.mark.parametrize("kind", ["ncsn", "ddpm", "adm"])
def test_edm(kind: str) -> None:
    from deepinv.models import ADMUNet

    with torch.device("meta"):
        other = ADMUNet(img_resolution=8, in_channels=1, out_channels=1, model_channels=64,
                        channel_mult=(2, 2), num_blocks=1, attn_resolutions=(4,), pretrained=None)
    theirs = real(other) if kind == "adm" else song(kind)
    state = theirs.state_dict()
    x, t = noise(2, 1, 8, 8), torch.tensor([0.3, -0.7])
    run = cast(Any, theirs).forward_unet
    agree(edm.from_state("x.pt", state), run, x, t)
    swapped = {k: v.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
               if k.endswith("qkv.weight") else v for k, v in state.items()}
    assert differ(edm.from_state("x.pt", swapped)(x, t), run(x, t)) > 1e-4


# ---- EDM2 and NCSNv2, written a second time from their papers, on the keys themselves

def edm2_state(channels: int = 1, width: int = 64, seed: int = 0) -> State:
    generator, state = torch.Generator().manual_seed(seed), {}

    def add(key: str, *shape: int) -> None:
        state[f"unet.{key}"] = torch.randn(shape, generator=generator)

    def block(place: str, a: int, b: int, attends: bool) -> None:
        inner = b if place.startswith("enc") else a
        add(f"{place}.conv_res0.weight", b, inner, 3, 3)
        add(f"{place}.conv_res1.weight", b, b, 3, 3)
        add(f"{place}.emb_linear.weight", b, 2 * width)
        add(f"{place}.emb_gain")
        if a != b:
            add(f"{place}.conv_skip.weight", b, a, 1, 1)
        if attends:
            add(f"{place}.attn_qkv.weight", 3 * b, b, 1, 1)
            add(f"{place}.attn_proj.weight", b, b, 1, 1)

    two = 2 * width
    for key in ("emb_fourier.freqs", "emb_fourier.phases"):
        add(key, width)
    add("emb_noise.weight", two, width)
    add("enc.16x16_conv.weight", width, channels + 1, 3, 3)
    block("enc.16x16_block0", width, width, False)
    block("enc.8x8_down", width, width, False)
    block("enc.8x8_block0", width, two, True)
    block("dec.8x8_in0", two, two, True)
    block("dec.8x8_in1", two, two, False)
    block("dec.8x8_block0", 2 * two, two, True)
    block("dec.8x8_block1", two + width, two, True)
    block("dec.16x16_up", two, two, False)
    block("dec.16x16_block0", two + width, width, False)
    block("dec.16x16_block1", 2 * width, width, False)
    add("out_conv.weight", channels, width, 3, 3)
    add("out_gain")
    for key in ("logvar_fourier.freqs", "logvar_fourier.phases"):
        state[key] = torch.randn(8, generator=generator)
    state["logvar_linear.weight"] = torch.randn(1, 8, generator=generator)
    return state


def edm2_again(state: State, x: Tensor, time: Tensor, fault: str = "") -> Tensor:
    """EDM2's network of ``edm2_state``, one product after another."""
    w = {k.removeprefix("unet."): v for k, v in state.items()}

    def mapped(key: str, h: Tensor) -> Tensor:
        weight = w[f"{key}.weight"]
        rows = weight.flatten(1)
        rows = rows / (1e-4 + rows.norm(dim=1, keepdim=True) / math.sqrt(rows.shape[1]))
        weight = (rows / math.sqrt(rows.shape[1])).view_as(weight)
        if fault == "weights as they are":
            weight = w[f"{key}.weight"]
        return (functional.linear(h, weight) if h.ndim == 2 else
                functional.conv2d(h, weight, padding=weight.shape[-1] // 2))

    def silu(h: Tensor) -> Tensor:
        return h * h.sigmoid() / 0.596

    def unit(h: Tensor, dim: int) -> Tensor:
        return h / (1e-4 + h.norm(dim=dim, keepdim=True) / math.sqrt(h.shape[dim]))

    def add(a: Tensor, b: Tensor) -> Tensor:
        return (0.7 * a + 0.3 * b) / (1.0 if fault == "plain sums" else math.sqrt(0.58))

    def block(place: str, h: Tensor) -> Tensor:
        encodes, skips = place.startswith("enc"), f"{place}.conv_skip.weight" in w
        if encodes:
            h = unit(mapped(f"{place}.conv_skip", h) if skips else h, 1)
        y = mapped(f"{place}.conv_res0", silu(h))
        c = mapped(f"{place}.emb_linear", told) * w[f"{place}.emb_gain"] + 1
        y = mapped(f"{place}.conv_res1", silu(y * c[:, :, None, None]))
        if not encodes and skips:
            h = mapped(f"{place}.conv_skip", h)
        h = add(h, y)
        if f"{place}.attn_qkv.weight" in w:
            heads = h.shape[1] // 64
            y = mapped(f"{place}.attn_qkv", h).reshape(len(h), heads, 64, 3, -1)
            q, k, v = unit(y, 2).unbind(3)
            weights = torch.einsum("nhcq,nhck->nhqk", q, k / 8).softmax(3)
            y = torch.einsum("nhqk,nhck->nhcq", weights, v)
            h = add(h, mapped(f"{place}.attn_proj", y.reshape(h.shape)))
        return h.clip(-256, 256)

    def joined(a: Tensor, b: Tensor) -> Tensor:
        n, m = a.shape[1], b.shape[1]
        each = math.sqrt((n + m) / (0.5**2 + 0.5**2)) * 0.5
        return torch.cat([a * each / math.sqrt(n), b * each / math.sqrt(m)], 1)

    angles = torch.outer(time, w["emb_fourier.freqs"]) + w["emb_fourier.phases"]
    told = silu(mapped("emb_noise", math.sqrt(2) * angles.cos()))
    a = mapped("enc.16x16_conv", torch.cat([x, torch.ones_like(x[:, :1])], 1))
    b = block("enc.16x16_block0", a)
    c = block("enc.8x8_down", functional.avg_pool2d(b, 2))
    d = block("enc.8x8_block0", c)
    h = block("dec.8x8_in1", block("dec.8x8_in0", d))
    h = block("dec.8x8_block1", joined(block("dec.8x8_block0", joined(h, d)), c))
    h = block("dec.16x16_up", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    h = block("dec.16x16_block1", joined(block("dec.16x16_block0", joined(h, b)), a))
    return mapped("out_conv", h) * w["out_gain"]


def test_edm2() -> None:
    state = edm2_state()
    mine = edm2.from_state("x.pt", {k.removeprefix("unet."): v for k, v in state.items()
                                    if k.startswith("unet.")})
    x, t = noise(2, 1, 16, 16), torch.tensor([0.3, -0.7])
    agree(mine, lambda z, s: edm2_again(state, z, s), x, t)
    for fault in ("weights as they are", "plain sums"):
        assert differ(mine(x, t), edm2_again(state, x, t, fault)) > 1e-3


def test_edm2_keeps_magnitudes() -> None:
    """Unit noise in, about unit noise out, whatever the weights' size: what the layout is for."""
    state = edm2_state()
    made = {}
    for size in (1.0, 100.0):
        scaled = {k.removeprefix("unet."): v * (size if v.ndim > 1 else 1)
                  for k, v in state.items() if k.startswith("unet.")}
        scaled["out_gain"] = torch.ones(())
        made[size] = edm2.from_state("x.pt", scaled)(noise(2, 1, 16, 16), torch.zeros(2))
    assert 0.5 < float(made[1.0].std()) < 2
    assert differ(made[100.0], made[1.0]) < 1e-3


def ncsnv2_state(stages: tuple[str, ...], channels: int = 2, width: int = 4) -> State:
    with torch.device("meta"):
        network = ncsnv2.NCSNv2(channels, width, stages, True)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) / math.sqrt(max(v[0].numel(), 4))
             for k, v in network.state_dict().items()}
    return state | {"sigmas": torch.linspace(5.0, 0.01, 12)}


def ncsnv2_again(state: State, x: Tensor, sigma: Tensor, fault: str = "") -> Tensor:
    """NCSNv2-Deepest as a list of what is done to what, by the names of its keys."""

    def conv(key: str, h: Tensor, dilation: int = 1) -> Tensor:
        weight = state[f"{key}.weight"]
        return functional.conv2d(h, weight, state.get(f"{key}.bias"), dilation=dilation,
                                 padding=dilation * (weight.shape[-1] // 2))

    def norm(key: str, h: Tensor) -> Tensor:
        means = h.mean((2, 3))
        among = (means - means.mean(1, True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
        spread = (h.var((2, 3), correction=0) + 1e-5).sqrt()
        plain = (h - means[..., None, None]) / spread[..., None, None]
        a, g, b = (state[f"{key}.{n}"][None, :, None, None] for n in ("alpha", "gamma", "beta"))
        return g * (plain + a * among[..., None, None]) + b

    def stage(n: str, h: Tensor, dilation: int, halves: bool) -> Tensor:
        for i in range(2):
            key, pools = f"res{n}.{i}", halves and i == 0 and dilation == 1
            end = ".conv" if pools else ""
            y = conv(f"{key}.conv1", functional.elu(norm(f"{key}.normalize1", h)), dilation)
            y = conv(f"{key}.conv2{end}", functional.elu(norm(f"{key}.normalize2", y)), dilation)
            if f"{key}.shortcut{end}.weight" in state:
                h = conv(f"{key}.shortcut{end}", h, dilation)
            h = functional.avg_pool2d(y, 2) + functional.avg_pool2d(h, 2) if pools else y + h
        return h

    def units(key: str, h: Tensor) -> Tensor:
        i = 1
        while f"{key}.{i}_1_conv.weight" in state:
            y = conv(f"{key}.{i}_1_conv", functional.elu(h))
            h = h + conv(f"{key}.{i}_2_conv", functional.elu(y))
            i += 1
        return h

    def refine(n: str, *inputs: Tensor) -> Tensor:
        hs = [units(f"refine{n}.adapt_convs.{i}", h) for i, h in enumerate(inputs)]
        h = hs[0]
        if len(hs) > 1:
            mapped = [conv(f"refine{n}.msf.convs.{i}", a) for i, a in enumerate(hs)]
            h = mapped[0] + functional.interpolate(mapped[1], hs[0].shape[2:], mode="bilinear",
                                                   align_corners=fault != "corners")
        h = path = functional.elu(h)
        for i in range(2):
            path = conv(f"refine{n}.crp.convs.{i}", functional.max_pool2d(path, 5, 1, 2))
            h = h + path
        return units(f"refine{n}.output_convs", h)

    one = stage("1", conv("begin_conv", 2 * x - 1), 1, False)
    two = stage("2", one, 1, True)
    three = stage("3", two, 1, True)
    between = stage("31", three, 1, True)
    four = stage("4", between, 1 if fault == "undilated" else 2, True)
    five = stage("5", four, 4, True)
    h = refine("2", four, refine("1", five))
    h = refine("4", two, refine("3", three, refine("31", between, h)))
    h = conv("end_conv", functional.elu(norm("normalizer", refine("5", one, h))))
    return h / sigma[:, None, None, None]


def test_ncsnv2() -> None:
    state = ncsnv2_state(("1", "2", "3", "31", "4", "5"))
    mine = ncsnv2.from_state("x.pth", {k: v for k, v in state.items() if k != "sigmas"})
    x, sigma = noise(2, 2, 32, 24), torch.tensor([0.3, 4.0])
    agree(mine, lambda z, s: ncsnv2_again(state, z, s), x, sigma)
    assert differ(mine(x, sigma), ncsnv2_again(state, x, sigma, "corners")) > 1e-4


@pytest.mark.parametrize(("stages", "times"), [(("1", "2", "3", "4"), 1),
                                               (("1", "2", "3", "4", "5"), 3)])
def test_smaller_ncsnv2(stages: tuple[str, ...], times: int) -> None:
    """Their coarsest stages are as small as the number of halvings that are not dilated."""
    state = ncsnv2_state(stages)
    mine = ncsnv2.from_state("x.pth", {k: v for k, v in state.items() if k != "sigmas"})
    assert mine(noise(1, 2, 16, 16), torch.ones(1)).shape == (1, 2, 16, 16)
    sizes: list[int] = []
    block = getattr(mine, f"res{stages[-1]}")[1]
    block.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    mine(noise(1, 2, 16, 16), torch.ones(1))
    assert sizes == [16 // 2 ** (1 if len(stages) == 4 else 2)]
    assert times  # of refinement beyond the base


# ---- denoising-diffusion-pytorch, against the package

@pytest.mark.parametrize("itself", [False, True])
def test_lucidrains(itself: bool) -> None:
    from denoising_diffusion_pytorch import Unet

    theirs = spread(Unet(16, channels=2, dim_mults=(1, 2, 2), self_condition=itself,
                         full_attn=(False, True, True), attn_heads=2, attn_dim_head=8))
    mine = lucidrains.from_state("x.pt", theirs.state_dict())
    assert (mine.channels, mine.outputs) == (2, 2)
    x, t = noise(2, 2, 16, 16), torch.tensor([3.0, 412.0])
    agree(mine, theirs, x, t)
    assert differ(mine(x, t + 5), theirs(x, t)) > 1e-4


# ---- deepinv's DRUNet

def test_drunet() -> None:
    from deepinv.models import DRUNet

    theirs = spread(DRUNet(in_channels=1, out_channels=1, nc=(8, 8, 16, 16), nb=2,
                           pretrained=None))
    network, channels = deepinv_networks._network("x.pth", theirs.state_dict())
    x, sigma = noise(2, 1, 32, 32), torch.tensor([0.1, 0.4])
    assert channels == 1
    assert torch.equal(network(x, sigma), theirs(x, sigma))
