"""NCSNv2 (Song & Ermon 2020), the RefineNet behind CSGM-Langevin and SMRD, by its keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, Run, counted, smallest, wrapped
from recon.priors.loaders.states import Shapes, State, fill, without
from recon.priors.parameterisation import VarianceExploding

LAYOUT = "an NCSNv2"
USES = ("schedule",)

# width (times the first), halved, dilation of each stage, from the finest
_STAGES = {
    ("1", "2", "3", "4"): [(1, False, 1), (2, True, 1), (2, True, 2), (2, True, 4)],
    ("1", "2", "3", "4", "5"): [(1, False, 1), (2, True, 1), (2, True, 1), (4, True, 2),
                                (4, True, 4)],
    ("1", "2", "3", "31", "4", "5"): [(1, False, 1), (2, True, 1), (2, True, 1), (2, True, 1),
                                      (4, True, 2), (4, True, 4)],
}


def recognises(state: State) -> bool:
    """Whether these are keys of such a network."""
    return "begin_conv.weight" in state and "refine1.crp.convs.0.weight" in state


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a checkpoint, in the units it was trained in.

    Where training images were not in [-1, 1] the network itself maps ``x`` to ``2 x - 1``. It
    is not told the noise level: it predicts ``-n``, which divided by ``sigma`` is the score, so
    that any level between those of its ``sigmas`` is as good.
    """
    schedule = said.schedule
    if schedule is None:
        if "sigmas" not in state:
            raise CheckpointError(f"{name} does not say its noise levels (no 'sigmas'): pass "
                                  "schedule=VarianceExploding(sigma_min, sigma_max)")
        levels = state["sigmas"].double()
        schedule = VarianceExploding(float(levels.min()), float(levels.max()))
    if not isinstance(schedule, VarianceExploding):
        raise CheckpointError(f"{name} is {LAYOUT}, which knows variance-exploding noise alone: "
                              f"pass a VarianceExploding schedule, not {type(schedule).__name__}")
    network = from_state(name, without(state, "sigmas"), centres=said.value_range != (-1, 1))
    channels = counted(name, network.channels, network.channels, said)
    run = Run(network, said.precision)
    return wrapped(run, channels, "score", schedule, said.max_batch)


def from_state(name: str, state: State, centres: bool = True) -> "NCSNv2":
    """The network that a state describes, filled with it."""
    shape = Shapes(name, state)
    width, channels = shape("begin_conv.weight", 4)[:2]
    stages = tuple(sorted({k.split(".")[0].removeprefix("res") for k in state
                           if k.startswith("res") and k.split(".")[0][3:].isdigit()}))
    if stages not in _STAGES:
        raise CheckpointError(f"{name}: residual stages {', '.join(stages)} are of no NCSNv2: want "
                              "1 to 4, 1 to 5, or 1 to 5 with 31")
    with torch.device("meta"):
        network = NCSNv2(channels, width, stages, centres)
    fill(network, state, name, LAYOUT)
    return network


class NCSNv2(nn.Module):
    """The score of ``x0 + sigma n``: the network's ``-n`` over ``sigma``."""

    def __init__(self, channels: int, width: int, stages: tuple[str, ...],
                 centres: bool) -> None:
        super().__init__()
        self.channels, self.stages, self.centres = channels, stages, centres
        self.begin_conv = nn.Conv2d(channels, width, 3, padding=1)
        self.normalizer = _Norm(width)
        self.end_conv = nn.Conv2d(width, channels, 3, padding=1)
        w, widths = width, []
        for stage, (times, halves, dilation) in zip(stages, _STAGES[stages], strict=True):
            wide = times * width
            setattr(self, f"res{stage}", nn.ModuleList([
                _Block(w, wide, dilation, changes=halves), _Block(wide, wide, dilation)]))
            widths.append(wide)
            w = wide
        # a refinement gets its stage and what the coarser one made, as wide as the finer stage;
        # the coarsest is numbered 1 and 31 goes with stage 31
        self.refinements = [n for n in ("1", "2", "31", "3", "4", "5") if n in stages]
        coarse = widths[-1]
        for n, (own, finer) in zip(self.refinements,
                                   zip(widths[::-1], [*widths[-2::-1], width], strict=True),
                                   strict=True):
            first, last = n == "1", n == self.refinements[-1]
            made = own if first else finer
            setattr(self, f"refine{n}", _Refine([own] if first else [own, coarse], made, last))
            coarse = made

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        h = self.begin_conv(2 * x - 1 if self.centres else x)
        kept = []
        for stage in self.stages:
            for block in getattr(self, f"res{stage}"):
                h = block(h)
            kept.append(h)
        made: list[Tensor] = []
        for n in self.refinements:
            made = [getattr(self, f"refine{n}")([kept.pop(), *made])]
        out: Tensor = self.end_conv(functional.elu(self.normalizer(made[0])))
        return out / sigma.clamp(min=smallest(sigma)).view(-1, 1, 1, 1)


class _Norm(nn.Module):
    """Instance norm that keeps how a channel's mean stands among the others'."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.gamma, self.beta = (nn.Parameter(torch.empty(width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        spread = (means.var(1, keepdim=True) + 1e-5).sqrt()
        among = (means - means.mean(1, keepdim=True)) / spread
        alpha, gamma, beta = (p.view(-1, 1, 1) for p in (self.alpha, self.gamma, self.beta))
        return gamma * (functional.instance_norm(x) + alpha * among) + beta


class _Pooled(nn.Module):
    def __init__(self, w_in: int, w_out: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(w_in, w_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(self.conv(x), 2)


class _Block(nn.Module):
    """Two convolutions; one that ``changes`` pools where it is not dilated."""

    def __init__(self, w_in: int, w_out: int, dilation: int, changes: bool = False) -> None:
        super().__init__()
        pools, inner = changes and dilation == 1, w_in if changes else w_out

        def conv(a: int, b: int) -> nn.Module:
            return nn.Conv2d(a, b, 3, padding=dilation, dilation=dilation)

        self.normalize1, self.conv1 = _Norm(w_in), conv(w_in, inner)
        self.normalize2 = _Norm(inner)
        self.conv2 = _Pooled(inner, w_out, 3) if pools else conv(inner, w_out)
        self.shortcut: nn.Module | None = None
        if changes:
            self.shortcut = _Pooled(w_in, w_out, 1) if pools else conv(w_in, w_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.elu(self.normalize1(x)))
        h = self.conv2(functional.elu(self.normalize2(h)))
        out: Tensor = h + (x if self.shortcut is None else self.shortcut(x))
        return out


class _Units(nn.Module):
    """Residual units of two convolutions each."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.units = units
        for i in range(1, units + 1):
            for j in (1, 2):
                setattr(self, f"{i}_{j}_conv", nn.Conv2d(width, width, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.units + 1):
            h = getattr(self, f"{i}_1_conv")(functional.elu(x))
            x = x + getattr(self, f"{i}_2_conv")(functional.elu(h))
        return x


class _Convs(nn.Module):
    def __init__(self, convs: list[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)


class _Refine(nn.Module):
    """Lin et al. 2017: adapt each input, add them in the finest size, pool in a chain."""

    def __init__(self, inputs: list[int], width: int, last: bool) -> None:
        super().__init__()
        self.adapt_convs = nn.ModuleList([_Units(w, 2) for w in inputs])
        self.output_convs = _Units(width, 3 if last else 1)
        if len(inputs) > 1:
            self.msf = _Convs([nn.Conv2d(w, width, 3, padding=1) for w in inputs])
        self.crp = _Convs([nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)])

    def forward(self, xs: list[Tensor]) -> Tensor:
        hs = [adapt(x) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h, size = hs[0], xs[0].shape[2:]
        if len(hs) > 1:
            h = sum((functional.interpolate(conv(a), size=size, mode="bilinear",
                                            align_corners=True)
                     for conv, a in zip(self.msf.convs, hs, strict=True)), torch.zeros(()).to(h))
        h = path = functional.elu(h)
        for conv in self.crp.convs:
            path = conv(functional.max_pool2d(path, 5, stride=1, padding=2))
            h = h + path
        out: Tensor = self.output_convs(h)
        return out
