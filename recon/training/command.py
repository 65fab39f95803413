"""From a folder of images to a prior and its card, in a folder that survives a kill."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import priors
from recon.priors.training import Check, Look, Recipe, Stack, Training, batch, held_out_images
from recon.priors.training.loop import STATE
from recon.progress import Bar
from recon.training.card import card_of, counts, write_card
from recon.training.images import WINDOW_HU, check_alike, read_stacks
from recon.training.preview import write_preview
from recon.training.seen import check_apart, check_never_seen, checksum, fingerprints


class Settings(NamedTuple):
    """What ``recon train`` is asked for; the command line explains each."""

    unit: str | None = None
    window_hu: tuple[float, float] = WINDOW_HU
    phase: bool = False
    pixel_mm: tuple[float, float] = (1.0, 2.8)
    thickness_mm: tuple[float, float] = (1.0, 5.0)
    warp: float = 0.5
    recolour: float = 0.5
    margin: float = 0.3
    air: float = 0.1
    crop: int = 96
    batch: int = 8
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: int = 2
    steps: int = 7000
    rate: float = 2e-3
    decay: float = 0.6
    seed: int = 0
    every: int = 100
    previews: int = 1000
    workers: int = 0
    device: str = "cpu"
    precision: torch.dtype = torch.float32
    subjects: int | None = None
    list_files: bool = False
    note: str = ""


def train(folder: Path, out: Path, validate: Path, settings: Settings, *, name: str | None = None,
          minutes: float | None = None, change: bool = False, progress: bool = False,
          say: Callable[[str], None] = print) -> Path:
    """Train a prior on a folder's images, or go on with it; returns the path of its weights.

    ``out`` gets ``state.pt`` (what to go on from, written every ``every`` steps),
    ``log.txt``, ``preview_STEP.png``, and at the end or after ``minutes`` ``NAME.safetensors`` for
    ``priors.load`` and its card ``NAME.md``; the name is the folder's where none is given. A run
    killed and started again ends with the very weights of one that was not. ``validate``, other
    people's images, is never trained on, nor was before a change. With ``change`` a run goes on
    with other settings or images than it was begun with; the card then lists what came before.

    Raises
    ------
    ValueError
        Settings out of range, images that do not go together, images smaller than a crop, images
        held out that are or were trained on, or a run in ``out`` begun with other settings or
        images. Before the first step.
    FileExistsError
        ``out`` holds files of a run whose ``state.pt`` is gone.
    """
    check_settings(settings, minutes)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out.name} is a file, not a folder: choose another --out")
    name = name or out.resolve().name
    if not name or Path(name).name != name:
        raise ValueError(f"name wants the name of a file without its ending, got {name!r}")
    check_folder(out, name)
    s = settings
    read = functools.partial(read_stacks, unit=s.unit, window_hu=s.window_hu, say=say)
    say("validation:")
    others = read(validate)
    say("training:")
    stacks = read(folder, leave_out=[validate])
    check_stacks(stacks, others, settings)
    marks, apart = ({stack.name: fingerprints(stack) for stack in group}
                    for group in (stacks, others))
    check_apart(apart, marks)
    look = Look(s.crop, s.pixel_mm, s.thickness_mm, s.warp, s.recolour, s.phase, s.margin, s.air)
    is_complex = s.phase or stacks[0].values.is_complex()
    first, second, third, fourth = s.widths
    recipe = Recipe(is_complex, s.steps, (first, second, third, fourth), s.blocks, s.rate,
                    s.decay, s.seed)
    about = {"train": {stack.name: checksum(stack) for stack in stacks}, "batch": s.batch,
             "look": look._asdict()}
    record = {"trained_on": counts(stacks, s.subjects), "window_hu": s.window_hu,
              "fingerprints": marks}
    held_out = held_out_images(others, phase=s.phase)
    out.mkdir(parents=True, exist_ok=True)
    training = Training(out, recipe, functools.partial(batch, stacks, look, s.batch, s.seed),
                        about=about, device=s.device, precision=s.precision, record=record,
                        change=change)
    check_never_seen(others, apart, training.history)
    if training.step:
        say(f"going on from step {training.step}")
    say(f"{sum(p.numel() for p in training.network.parameters()):,} weights, images "
        f"{'complex' if is_complex else 'real'} with a root mean square of "
        f"{training.sigma_data:g} per number")
    reached: list[Check] = []

    def told(check: Check) -> None:
        reached[:] = [check]
        line = _line(check, s.steps, training.begun_at)
        say(line)
        with (out / "log.txt").open("a") as log:
            log.write(line + "\n")
        if check.step % s.previews == 0:
            _preview(out, check.step, training, held_out, s)

    with Bar(progress, s.steps, "steps", training.step) as advance:
        done = training.run(held_out, every=s.every, workers=s.workers, say=told, advance=advance,
                            seconds=math.inf if minutes is None else 60 * minutes)
    psnr = reached[0].psnr if reached else training.checked(held_out)
    if not (reached and training.step % s.previews == 0):  # else it is there
        _preview(out, training.step, training, held_out, s)
    card = card_of(training, stacks, others, settings, psnr)
    path = out / f"{name}.safetensors"
    priors.save(path, training.average, sigma_data=training.sigma_data,
                sigma_min=training.prior.sigma_min, sigma_max=training.prior.sigma_max,
                is_complex=is_complex, card=card, overwrite=True)
    write_card(out / f"{name}.md", name, card)
    say(f"wrote {path}, {name}.md" + ("" if done else f"; {s.steps - training.step} steps are left:"
                                      " the same command goes on"))
    return path


def check_folder(out: Path, name: str) -> None:
    """Raise FileExistsError for what a run wrote whose state is gone: it would be replaced."""
    if (out / STATE).exists():
        return
    written = [out / f"{name}.safetensors", out / f"{name}.md", out / "log.txt",
               *sorted(out.glob("preview_*.png"))]
    for path in written:
        if path.exists():
            raise FileExistsError(f"{path.name} in {out.resolve().name} is of another run, whose "
                                  f"{STATE} is gone: choose another --out, or move its files away")


def check_settings(s: Settings, minutes: float | None = None) -> None:
    """Raise ValueError for a setting out of range."""
    positive = {"batch": s.batch, "blocks": s.blocks, "steps": s.steps, "every": s.every,
                "previews": s.previews, "widths": min(s.widths)}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} wants at least 1, got {value}")
    if len(s.widths) != 4:
        raise ValueError(f"widths wants four numbers, got {len(s.widths)}")
    if s.crop < 16:
        raise ValueError(f"crop wants at least 16 pixels, got {s.crop}")
    for name, (low, high) in [("pixel_mm", s.pixel_mm), ("thickness_mm", s.thickness_mm)]:
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{name} wants two numbers, 0 < first <= second, got {low}, {high}")
    for name, part in [("warp", s.warp), ("recolour", s.recolour), ("margin", s.margin),
                       ("air", s.air)]:
        if not 0 <= part <= 1:
            raise ValueError(f"{name} wants a part of the examples, 0 to 1, got {part}")
    if not 0 < s.rate < 1:
        raise ValueError(f"rate wants a number between 0 and 1, got {s.rate}")
    if not 0 < s.decay <= 1:
        raise ValueError(f"decay wants a part of the steps, above 0 and at most 1, got {s.decay}")
    if s.seed < 0 or s.workers < 0:
        raise ValueError(f"seed and workers want numbers >= 0, got {s.seed} and {s.workers}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes wants a number above 0, got {minutes}")
    if s.subjects is not None and s.subjects < 1:
        raise ValueError(f"subjects wants at least 1, got {s.subjects}")


def check_stacks(stacks: Sequence[Stack], others: Sequence[Stack], s: Settings) -> None:
    """Raise ValueError for images that do not go together, or are too small."""
    check_alike([*stacks, *others])
    if s.phase and stacks[0].values.is_complex():
        raise ValueError("the images are complex and have a phase of their own: leave --phase out")
    if s.phase and stacks[0].in_hu:
        raise ValueError("images in HU have no phase: leave --phase out")
    small = min(stacks, key=lambda stack: min(stack.values.shape[1:]))
    height, width = small.values.shape[1:]
    if min(height, width) < s.crop:
        raise ValueError(f"{small.name} has images of {height} x {width} pixels, smaller than "
                         f"crops of {s.crop}: want --crop {min(height, width)} or less")


def _line(check: Check, steps: int, begun_at: int) -> str:
    pace = check.seconds / max(1, check.step - begun_at)
    left = (steps - check.step) * pace / 60
    psnr = " ".join(f"{p:.2f}" for p in check.psnr)
    return (f"step {check.step} of {steps}, loss {check.loss:.4f}, held-out dB {psnr}, mean "
            f"{sum(check.psnr) / len(check.psnr):.2f}, {pace:.2f} s a step, {left:.0f} min left")


def _preview(out: Path, step: int, training: Training, held_out: Sequence[Tensor],
             s: Settings) -> None:
    write_preview(out / f"preview_{step:06}.png", training.prior, held_out[0], side=s.crop,
                  seed=s.seed, device=training.device)
