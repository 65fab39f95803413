"""The training loop: steps that depend on their number alone, and a state that survives a kill."""

import math
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recon.priors.base import Prior
from recon.priors.network import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.training.examples import Draw, Examples
from recon.priors.training.held_out import denoising_psnr, noise_like
from recon.priors.training.optimiser import Optimiser, learning_rate

SIGMA_MIN, SIGMA_MAX = 0.003, 40.0
STATE = "state.pt"


class Recipe(NamedTuple):
    """What makes a training; a run goes on only with the one it was begun with.

    ``steps`` and ``decay`` alone may change, as long as the rate has not begun to fall.
    """

    is_complex: bool
    steps: int
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    blocks: int = 2
    rate: float = 2e-3
    decay: float = 0.5
    seed: int = 0


class Check(NamedTuple):
    """Where a training stands."""

    step: int
    loss: float
    """Mean of the weighted loss since the last check."""
    rate: float
    psnr: list[float]
    """Held-out denoising PSNR in dB at ``CHECKED``, of the averaged weights."""
    seconds: float
    """Since this process began."""


class Training:
    """A network, its moving average and its optimiser, in a folder from which they go on.

    Parameters
    ----------
    folder
        Holds ``state.pt``, replaced whole at every check: a kill loses the steps since.
    examples
        The batch of a step, ``(batch, 1, height, width)``, by its number.
    about
        What the examples are made of, for instance names and options: JSON-like. A run in
        ``folder`` that was begun with others, or in another precision, is refused.
    record
        What is kept beside ``about`` and not compared: plain values and tensors.
    change
        Go on with other settings or images all the same; ``history`` says since when. The network
        stays what it is.
    """

    def __init__(self, folder: Path, recipe: Recipe, examples: Examples, *,
                 about: dict[str, Any], device: str = "cpu",
                 precision: torch.dtype = torch.float32, record: dict[str, Any] | None = None,
                 change: bool = False) -> None:
        self.folder, self.recipe, self.examples = folder, recipe, examples
        self.about, self.device = about, torch.device(device)
        self.record, self.precision = record or {}, str(precision).removeprefix("torch.")
        self.step = self.begun_at = 0
        self.history: list[dict[str, Any]] = []
        """What was trained with before, each with the step it was left at. States of older versions
        have no ``precision`` and no ``record``."""
        kept = self._kept(change)
        self.sigma_data = kept["sigma_data"] if kept else rms(examples)
        torch.manual_seed(recipe.seed)  # of the first weights
        channels = 2 if recipe.is_complex else 1
        settings = UNetSettings(channels, recipe.widths, recipe.blocks)
        self.network = DenoisingUNet(settings).to(self.device).to(
            memory_format=torch.channels_last)
        self.average = DenoisingUNet(settings).to(self.device).to(
            memory_format=torch.channels_last)
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.denoiser, averaged = (
            EDMPrior(n, channels, sigma_data=self.sigma_data, sigma_min=SIGMA_MIN,
                     sigma_max=SIGMA_MAX, precision=precision)
            for n in (self.network, self.average))
        self.prior: Prior = averaged.as_complex("channels") if recipe.is_complex else averaged
        self.optimiser = Optimiser(self.network)
        if kept:
            self.step = kept["step"]
            self.network.load_state_dict(kept["network"])
            self.average.load_state_dict(kept["average"])
            self.optimiser.load_state_dict(kept["optimiser"])

    def run(self, held_out: Sequence[Tensor], *, every: int = 100, stop: int | None = None,
            seconds: float = math.inf, workers: int = 0,
            say: Callable[[Check], None] = lambda _: None,
            advance: Callable[[], None] = lambda: None) -> bool:
        """Train to the recipe's last step, to ``stop``, or about ``seconds``; whether it is done.

        Every ``every`` steps the state is written, the held-out images are denoised and ``say`` is
        told; ``advance`` is called after each step. Data are made by ``workers`` processes.
        """
        began, losses = time.monotonic(), []
        self.begun_at = self.step
        last = min(self.recipe.steps, stop or self.recipe.steps)
        todo = range(self.step, last)
        batches = DataLoader(_ByStep(self.examples), batch_size=None, sampler=todo,
                             num_workers=workers)
        for step, x0 in zip(todo, batches, strict=True):
            losses.append(self.one(step, x0))
            self.step = step + 1
            advance()
            late = time.monotonic() - began > seconds
            if self.step % every == 0 or self.step == last or late:
                loss = float(torch.stack(losses).mean())
                if not math.isfinite(loss):  # the last state is of before
                    raise ValueError(f"the loss is {loss} by step {self.step}: take a lower rate, "
                                     "in a new folder")
                self.write()
                say(Check(self.step, loss, self.rate(step),
                          self.checked(held_out), time.monotonic() - began))
                losses = []
            if late:
                break
        return self.step >= self.recipe.steps

    def checked(self, held_out: Sequence[Tensor]) -> list[float]:
        """Held-out denoising PSNR of the averaged weights, in dB."""
        return denoising_psnr(self.prior, held_out)

    def rate(self, step: int) -> float:
        return learning_rate(step, self.recipe.steps, self.recipe.rate, self.recipe.decay)

    def one(self, step: int, x0: Tensor) -> Tensor:
        """One step on one batch: ``E w |D(x0 + s n; s) - x0|^2``, ``w = (s^2 + d^2) / (s d)^2``."""
        seed = Draw(self.recipe.seed, step, 2**31).below(2**62)  # no example has that number
        generator = torch.Generator().manual_seed(seed)
        sigma = noise_levels(len(x0), generator)
        x = x0 + sigma.view(-1, 1, 1, 1) * noise_like(x0, generator)
        x, target = (as_channels(t).to(self.device) for t in (x, x0))
        sigma = sigma.to(self.device)
        s2, d2 = sigma.square(), self.sigma_data**2
        weight = ((s2 + d2) / (s2 * d2)).view(-1, 1, 1, 1)
        loss = (weight * (self.denoiser(x, sigma) - target).square()).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(self.rate(step))
        self.network.zero_grad()
        keep = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.network.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        return loss.detach()

    def write(self) -> None:
        """Replace the state by today's, whole or not at all."""
        state = {**self._present(), "history": self.history,
                 "sigma_data": self.sigma_data, "network": self.network.state_dict(),
                 "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict()}
        part = self.folder / (STATE + ".part")
        torch.save(state, part)
        part.replace(self.folder / STATE)

    def parts(self) -> list[dict[str, Any]]:
        """What each part of the steps was trained with, first to last: as ``history``, and the step
        it began at as ``since``. Parts of no steps are left out."""
        ends = [*self.history, self._present()]
        begun = [0, *(part["step"] for part in self.history)]
        return [{**part, "since": since} for since, part in zip(begun, ends, strict=True)
                if part["step"] > since]

    def _present(self) -> dict[str, Any]:
        return {"step": self.step, "recipe": self.recipe._asdict(), "about": self.about,
                "precision": self.precision, "record": self.record}

    def _kept(self, change: bool) -> dict[str, Any] | None:
        path = self.folder / STATE
        if not path.exists():
            return None
        try:  # tensors and plain values only: nothing in it is executed
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.device)
            theirs, mine = dict(state["recipe"]), self.recipe._asdict()
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError,
                ValueError) as error:
            raise ValueError(f"{STATE} in {self.folder.name} is damaged or no state of a training: "
                             "take another folder") from error
        fixed = [k for k in ("is_complex", "widths", "blocks") if _plain(theirs[k]) !=
                 _plain(mine[k])]
        begun = state["step"] > (1 - theirs["decay"]) * theirs["steps"]
        free = () if begun else ("steps", "decay")
        odd = [k for k in mine if k not in free and _plain(theirs.get(k)) != _plain(mine[k])]
        theirs, mine = state["about"], self.about
        odd += [k for k in sorted(theirs.keys() | mine.keys())
                if _plain(theirs.get(k)) != _plain(mine.get(k))]
        if state.get("precision", self.precision) != self.precision:
            odd.append("precision")
        if odd and (fixed or not change):
            raise ValueError(f"{self.folder.name} holds a run begun with other settings "
                             f"({', '.join(odd)}): give those, or another folder, or go on with "
                             "change=True")
        if odd and state["step"] >= self.recipe.steps:
            raise ValueError(f"{self.folder.name} holds a run of {state['step']} steps already: "
                             f"none is left for other settings ({', '.join(odd)}): want more steps")
        self.history = list(state.get("history", []))
        if odd or "precision" not in state:  # of an older version's steps it is not known
            self.history.append({k: state[k] for k in self._present() if k in state})
        return state


class _ByStep(Dataset[Tensor]):
    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, step: int) -> Tensor:
        return self.examples(step)


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def rms(examples: Examples, batches: int = 24) -> float:
    """The root mean square of each real number, to two digits, of the first batches."""
    total = [float(as_channels(examples(i)).square().mean()) for i in range(batches)]
    found = math.sqrt(sum(total) / batches)
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"the training images have a root mean square of {found}: want images "
                         "that are not all zero, without NaN")
    return float(f"{found:.2g}")


def as_channels(x: Tensor) -> Tensor:
    """Complex ``(n, 1, h, w)`` as real parts, then imaginary parts."""
    return torch.cat([x.real, x.imag], 1) if x.is_complex() else x


def noise_levels(n: int, generator: torch.Generator) -> Tensor:
    """Log-normal about 0.12, one in eight log-uniform over the prior's whole range."""
    centre = torch.exp(math.log(0.12) + 1.1 * torch.randn(n, generator=generator))
    wide = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** torch.rand(n, generator=generator)
    drawn = torch.where(torch.rand(n, generator=generator) < 0.125, wide, centre)
    return drawn.clamp(SIGMA_MIN, SIGMA_MAX)
