"""The command line: ``recon demo``, ``recon reconstruct``, ``recon info``."""

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Reconstruct images from incomplete, noisy measurements with diffusion priors.")


class Precision(enum.StrEnum):
    """What the prior's network computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Format(enum.StrEnum):
    """What kind of file to write."""

    h5 = "h5"
    npz = "npz"
    cfl = "cfl"


Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")]
Samples = Annotated[int, typer.Option(min=1, help="posterior samples per slice")]
Steps = Annotated[int | None, typer.Option(min=1, help="noise levels of the sampler")]
Seed = Annotated[int, typer.Option(help="seed of the samples; every number is one, 0 too")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing output")]
NetworkPrecision = Annotated[Precision, typer.Option(
    help="of the network alone; bfloat16 is faster on GPUs and recent CPUs")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for figure, table and arrays")] = Path("recon-demo"),
    samples: Samples = 4,
    steps: Steps = 40,
    seed: Seed = 0,
    device: Device = "auto",
    precision: NetworkPrecision = Precision.float32,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct a real MR slice from simulated four-fold undersampled 8-coil k-space."""
    import torch

    from recon.demo import run

    run(out, samples=samples, steps=steps or 40, seed=seed, device=_device(device),
        precision=getattr(torch, precision.value), overwrite=overwrite, say=typer.echo)


@app.command()
def info(files: Annotated[list[Path], typer.Argument(help="fastMRI HDF5, BART cfl, npz or npy")]) -> None:
    """Say what a file holds and how to reconstruct it."""
    from recon import datasets

    for path in files:
        typer.echo(f"{path.name}")
        for key, value in datasets.describe(path).items():
            if key == "keys":
                for name, what in value.items():
                    typer.echo(f"    {name}: {what}")
            elif value is not None:
                typer.echo(f"  {key}: {value}")


@app.command()
def reconstruct(
    files: Annotated[list[Path], typer.Argument(help="fastMRI HDF5, BART cfl, npz or npy files")],
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("."),
    sampler: Annotated[str, typer.Option(help="dds, tv or wavelet")] = "dds",
    prior: Annotated[str, typer.Option(help="a prior's name or .safetensors file")] = "brain-mri",
    samples: Samples = 4,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: NetworkPrecision = Precision.float32,
    mask: Annotated[str | None, typer.Option(
        help="undersample: random, equispaced, equispaced_fraction, magic or magic_fraction; "
             "without it the file's own sampling")] = None,
    acceleration: Annotated[int, typer.Option(min=1, help="of --mask")] = 4,
    center_fraction: Annotated[float, typer.Option(help="of --mask")] = 0.08,
    mask_seed: Annotated[int | None, typer.Option(help="of --mask; by default the file's name, "
                                                       "as fastMRI does")] = None,
    slices: Annotated[str | None, typer.Option(help="first:stop, or one number")] = None,
    noise_std: Annotated[float | None, typer.Option(
        help="noise of each real number of the k-space; estimated from its corners without it")] = None,
    calibration: Annotated[int | None, typer.Option(help="centre columns for the coil maps")] = None,
    baseline_weight: Annotated[float, typer.Option(help="of the TV image in the figure")] = 1e-3,
    format: Annotated[Format, typer.Option(help="of the result")] = Format.h5,  # noqa: A002
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct files; writes NAME_recon.h5 (or npz, cfl) and a PNG of the middle slice."""
    import torch

    from recon.files import Settings, reconstruct_file

    wanted = Settings(
        sampler=sampler, prior=prior, samples=samples, steps=steps, seed=seed,
        device=_device(device), precision=getattr(torch, precision.value), mask=mask,
        acceleration=acceleration, center_fraction=center_fraction, mask_seed=mask_seed,
        slices=_slices(slices), noise_std=noise_std, calibration=calibration,
        baseline_weight=baseline_weight, suffix=format.value, overwrite=overwrite,
    )
    reconstruct_file(files, out, wanted, say=typer.echo)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        torch.device(name)
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _slices(text: str | None) -> slice | None:
    if text is None:
        return None
    try:
        numbers = [int(part) if part else None for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None and numbers[0] >= 0:
        return slice(numbers[0], numbers[0] + 1)
    if len(numbers) == 2:
        return slice(*numbers)
    raise ValueError(f"--slices wants first:stop or one number, got {text!r}")


def main() -> None:
    """Run the command line; errors a user can mend are one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, FileExistsError, FileNotFoundError, IsADirectoryError,
            ImportError) as error:
        typer.echo(f"recon: {error}", err=True)
        sys.exit(2)
