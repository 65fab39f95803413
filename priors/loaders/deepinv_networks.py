"""deepinv's denoisers, which expect images in [0, 1]: objects, and weights of its DRUNet."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import Declared, counted
from recon.priors.loaders.states import Shapes, State, fill
from recon.priors.parameterisation import VarianceExploding

LAYOUT = "a DRUNet of deepinv"
USES = ("schedule",)


class DeepinvPrior(Prior):
    """``D(x; sigma) = denoiser(x, sigma)``, a denoiser of deepinv, of images in [0, 1].

    The denoiser is put into evaluation mode. Those that iterate start anew for every image: deepinv
    stops them by the whole batch and starts its total variations where the last call ended.

    Parameters
    ----------
    denoiser
        Called as ``denoiser(x, sigma)`` with real images ``(n, channels, *spatial)`` and one
        number per item.
    channels
        Image channels.
    sigma_min, sigma_max
        The noise it was trained for; deepinv's classical denoisers know little noise alone.

    Examples
    --------
    >>> from deepinv.models import MedianFilter
    >>> prior = DeepinvPrior(MedianFilter(kernel_size=3), 1, sigma_min=0.01, sigma_max=0.2)
    >>> prior(torch.ones(2, 1, 8, 8), 0.1).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, denoiser: nn.Module, channels: int, *, sigma_min: float, sigma_max: float,
                 precision: torch.dtype = torch.float32, max_batch: int | None = None) -> None:
        super().__init__(channels=channels, is_complex=False, sigma_min=sigma_min,
                         sigma_max=sigma_max, max_batch=max_batch)
        if precision not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"precision wants float32, bfloat16 or float16, got {precision}")
        self.denoiser, self.precision = denoiser.eval(), precision
        # attributes so called mean other things in networks of one's own
        parts: list[Any] = [m for m in denoiser.modules() if _of_deepinv(m)]
        self._warm = [m for m in parts if isinstance(getattr(m, "restart", None), bool)]
        self._iterates = bool(self._warm) or any(
            isinstance(getattr(m, "max_iter", None), int) for m in parts)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        kind = next((p.dtype for p in self.denoiser.parameters() if p.is_floating_point()),
                    x.dtype)
        if self._iterates:
            out = torch.cat([self._denoised(*item) for item in zip(
                torch.split(x.to(kind), 1), torch.split(sigma.to(kind), 1), strict=True)])
        else:
            out = self._denoised(x.to(kind), sigma.to(kind))
        if out.shape != x.shape:
            raise ValueError(f"DeepinvPrior: the denoiser made {tuple(out.shape)} of "
                             f"{tuple(x.shape)}: want the same size")
        return out.to(x.dtype)

    def _denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        for part in self._warm:
            part.restart = True
        if self.precision == torch.float32:
            out: Tensor = self.denoiser(x, sigma)
        else:
            with torch.autocast(x.device.type, self.precision):
                out = self.denoiser(x, sigma)
        return out


def _of_deepinv(module: nn.Module) -> bool:
    """Whether it is one of deepinv's denoisers, or made of one."""
    rooms = {kind.__module__ for kind in type(module).__mro__}
    return any(room.startswith("deepinv.") for room in rooms - {"deepinv.models.base"})


def recognises(state: State) -> bool:
    """Whether these are keys of DRUNet."""
    return "m_head.weight" in state and "m_tail.weight" in state


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of a DRUNet's weights; ``schedule`` says which noise it was trained for."""
    if said.value_range not in (None, (0, 1)):
        raise CheckpointError(f"{name} is {LAYOUT}, of images in [0, 1]: leave value_range= out")
    if not isinstance(said.schedule, VarianceExploding):
        raise CheckpointError(f"{name} does not say which noise it was trained for: pass "
                              "schedule=VarianceExploding(sigma_min, sigma_max), in units of "
                              "images in [0, 1]")
    network, channels = _network(name, state)
    counted(name, channels, network.m_tail.out_channels, said)
    return DeepinvPrior(network, channels, sigma_min=said.schedule.sigma_min,
                        sigma_max=said.schedule.sigma_max, precision=said.precision,
                        max_batch=said.max_batch)


def _network(name: str, state: State) -> tuple[Any, int]:
    from deepinv.models import DRUNet

    shape = Shapes(name, state)
    ends = shape("m_head.weight", 4)[1]
    if ends < 2:
        raise CheckpointError(f"{name} is a DRUNet that is not told the noise level: want one of "
                              "image channels and a map of it")
    widths = [shape("m_head.weight", 4)[0]]
    blocks = 0
    for i in (1, 2, 3):
        places = [int(m[1]) for m in (re.match(rf"m_down{i}\.(\d+)\.", k) for k in state) if m]
        blocks = max(places, default=0)
        widths.append(shape(f"m_down{i}.{blocks}.weight", 4)[0])
    if blocks < 1:
        raise CheckpointError(f"{name}: no blocks in m_down3: the file is damaged or edited")
    with torch.device("meta"):
        network = DRUNet(in_channels=ends - 1, out_channels=shape("m_tail.weight", 4)[0],
                         nc=widths, nb=blocks, pretrained=None)
    fill(network, state, name, LAYOUT)
    return network, ends - 1
