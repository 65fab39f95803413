"""From measurements to draws, their mean and spread: scaling, seeds, chunks, progress, files."""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon import datasets, samplers
from recon.integrators import Step, schedules
from recon.noise import per_draw
from recon.operators.base import LinearOperator, Operator
from recon.operators.mri import Covariance, whiten
from recon.priors import Prior
from recon.progress import Bar
from recon.samplers.latent import check_latent
from recon.samplers.problem import check_problem

# Settings measured better than the papers' on real 8-coil brain data and priors of this kind; the
# levels are multiples of the prior's scale. Everything a caller passes wins over them.
RECOMMENDED: dict[str, dict[str, Any]] = {
    "dds": {"rule": "released", "eta": 0.95, "cg_iterations": 8, "steps": 30}}
SIGMA_MAX, SIGMA_MIN = 3.0, 0.01

# what a chunk of samples may take in the largest of image and measurement, all copies counted
CHUNK_BYTES = 1 << 30
COPIES = 8

# what of a sampler's arguments reconstruct gives itself
_TAKEN = {"y", "operator", "prior", "noise_std", "samples", "generator", "start", "callback"}


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
        """Write ``.h5`` (mean, std, all samples), ``.npz`` (the same) or ``.cfl`` (the mean).

        The mean in ``.h5`` is its magnitude where it is complex; real images keep their sign.
        Raises FileExistsError where the file exists and ``overwrite`` is not given, and ValueError
        for another suffix; nothing is left half written.
        """
        path = Path(path)
        if self.samples.ndim < 4 or self.samples.shape[-3] != 1:
            raise ValueError("cannot write these samples: want (samples, *batch, 1, height, "
                             f"width), got {tuple(self.samples.shape)}")
        image, std, draws = (t.squeeze(-3).cpu() for t in (self.mean, self.std, self.samples))
        stack = image.reshape(-1, *image.shape[-2:])
        if path.suffix in (".h5", ".hdf5"):
            datasets.write_hdf5(
                path, stack.abs() if stack.is_complex() else stack, std=std.reshape(stack.shape),
                samples=draws.reshape(len(draws), *stack.shape),
                attributes={k: str(v) for k, v in self.settings.items()}, overwrite=overwrite)
        elif path.suffix == ".npz":
            arrays = {"mean": image, "std": std, "samples": draws}
            datasets.write_npz(path, arrays, overwrite=overwrite)
        elif path.suffix == ".cfl":
            datasets.write_cfl(path, datasets.to_bart_axes(stack.to(torch.complex64)),
                               overwrite=overwrite)
        else:
            raise ValueError(f"cannot write {path.name}: want a name ending in .h5, .npz or .cfl")


def reconstruct(y: Tensor, operator: Operator, prior: Prior | None = None, sampler: str = "dds", *,
                noise_std: Tensor | float | Covariance = 0.0, samples: int = 1,
                seed: int | Sequence[int] = 0,
                scale: Tensor | float | None = None, chunk: int | None = None,
                progress: bool = False, callback: Callable[[Step], None] | None = None,
                **settings: Any) -> Reconstruction:
    """Reconstruct ``x`` from ``y = A x + noise_std n`` by a sampler of ``recon.samplers``.

    The prior is brought to the units of ``y``; results come back in them. Every draw has a seed of
    its own made of ``seed``, the item's and the sample's number, so neither batches nor chunks
    change it. Items whose measurements are all zero come back as zeros, with a warning. Settings
    are checked before any work.

    Parameters
    ----------
    y
        ``(*batch, *operator.range.shape)``.
    prior
        Classical methods (``"tv"``, ``"wavelet"``) use none and have one answer: a prior, or more
        than one sample, is ignored there with a warning.
    noise_std
        Standard deviation of the noise in each real number of ``y``, one number or one per item; or
        the ``operators.mri.Covariance`` of the coils: ``y`` and ``operator`` are then whitened.
    seed
        One number, or one for each item of the batch, which then draws what it would draw alone.
    scale
        Size of the prior's unit in the units of the image, one number or one per item; by default
        ``data_scale(y, operator)`` for a normalised prior and 1 for any other. With a ``codec`` it
        is the size of the codec's unit, 1 by default; that of a ``LatentPrior`` is its codec's too,
        as latents keep their own.
    chunk
        Samples drawn at once; by default as many as keep the work below about 1 GiB. Samplers whose
        samples are made together (``smc``) draw all at once.
    progress
        Show a bar with the time left.
    settings
        The sampler's own keywords, for instance ``steps=100``. With a normalised prior, what is not
        given comes from ``RECOMMENDED`` and the noise levels are those of Karras et al. from 3 to
        0.01 times the scale; else from the sampler. All of it is kept in ``.settings``, long
        tensors and objects as a few words.
    """
    method = sampler_named(sampler)
    recommended = RECOMMENDED.get(sampler, {}) if prior is not None and prior.normalised else {}
    chosen = _settled(sampler, method, {**recommended, **settings})
    known = inspect.signature(method).parameters
    classical = is_classical(method)
    if classical and (prior is not None or samples != 1):
        warnings.warn(f"{sampler} uses no prior and has one answer: the prior and samples= are "
                      "ignored", stacklevel=2)
        prior, samples = None, 1
    if not classical and prior is None:
        raise TypeError(f"{sampler} wants a prior, got None: pass one, for instance of "
                        'priors.load, or take sampler="tv" or "wavelet"')
    white = {}
    if isinstance(noise_std, Covariance):
        white = {"noise_covariance": repr(noise_std)}
        y, operator, noise_std = whiten(y, operator, noise_std)
    linear = known["operator"].annotation is LinearOperator
    codec = chosen.get("codec")
    noise = (check_problem(y, operator, None, noise_std, linear=linear) if prior is None else
             check_latent(y, operator, prior, codec, noise_std, samples=samples, linear=linear)[1])
    batch = operator.range.batch_of(y)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk wants at least 1 sample, or None, got {chunk}")
    seed = _checked_seed(seed, batch)

    used = {"sampler": sampler, "samples": int(samples), "seed": seed, "noise_std": noise.tolist()}
    used |= white
    used |= {name: _described(value) for name, value in chosen.items()}
    given: dict[str, Any] = {**chosen, "noise_std": noise}
    rescaled = prior
    if prior is not None:
        if scale is None:
            scale = data_scale(y, operator) if prior.normalised and codec is None else 1.0
        unit = torch.as_tensor(scale, dtype=torch.float64, device="cpu")
        if unit.ndim and tuple(unit.shape) != batch:
            raise ValueError(f"scale wants one number or one per item {batch}, "
                             f"got {tuple(unit.shape)}")
        if not isinstance(scale, Tensor | float | int):
            scale = unit
        used["scale"] = unit.tolist()
        if codec is not None:  # latents have a unit of their own
            given["codec"] = codec.rescaled(scale) if _not_one(scale) else codec
        else:
            rescaled = prior.rescaled(scale) if _not_one(scale) else prior
        of_images = prior.normalised and codec is None and not prior.is_latent
        if of_images and chosen.get("sigmas", 0) is None:  # levels of latents are not of the data
            grid = schedules.karras(chosen["steps"], SIGMA_MIN, SIGMA_MAX)
            given["sigmas"] = grid.view(-1, *(1,) * unit.ndim) * unit
            used["sigmas"] = f"karras, {SIGMA_MAX:g} to {SIGMA_MIN:g} of the scale"
    total = _length(given)
    if "steps" in used:
        used["steps"] = total  # also where sigmas stand in for them
    zero = (y == 0).flatten(len(batch)).all(-1)
    if bool(zero.any()):
        which = [tuple(int(i) for i in n) for n in zero.nonzero()] if batch else "all"
        warnings.warn(f"measurements are all zero, the result is zero there: {which}", stacklevel=2)
    # samples that are made together stay together, whatever they take
    size = samples if method.joint else chunk or _chunk(y, operator, samples)
    items = range(math.prod(batch))
    parts = []
    with Bar(progress, total and total * -(-samples // size), sampler) as advance:
        for first in range(0, samples, size):
            wanted = range(first, min(first + size, samples))
            if not classical:
                given |= {"samples": len(wanted), "generator": per_draw(seed, wanted, items)}
            for step in method.steps(y, operator, rescaled, **given):
                advance()
                if callback is not None:
                    callback(step)
            parts.append(step.x0)
    draws = _emptied(torch.cat(parts), zero)
    _warn_diverged(y, operator, draws, sampler)
    return Reconstruction(draws, used)


def _warn_diverged(y: Tensor, operator: Operator, draws: Tensor, sampler: str) -> None:
    """Warn of draws that fit the measurements worse than an empty image does, or are no numbers."""
    item = tuple(range(-len(operator.range.shape), 0))
    size = torch.linalg.vector_norm(y, dim=item)
    left = torch.stack([torch.linalg.vector_norm(operator(x) - y, dim=item) for x in draws])
    # of pure noise, draws leave about as much again
    wrong = ~(left <= 2 * size)
    if bool(wrong.any()):
        warnings.warn(f"{int(wrong.sum())} of {wrong.numel()} draws of {sampler} fit the "
                      "measurements worse than an empty image: it diverged, or noise_std or scale "
                      "are far from the data; take more steps, or another sampler", stacklevel=3)


def sampler_named(name: str) -> samplers.Sampler[Any, Any]:
    """The sampler of ``recon.samplers`` with that name; ValueError names them all."""
    method = getattr(samplers, name, None)
    if not isinstance(method, samplers.Sampler):
        known = [n for n in samplers.__all__ if isinstance(getattr(samplers, n), samplers.Sampler)]
        raise ValueError(f"no sampler {name!r}: want one of {', '.join(sorted(known))}")
    return method


def is_classical(method: samplers.Sampler[Any, Any]) -> bool:
    """Whether the sampler needs no prior, and so has one answer."""
    prior = inspect.signature(method).parameters.get("prior")  # users may call theirs otherwise
    return prior is not None and prior.default is None


def _settled(sampler: str, method: samplers.Sampler[Any, Any],
             settings: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run: those given, then the sampler's own."""
    known = inspect.signature(method).parameters
    if "acquire" in known:
        raise TypeError(f"{sampler} measures as it goes, and here all is measured already: call "
                        f"samplers.{sampler}")
    own = {name: p.default for name, p in known.items() if name not in _TAKEN}
    if unknown := sorted(settings.keys() - own.keys()):
        advice = (f": reconstruct draws by seed=, for {unknown[0]}= call samplers.{sampler}"
                  if unknown[0] in known else f": it has {', '.join(own)}")
        raise TypeError(f"{sampler} takes no setting {unknown[0]!r} here{advice}")
    chosen = {**own, **settings}
    if missing := [name for name, v in chosen.items() if v is inspect.Parameter.empty]:
        raise TypeError(f"{sampler} wants the setting {missing[0]}, which has no default")
    method.check(**chosen)
    return chosen


@torch.no_grad()
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


def _checked_seed(seed: int | Sequence[int], batch: tuple[int, ...]) -> int | list[int]:
    try:
        found = int(seed) if isinstance(seed, int | Integral) else [index(one) for one in seed]
    except TypeError:
        raise TypeError("seed wants a whole number, or one for each item of the batch "
                        f"{batch}, got {seed!r}") from None
    if isinstance(found, list) and len(found) != math.prod(batch):
        raise ValueError(f"seed wants one number, or one for each item of the batch {batch}, "
                         f"got {len(found)}")
    if min([found] if isinstance(found, int) else found, default=0) < 0:
        raise ValueError(f"seed wants whole numbers >= 0, got {seed}")
    return found


def _described(value: Any) -> Any:
    """A setting as numbers and text, short enough for an attribute of a file."""
    if isinstance(value, Tensor):
        if value.numel() <= 1000:
            return value.tolist()
        size = value.abs() if value.is_complex() else value
        what = "magnitudes " if value.is_complex() else ""
        return f"{tuple(value.shape)}, {what}{float(size.max()):g} to {float(size.min()):g}"
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    public = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    return f"{type(value).__name__}({', '.join(f'{k}={v!r}' for k, v in public.items())})"


def _length(settings: dict[str, Any]) -> int | None:
    """The number of steps a run takes, where its settings say so."""
    sigmas = settings.get("sigmas")
    if sigmas is not None:
        return len(sigmas) - 1
    found = settings.get("steps", settings.get("iterations"))
    return None if found is None else int(found)


def _not_one(scale: Tensor | float) -> bool:
    return isinstance(scale, Tensor) or scale != 1


def _emptied(x: Tensor, zero: Tensor) -> Tensor:
    spread = zero.view(*zero.shape, *(1,) * (x.ndim - 1 - zero.ndim))
    return torch.where(spread, torch.zeros_like(x), x)


def _chunk(y: Tensor, operator: Operator, samples: int) -> int:
    pixels = max(math.prod(operator.domain.shape), math.prod(operator.range.shape))
    items = torch.Size(operator.range.batch_of(y)).numel()
    each = COPIES * items * pixels * y.element_size()
    return max(1, min(samples, CHUNK_BYTES // max(each, 1)))
