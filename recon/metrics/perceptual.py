"""Learned perceptual distance. Its features come from photographs, not from medical images."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NETS = ("alex", "vgg", "squeeze")


class Perceptual(NamedTuple):
    """LPIPS, smaller is closer."""

    mean: float
    slices: Tensor
    """float32 ``(slices,)``."""
    net: str
    range: tuple[float, float]
    """The values that became -1 and 1."""
    clipped: float
    """Share of the pixels of both images that lay outside and were clipped."""


def lpips(image: Tensor, reference: Tensor, *, data_range: float | tuple[float, float],
          net: str = "alex", backbone: nn.Module | None = None) -> Perceptual:
    """LPIPS, version 0.1 (Zhang et al. 2018, arXiv 1801.03924), of each slice.

    Equal shapes ``(slices, height, width)``; complex images count by magnitude. ``data_range``, the
    largest value or ``(lowest, largest)``, is brought to ``[-1, 1]``, what lies outside is clipped,
    and the result is given to ``net`` (``alex``, ``vgg`` or ``squeeze``) in three equal channels.
    ``backbone`` replaces the network that makes the features, ``(n, 3, height, width)`` to one
    tensor per layer with the channels of ``net``; without it torchvision downloads the weights of
    ``net`` once (5 to 530 MB). On the device of ``reference``. Raises ImportError without the
    package lpips, OSError where the weights cannot be had.
    """
    if image.shape != reference.shape or image.ndim != 3 or not image.numel():
        raise ValueError("lpips wants image and reference (slices, height, width) alike, got "
                         f"{tuple(image.shape)} and {tuple(reference.shape)}")
    if net not in NETS:
        raise ValueError(f"lpips: net wants one of {', '.join(NETS)}, got {net!r}")
    low, high = (0.0, data_range) if isinstance(data_range, int | float) else data_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("lpips: data_range wants the largest value, > 0, or (lowest, largest), "
                         f"got {data_range}")
    both = []
    for name, x in (("image", image), ("reference", reference)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"lpips: the {name} holds NaN or infinity")
        x = x.detach().to(reference.device, torch.complex64 if x.is_complex() else torch.float32)
        both.append(x.abs() if x.is_complex() else x)
    outside = sum(int(((x < low) | (x > high)).sum()) for x in both)
    scaled = [((2 * (x - low) / (high - low)) - 1).clamp(-1, 1) for x in both]
    model = (_pretrained(net) if backbone is None else _with(net, backbone)).to(reference.device)
    with torch.no_grad():
        pairs = zip(*scaled, strict=True)
        found = torch.stack([model(*(x.expand(1, 3, -1, -1) for x in pair)).reshape(())
                             for pair in pairs]).cpu()
    return Perceptual(float(found.double().mean()), found, net, (float(low), float(high)),
                      outside / (2 * image.numel()))


@functools.lru_cache(maxsize=1)
def _pretrained(net: str) -> Any:
    try:
        return _model(net, random=False)
    except OSError as error:
        raise OSError(f"lpips: the weights of {net} could not be read or downloaded by "
                      "torchvision: pass backbone=, or put them where torch.hub looks for "
                      f"checkpoints ({type(error).__name__})") from error


def _with(net: str, backbone: nn.Module) -> Any:
    model = _model(net, random=True)
    model.net = backbone
    return model


def _model(net: str, *, random: bool) -> Any:
    try:
        import lpips as package
    except ImportError as error:
        raise ImportError('LPIPS needs the package lpips: pip install "recon[lpips]"') from error
    with warnings.catch_warnings():
        # it calls torchvision's models by a deprecated argument
        warnings.simplefilter("ignore")
        return package.LPIPS(net=net, pnet_rand=random, verbose=False)
