"""The command line: ``recon demo``, ``reconstruct``, ``evaluate``, ``info``, ``check``, ..."""

import enum
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from recon.check_cli import check
from recon.train_cli import train

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Reconstruct images from incomplete, noisy measurements with diffusion "
                       "priors.")
app.add_typer(check, name="check")
app.command()(train)


class Precision(enum.StrEnum):
    """What the prior's network computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Format(enum.StrEnum):
    """What kind of file to write."""

    h5 = "h5"
    npz = "npz"
    cfl = "cfl"
    nifti = "nifti"
    dicom = "dicom"
    ismrmrd = "ismrmrd"


class Engine(enum.StrEnum):
    """Where the work of an evaluation is done."""

    local = "local"
    ray = "ray"


_READABLE = ("k-space (fastMRI, ISMRMRD, Siemens .dat, BART cfl or ra, npz, npy), projections "
             "(LoDoPaB), or images (DICOM folder, NIfTI, NRRD), which are measured by simulation")

Device = Annotated[str, typer.Option(
    help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")]
Samples = Annotated[int, typer.Option(min=1, help="posterior samples per slice; tv and wavelet "
                                                  "have one")]
Steps = Annotated[int | None, typer.Option(min=1, help="noise levels of the sampler")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the samples; slice n takes seed + n")]
Series = Annotated[str | None, typer.Option(help="number of a DICOM series, where a folder holds "
                                                 "several")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing output")]
NetworkPrecision = Annotated[Precision, typer.Option(
    help="of the network alone; bfloat16 is faster on GPUs and recent CPUs")]


def _version(wanted: bool) -> None:
    if wanted:
        import recon

        typer.echo(f"recon {recon.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option(
        "--version", callback=_version, is_eager=True, help="say the version and exit")] = False,
) -> None:
    """What belongs to no command."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(
        help="folder for figure, table and arrays")] = Path("recon-demo"),
    samples: Samples = 4,
    steps: Annotated[int, typer.Option(min=1, help="noise levels of the sampler")] = 30,
    seed: Seed = 0,
    device: Device = "auto",
    precision: NetworkPrecision = Precision.float32,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct a real MR slice from simulated four-fold undersampled 8-coil k-space."""
    import torch

    from recon.demo import run

    run(out, samples=samples, steps=steps, seed=seed, device=_device(device),
        precision=getattr(torch, precision.value), overwrite=overwrite, say=typer.echo)


@app.command()
def info(
    files: Annotated[list[Path], typer.Argument(help=_READABLE)],
    series: Series = None,
) -> None:
    """Say what a file holds and how to reconstruct it."""
    from recon import datasets

    for path in files:
        about = datasets.describe(path, series=series)
        keys = {name: f"{what['shape']} {what['dtype']}" for name, what in about["keys"].items()}
        typer.echo(about.pop("name"))
        _tell(about | {"keys": keys}, indent=2)


@app.command()
def reconstruct(
    files: Annotated[list[Path], typer.Argument(help=_READABLE)],
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path(),
    sampler: Annotated[str, typer.Option(
        help="dds, tv, wavelet or another of recon.samplers for (y, operator, prior)")] = "dds",
    prior: Annotated[str, typer.Option(help="a prior's name or file")] = "brain-mri",
    samples: Samples = 4,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: NetworkPrecision = Precision.float32,
    mask: Annotated[str | None, typer.Option(
        help="undersample: random, equispaced, equispaced_fraction, magic, magic_fraction, "
             "inversebench or poisson_disc; without it the file's own sampling")] = None,
    acceleration: Annotated[int, typer.Option(min=1, help="of --mask")] = 4,
    center_fraction: Annotated[float, typer.Option(
        min=0, max=1, help="of --mask")] = 0.08,
    mask_seed: Annotated[int | None, typer.Option(
        min=0, help="of --mask; by default the file's name, as fastMRI does")] = None,
    views: Annotated[int | None, typer.Option(
        min=1, help="CT: simulate so many projections of images in HU, or use so many of a "
                    "file's")] = None,
    unit: Annotated[str | None, typer.Option(
        help="of NIfTI and NRRD images, which do not say: HU or arbitrary")] = None,
    series: Series = None,
    slices: Annotated[str | None, typer.Option(
        help="one number, counted from 0, or first:stop, stop left out")] = None,
    noise_std: Annotated[float | None, typer.Option(
        min=0, help="noise of each real number measured; without it as the file measured it, or "
                    "estimated")] = None,
    calibration: Annotated[int | None, typer.Option(
        min=1, help="centre columns for the coil maps")] = None,
    baseline_weight: Annotated[float, typer.Option(
        min=0, help="of --sampler tv or wavelet, and of the TV image in the figure")] = 1e-3,
    format: Annotated[Format, typer.Option(  # noqa: A002 the option's name
        help="of the result; h5 and npz hold mean, std and all samples, cfl the mean, the others "
             "mean and std beside it; dicom is a derived series")] = Format.h5,
    deidentify: Annotated[bool, typer.Option(
        "--deidentify", help="leave the patient out of --format dicom")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct files; writes NAME_recon in the wanted format and a PNG of the middle slice."""
    import torch

    from recon.files import Settings, reconstruct_file

    wanted = Settings(
        sampler=sampler, prior=prior, samples=samples, steps=steps, seed=seed,
        device=_device(device), precision=getattr(torch, precision.value), mask=mask,
        acceleration=acceleration, center_fraction=center_fraction, mask_seed=mask_seed,
        slices=_slices(slices), noise_std=noise_std, calibration=calibration,
        baseline_weight=baseline_weight, format=format.value, views=views, unit=unit,
        series=series, deidentify=deidentify, overwrite=overwrite,
    )
    reconstruct_file(files, out, wanted, say=typer.echo)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(
        help="files of one or several kinds: k-space, images (then measured by simulation), "
             "projections")],
    out: Annotated[Path, typer.Option(
        help="folder for the results; where one with the same settings is there already, it goes "
             "on")],
    sampler: Annotated[list[str] | None, typer.Option(
        help="zero_filled, tv, dds, ...; may be given again")] = None,
    setting: Annotated[list[str] | None, typer.Option(
        "--set", help="of one sampler: dds.eta=0.9; may be given again")] = None,
    accelerations: Annotated[str, typer.Option(
        help="of k-space, with commas between them")] = "4",
    center_fractions: Annotated[str | None, typer.Option(
        help="one for each acceleration; by default 0.32 over it: 0.08 at 4x, 0.04 at 8x")] = None,
    mask: Annotated[str, typer.Option(
        help="random (fastMRI's knee), equispaced_fraction (its brain), equispaced, magic, "
             "magic_fraction, inversebench or poisson_disc")] = "equispaced_fraction",
    mask_seed: Annotated[int | None, typer.Option(
        min=0, help="by default each file's name, as fastMRI does")] = None,
    views: Annotated[str, typer.Option(help="of CT, with commas between them")] = "60",
    unit: Annotated[str | None, typer.Option(
        help="of NIfTI and NRRD images, which do not say: HU or arbitrary")] = None,
    prior: Annotated[str, typer.Option(help="a prior's name or file")] = "brain-mri",
    samples: Samples = 4,
    steps: Steps = None,
    baseline_weight: Annotated[float, typer.Option(min=0, help="of tv and wavelet")] = 1e-3,
    seeds: Annotated[str, typer.Option(help="of the draws, with commas between them")] = "0",
    slices: Annotated[str | None, typer.Option(help="of every file: first:stop")] = None,
    noise_std: Annotated[float | None, typer.Option(
        min=0, help="of each real number measured; estimated without it")] = None,
    calibration: Annotated[int | None, typer.Option(
        min=1, help="centre columns for the coil maps")] = None,
    batch: Annotated[int, typer.Option(min=1, help="slices reconstructed at once")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="processors of each worker")] = 1,
    device: Device = "auto",
    precision: NetworkPrecision = Precision.float32,
    engine: Annotated[Engine, typer.Option(
        help="ray spreads the work over a cluster")] = Engine.local,
    workers: Annotated[int, typer.Option(min=1, help="of --engine ray")] = 1,
    maps: Annotated[Path | None, typer.Option(
        help="folder to keep coil maps in, for other evaluations too")] = None,
    skip_bad: Annotated[bool, typer.Option(
        "--skip-bad", help="leave out files that cannot be used, list them, and exit with 1")
    ] = False,
) -> None:
    """Reconstruct and measure every slice of every file; killed, it goes on where it was.

    Exits with 1 where files were left out as bad or slices diverged; both are listed.
    """
    from recon.evaluation import Settings, diverged
    from recon.evaluation import evaluate as run

    names = sampler or ["zero_filled", "tv", "dds"]
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in setting or []:
        name, key, value = _setting(text)
        if name not in chosen:
            raise ValueError(f"--set {text}: {name} is none of the samplers {', '.join(names)}")
        chosen[name][key] = value
    times = _numbers("accelerations", accelerations, int)
    centres = (tuple(0.32 / a for a in times) if center_fractions is None else
               _numbers("center-fractions", center_fractions, float))
    wanted = _slices(slices)
    if wanted is not None and wanted.stop is None:
        raise ValueError(f"--slices wants first:stop here, got {slices!r}")
    settings = Settings(
        samplers=chosen, accelerations=times, center_fractions=centres, mask=mask,
        mask_seed=mask_seed, views=_numbers("views", views, int), unit=unit, prior=prior,
        samples=samples, steps=steps, baseline_weight=baseline_weight,
        seeds=_numbers("seeds", seeds, int),
        slices=None if wanted is None else (wanted.start or 0, wanted.stop), noise_std=noise_std,
        calibration=calibration, batch=batch, threads=threads, device=_device(device),
        precision=precision.value,
    )
    plan = run(folder, out, settings, engine=engine.value, workers=workers, maps=maps,
               skip_bad=skip_bad, say=typer.echo)
    if plan.bad or diverged(out):
        raise typer.Exit(1)


@app.command()
def yardstick(
    samplers: Annotated[str | None, typer.Option(
        help="names with commas between them; all that draw images without it")] = None,
    problems: Annotated[str | None, typer.Option(
        help="names with commas between them; all without it")] = None,
    sampler_from: Annotated[str | None, typer.Option(
        help="a function of your own, module:function, called as sampler(y, operator, prior, "
             "noise_std=, samples=, generator=)")] = None,
    samples: Annotated[int, typer.Option(
        min=8, help="draws a run; a quarter or less on images")] = 512,
    seeds: Annotated[int, typer.Option(min=1, help="runs on the same measurements")] = 8,
    calibration: Annotated[int, typer.Option(
        min=0, help="fresh pairs of image and measurements; 0 leaves the ranks out")] = 200,
    out: Annotated[list[Path] | None, typer.Option(
        help="a .md, .json or .csv file to write; may be given again")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure samplers against posteriors known in closed form, and print the table."""
    from recon.yardstick.table import run

    run(_names(samplers), _names(problems), own=sampler_from, samples=samples, seeds=seeds,
        calibration=calibration, out=out or (), overwrite=overwrite, say=typer.echo)


Number = TypeVar("Number", int, float)


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--{option} wants numbers with commas between them, got {text!r}"
                         ) from None


def _setting(text: str) -> tuple[str, str, Any]:
    """``sampler.name=value``; the value is JSON, or else text."""
    import json

    place, equals, value = text.partition("=")
    name, dot, key = place.partition(".")
    if not (equals and dot and name and key):
        raise ValueError(f"--set wants sampler.name=value, got {text!r}")
    try:
        return name, key, json.loads(value)
    except ValueError:
        return name, key, value


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _tell(about: Mapping[str, Any], indent: int) -> None:
    for key, value in about.items():
        if isinstance(value, Mapping) and value:
            typer.echo(f"{' ' * indent}{key}:")
            _tell(value, indent + 2)
        elif value is not None and value != {}:
            parts = value if isinstance(value, tuple) else (value,)
            words = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in parts]
            told = (" to " if key == "value_range" else " x ").join(words)
            typer.echo(f"{' ' * indent}{key}: {told}")


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise ValueError(f"--device {name} cannot be used on this machine: want cpu, cuda, cuda:1, "
                         "... or auto") from error
    return name


def _slices(text: str | None) -> slice | None:
    if text is None:
        return None
    first, colon, stop = text.partition(":")
    digits = [part for part in (first, stop) if part]
    if not all(part.isascii() and part.isdigit() for part in digits) or not (first or colon):
        raise ValueError(f"--slices wants one number >= 0, or first:stop, got {text!r}")
    if not colon:
        return slice(int(first), int(first) + 1)
    return slice(int(first) if first else None, int(stop) if stop else None)


def main() -> None:
    """Run the command line; errors a user can mend are one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            told = f"{Path(error.filename).name}: {error.strerror}"
        told = " ".join(told.split()).replace("overwrite=True", "--overwrite")
        told = told.replace("skip_bad=True", "--skip-bad").replace("change=True", "--change")
        typer.echo(f"recon: {told}", err=True)
        sys.exit(2)
