"""``recon train``: its options."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    folder: Annotated[Path, typer.Argument(
        help="images: DICOM series in folders of their own, NIfTI, NRRD, ISMRMRD images, .npy or "
             ".npz ('images'), or fully sampled k-space, whose coils are combined")],
    out: Annotated[Path, typer.Option(
        help="folder for the run; where the same one is there already, it goes on")],
    validate: Annotated[Path, typer.Option(
        help="other people's images, a folder or a file, to check the denoising on")],
    name: Annotated[str | None, typer.Option(
        help="of the prior: NAME.safetensors and NAME.md; by default that of --out")] = None,
    unit: Annotated[str | None, typer.Option(
        help="of NIfTI and NRRD images and numpy arrays, which do not say: HU or arbitrary")
    ] = None,
    window: Annotated[str, typer.Option(
        help="of images in HU, low:high; what lies outside is cut")] = "-1000:2000",
    phase: Annotated[bool, typer.Option(
        "--phase", help="make real images complex, with a smooth random phase, as MR has")] = False,
    pixel: Annotated[str, typer.Option(
        help="pixel sizes to learn in mm, smallest:largest; images are never made finer")
    ] = "1:2.8",
    thickness: Annotated[str, typer.Option(
        help="slice thicknesses in mm, thinnest:thickest, as means of slices; they average noise")
    ] = "1:5",
    warp: Annotated[float, typer.Option(
        min=0, max=1, help="part of the planes that is turned, stretched and bent")] = 0.5,
    recolour: Annotated[float, typer.Option(
        min=0, max=1, help="part of the planes whose contrast is changed")] = 0.5,
    margin: Annotated[float, typer.Option(
        min=0, max=1, help="part of the planes that get more air around them, where they end in "
                           "air")] = 0.3,
    air: Annotated[float, typer.Option(
        min=0, max=1, help="part of the nearly empty examples that is kept")] = 0.1,
    crop: Annotated[int, typer.Option(min=16, help="pixels along the side of an example")] = 96,
    batch: Annotated[int, typer.Option(min=1, help="examples a step")] = 8,
    widths: Annotated[str, typer.Option(
        help="channels of the network's four levels")] = "32,64,128,256",
    blocks: Annotated[int, typer.Option(min=1, help="of each level")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="of the whole training")] = 7000,
    minutes: Annotated[float | None, typer.Option(
        min=0, help="stop after these, to go on later")] = None,
    rate: Annotated[float, typer.Option(help="of learning, at its highest")] = 2e-3,
    decay: Annotated[float, typer.Option(
        help="last part of the steps, over which the rate falls to zero")] = 0.6,
    seed: Annotated[int, typer.Option(min=0, help="of the weights and the examples")] = 0,
    every: Annotated[int, typer.Option(
        min=1, help="steps between held-out checks; a kill loses those since the last")] = 100,
    previews: Annotated[int, typer.Option(min=1, help="steps between pictures")] = 1000,
    workers: Annotated[int, typer.Option(min=0, help="processes that make examples")] = 0,
    change: Annotated[bool, typer.Option(
        "--change", help="go on with a run that was begun with other settings or images; the card "
                         "lists both")] = False,
    subjects: Annotated[int | None, typer.Option(
        min=1, help="people trained on, for the card; by default one a file")] = None,
    list_files: Annotated[bool, typer.Option(
        "--list-files", help="name the files in the card; they may be called after patients")
    ] = False,
    note: Annotated[str, typer.Option(
        help="for the card: origin and licence of the images")] = "",
    device: Annotated[str, typer.Option(
        help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")] = "auto",
    precision: Annotated[str, typer.Option(
        help="of the network: float32, or bfloat16, faster where the processor has it")
    ] = "float32",
) -> None:
    """Train a prior on images; killed, it goes on where it was, to the same weights."""
    import torch

    from recon.cli import _device, _numbers
    from recon.training import Settings
    from recon.training import train as run

    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"--precision wants float32 or bfloat16, got {precision!r}")
    settings = Settings(
        unit=unit, window_hu=_span("window", window), phase=phase, pixel_mm=_span("pixel", pixel),
        thickness_mm=_span("thickness", thickness), warp=warp, recolour=recolour, margin=margin,
        air=air, crop=crop, batch=batch, widths=_numbers("widths", widths, int), blocks=blocks,
        steps=steps, rate=rate, decay=decay, seed=seed, every=every, previews=previews,
        workers=workers, device=_device(device), precision=getattr(torch, precision),
        subjects=subjects, list_files=list_files, note=note,
    )
    run(folder, out, validate, settings, name=name, minutes=minutes, change=change, progress=True,
        say=typer.echo)


def _span(option: str, text: str) -> tuple[float, float]:
    first, colon, last = text.partition(":")
    try:
        return float(first), float(last if colon else first)
    except ValueError:
        raise ValueError(f"--{option} wants first:last, got {text!r}") from None
