"""``recon check``: does a prior denoise what it is given, in the units it is told?"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recon.check_operator import operator

if TYPE_CHECKING:  # torch takes its time, and help should not
    from torch import Tensor

check = typer.Typer(no_args_is_help=True, help="Check what is about to be used.")
check.command()(operator)

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@check.command()
def prior(
    name_or_path: Annotated[str, typer.Argument(
        metavar="NAME_OR_PATH", help="a prior's name, checkpoint or folder")],
    images: Annotated[Path | None, typer.Option(
        help="file or folder of images it should know: npy arrays, pictures, or anything that "
             "recon info reads; without it wrong ranges, scales and channels cannot be told")
    ] = None,
    image_range: Annotated[str | None, typer.Option(
        help="values of black and white in those images, LOW,HIGH; they are brought to 0 and 1")
    ] = None,
    value_range: Annotated[str | None, typer.Option(
        help="of training, where a checkpoint does not say: LOW,HIGH or normalised")] = None,
    is_complex: Annotated[bool, typer.Option(
        "--complex", help="its channels are real parts, then imaginary parts")] = False,
    predicts: Annotated[str | None, typer.Option(help="eps, score, v, x0 or flow")] = None,
    noise: Annotated[str | None, typer.Option(
        help="its schedule: linear, flow, or LOW,HIGH of variance-exploding noise")] = None,
    sigma_data: Annotated[float | None, typer.Option(
        min=0, help="of EDM's preconditioning")] = None,
    head_channels: Annotated[int | None, typer.Option(
        min=1, help="of guided-diffusion's attention")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the noise")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Denoise at five noise levels and say what is wrong, in words; exits with 1 if anything is."""
    from recon import priors

    opened = priors.load(
        name_or_path, value_range=_value_range(value_range), is_complex=is_complex,
        predicts=predicts, schedule=_schedule(noise), sigma_data=sigma_data,  # type: ignore[arg-type]
        head_channels=head_channels, device=device)
    x = None
    if images is not None:
        x = _images(images, opened.channels,
                    None if image_range is None else _ends("image-range", image_range))
    elif name_or_path == "brain-mri":
        from recon.demo import shipped_slice

        x = shipped_slice()[None, None]
        typer.echo("images: the packaged MR slice")
    report = priors.check(opened, None if x is None else x.to(device), seed=seed)
    typer.echo(str(report))
    if not report.passed:
        raise typer.Exit(1)


def _ends(option: str, text: str, others: str = "") -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--{option} wants {others}LOW,HIGH, two numbers of which the first is "
                         f"the smaller, got {text!r}")
    return low, high


def _value_range(text: str | None) -> Any:
    if text is None or text == "normalised":
        return text
    return _ends("value-range", text, "normalised or ")


def _schedule(text: str | None) -> Any:
    from recon import priors

    if text is None:
        return None
    if text in ("linear", "flow"):
        return priors.VariancePreserving.linear() if text == "linear" else priors.Flow()
    low, high = _ends("noise", text, "linear, flow or ")
    if low <= 0:
        raise ValueError(f"--noise wants levels > 0, got {text!r}")
    return priors.VarianceExploding(low, high)


def _images(path: Path, channels: int, values: Any) -> "Tensor":
    """Four images ``(n, channels, H, W)`` from the middle of what a file or folder holds."""
    import torch

    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".npy", *_PICTURES)
                    ) if path.is_dir() else [path]
    parts = [_read(p, channels) for p in (inside[:8] or [path])]
    sizes = {tuple(part.shape[1:]) for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"{path.name} has images of several sizes, {sorted(sizes)}: want one size")
    whole = torch.cat(parts)
    middle = whole[len(whole) // 4 : max(len(whole) - len(whole) // 4, 1)]
    chosen = middle[:: max(len(middle) // 4, 1)][:4]
    height, width = (n - n % 32 if n > 32 else n for n in chosen.shape[-2:])
    top, left = (chosen.shape[-2] - height) // 2, (chosen.shape[-1] - width) // 2
    chosen = chosen[..., top : top + height, left : left + width]
    if values is not None:
        low, high = values
        chosen = (chosen - low) / (high - low)
    return chosen


def _read(path: Path, channels: int) -> "Tensor":
    import numpy as np
    import torch

    from recon import datasets

    name, suffix = path.name, path.suffix.lower()
    if path.is_file() and suffix == ".npy":
        array = np.load(path, allow_pickle=False)
    elif path.is_file() and suffix in _PICTURES:
        from skimage.io import imread

        array = imread(path)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        array = array[None].astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    else:
        found = datasets.open(path)
        kept = found.values if isinstance(found, datasets.Volume) else found.reference
        if kept is None:
            raise ValueError(f"{name} has measurements and no image beside them: want images")
        array = kept.numpy()
    x = torch.from_numpy(np.ascontiguousarray(array))
    x = x if x.is_complex() else x.float()
    while x.ndim < 3:
        x = x[None]
    x = x.unsqueeze(1) if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} has images {tuple(array.shape)}: want (n, {channels}, height, "
                         "width), or (n, height, width) for one channel")
    return x
