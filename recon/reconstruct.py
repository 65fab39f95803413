"""From measurements to draws, their mean and spread: scaling, seeds, chunks, progress, files."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon import datasets, samplers
from recon.integrators import Step, schedules
from recon.noise import per_draw
from recon.operators.base import LinearOperator, Operator
from recon.priors import Prior
from recon.samplers.problem import check_problem

# Settings measured better than the papers' on real 8-coil brain data and priors of this kind; the
# levels are multiples of the prior's scale. Everything a caller passes wins over them.
RECOMMENDED: dict[str, dict[str, Any]] = {"dds": {"eta": 1.0, "cg_iterations": 15, "steps": 40}}
SIGMA_MAX, SIGMA_MIN = 3.0, 0.01

# what a chunk of samples may take in the largest of image and measurement, all copies counted
CHUNK_BYTES = 1 << 30
COPIES = 8


@dataclass(frozen=True)
class Reconstruction:
    """Draws from the posterior, in the units of the measurement.

    ``samples`` is ``(samples, *batch, channel, *spatial)``; ``mean`` and ``std`` are over samples.
    ``std`` of complex images counts both parts together; with a single sample it is NaN.
    """

    samples: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        n = len(self.samples)
        total = (self.samples - self.mean).abs().square().sum(0)
        return (total / (n - 1)).sqrt() if n > 1 else torch.full_like(total, torch.nan)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write ``.h5`` (magnitudes of mean, std; all samples), ``.npz`` or ``.cfl`` (the mean).

        Raises FileExistsError where the file exists and ``overwrite`` is not given, and ValueError
        for another suffix; nothing is left half written.
        """
        path = Path(path)
        image = self.mean.squeeze(-3).cpu()  # one channel
        std, draws = self.std.squeeze(-3).cpu(), self.samples.squeeze(-3).cpu()
        if path.suffix in (".h5", ".hdf5"):
            stack = image if image.ndim > 2 else image[None]
            datasets.write_hdf5(
                path, stack.abs(), std=std.view(stack.shape),
                samples=draws.view(len(draws), *stack.shape),
                attributes={k: str(v) for k, v in self.settings.items()}, overwrite=overwrite)
        elif path.suffix == ".npz":
            arrays = {"mean": image.numpy(), "std": std.numpy(), "samples": draws.numpy()}
            datasets.write_npz(path, arrays, overwrite=overwrite)
        elif path.suffix == ".cfl":
            stack = image if image.ndim > 2 else image[None]
            datasets.write_cfl(path, datasets.to_bart_axes(stack.to(torch.complex64)),
                               overwrite=overwrite)
        else:
            raise ValueError(f"cannot write {path.name}: want a name ending in .h5, .npz or .cfl")


def reconstruct(y: Tensor, operator: Operator, prior: Prior | None = None, sampler: str = "dds", *,
                noise_std: Tensor | float = 0.0, samples: int = 1, seed: int = 0,
                scale: Tensor | float | None = None, chunk: int | None = None,
                progress: bool = False, callback: Callable[[Step], None] | None = None,
                **settings: Any) -> Reconstruction:
    """Reconstruct ``x`` from ``y = A x + noise_std n`` by a sampler of ``recon.samplers``.

    The prior is brought to the units of ``y``; results come back in them. Every draw has a seed of
    its own made of ``seed``, the item's and the sample's number, so neither batches nor chunks
    change it. Items whose measurements are all zero come back as zeros, with a warning.

    Parameters
    ----------
    y
        ``(*batch, *operator.range.shape)``.
    prior
        None only for classical methods (``"tv"``, ``"wavelet"``).
    scale
        Size of the prior's unit in the units of the image, one number or one per item; by default
        ``data_scale(y, operator)`` for a normalised prior and 1 for any other.
    chunk
        Samples drawn at once; by default as many as keep the work below about 1 GiB.
    progress
        Show a bar with the time left.
    settings
        The sampler's own keywords, for instance ``steps=100``. What is not given comes from
        ``RECOMMENDED``, then from the sampler; with a normalised prior the noise levels are those
        of Karras et al. from 3 to 0.01 times the scale. All of it is kept in ``.settings``.
    """
    method = getattr(samplers, sampler, None)
    if not isinstance(method, samplers.Sampler):
        names = [n for n in samplers.__all__ if isinstance(getattr(samplers, n), samplers.Sampler)]
        raise ValueError(f"no sampler {sampler!r}: want one of {', '.join(sorted(names))}")
    noise = check_problem(y, operator, prior, noise_std, samples=samples, linear=False)
    known = inspect.signature(method).parameters
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise TypeError(f"{sampler} has no setting {unknown[0]!r}: it has {', '.join(known)}")
    batch = operator.range.batch_of(y)
    zero = (y == 0).flatten(len(batch)).all(-1)
    if bool(zero.any()):
        which = [tuple(int(i) for i in n) for n in zero.nonzero()] if batch else "all"
        warnings.warn(f"measurements are all zero, the result is zero there: {which}", stacklevel=2)
    used: dict[str, Any] = {"sampler": sampler, "samples": samples, "seed": seed, **settings}
    if prior is None:
        found = method(y, operator, None, callback=callback, **settings)
        return Reconstruction(_emptied(found, zero), used)

    if scale is None:
        scale = data_scale(y, operator) if prior.normalised else 1.0
    settings = {**RECOMMENDED.get(sampler, {}), **settings}
    if prior.normalised and "sigmas" in known and settings.get("sigmas") is None:
        unit = torch.as_tensor(scale, dtype=torch.float64, device="cpu")
        grid = schedules.karras(settings["steps"], SIGMA_MIN, SIGMA_MAX)
        settings["sigmas"] = grid.view(-1, *(1,) * unit.ndim) * unit
        used |= {"schedule": f"karras, {SIGMA_MAX:g} to {SIGMA_MIN:g} of the scale"}
    used |= {k: v for k, v in settings.items() if not isinstance(v, Tensor)}
    used |= {"noise_std": noise.tolist(), "scale": torch.as_tensor(scale).tolist()}
    rescaled = prior.rescaled(scale) if _not_one(scale) else prior
    size = chunk or _chunk(y, operator, samples)
    items = range(torch.Size(batch).numel())
    total = settings.get("steps", known["steps"].default) if "steps" in known else None
    parts = []
    with _bar(progress, total and total * -(-samples // size), f"{sampler}") as advance:
        for first in range(0, samples, size):
            wanted = range(first, min(first + size, samples))
            run = method.steps(y, operator, rescaled, noise_std=noise, samples=len(wanted),
                               generator=per_draw(seed, wanted, items), **settings)
            for step in run:
                advance()
                if callback is not None:
                    callback(step)
            parts.append(step.x0)
    return Reconstruction(_emptied(torch.cat(parts), zero), used)


def data_scale(y: Tensor, operator: Operator) -> Tensor:
    """Intensity of one in a normalised prior, ``(*batch,)``: a quantile of a first image.

    The 99.5 % quantile of the magnitude after ten conjugate-gradient steps from zero, divided by
    0.85, the middle of what priors are trained on; 1 where that is zero.
    """
    if not isinstance(operator, LinearOperator):
        raise TypeError("the scale of a nonlinear measurement is not known: pass scale=")
    pulled = operator.adjoint(y)
    image = operator.solve_cg(pulled, 0.0, max_iter=10).x.abs()
    values = image.flatten(len(operator.range.batch_of(y)))
    stride = max(1, values.shape[-1] >> 20)  # quantile() takes at most 2^24 numbers
    found = torch.quantile(values[..., ::stride], 0.995, dim=-1) / 0.85
    return torch.where(found > 0, found, 1)


def _not_one(scale: Tensor | float) -> bool:
    return isinstance(scale, Tensor) or scale != 1


def _emptied(x: Tensor, zero: Tensor) -> Tensor:
    spread = zero.view(*zero.shape, *(1,) * (x.ndim - 1 - zero.ndim))
    return torch.where(spread, torch.zeros_like(x), x)


def _chunk(y: Tensor, operator: Operator, samples: int) -> int:
    pixels = max(torch.Size(operator.domain.shape).numel(), torch.Size(operator.range.shape).numel())
    items = torch.Size(operator.range.batch_of(y)).numel()
    each = COPIES * items * pixels * y.element_size()
    return max(1, min(samples, CHUNK_BYTES // max(each, 1)))


class _bar:
    """A progress bar on the terminal, or nothing; yields the function that advances it."""

    def __init__(self, shown: bool, total: int | None, name: str) -> None:
        self.progress = None
        if shown:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(TextColumn("{task.description}"), BarColumn(),
                                     TextColumn("{task.completed}/{task.total}"),
                                     TimeRemainingColumn())
            self.task = self.progress.add_task(name, total=total)

    def __enter__(self) -> Callable[[], None]:
        if self.progress is None:
            return lambda: None
        self.progress.start()
        return lambda: self.progress.advance(self.task) if self.progress else None

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
