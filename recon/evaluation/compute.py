"""One batch of slices: reconstructed and measured. What every engine runs."""

import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recon import priors
from recon.datasets import Volume
from recon.evaluation.plan import Cell, File, place_of, sums_of
from recon.evaluation.settings import PRECISIONS, ZERO_FILLED, Settings, needs_prior
from recon.evaluation.subject import Batch, Subject, batch_of, finished, open_subject, zero_filled
from recon.metrics import body_mask, hu_errors, mu_to_hu
from recon.operators import CartesianMRI
from recon.priors import Prior
from recon.reconstruct import reconstruct

REGION = 0.05  # of the reference's maximum: what is darker is background
LARGEST = torch.finfo(torch.float32).max ** 0.5  # whose square is still a number


class Result(NamedTuple):
    """One slice; ``diverged`` in its record says that a draw holds what is no number."""

    record: dict[str, Any]
    mean: Tensor  # float32 (h, w)
    std: Tensor | None
    seconds: float


class Worker:
    """Keeps the prior and the last file, so that batches of one file open it once."""

    def __init__(self, folder: Path, settings: Settings, maps: Path) -> None:
        torch.set_num_threads(settings.threads)
        self.folder, self.settings, self.maps = folder, settings, maps
        self.prior: Prior | None = None
        self.subject: tuple[str, Subject] | None = None

    def opened(self, name: str) -> Subject:
        if self.subject is None or self.subject[0] != name:
            self.subject = None  # two volumes may be too many
            self.subject = name, open_subject(place_of(self.folder, name), self.settings)
        return self.subject[1]

    def compute(self, cell: Cell, numbers: Sequence[int]) -> list[Result]:
        """Reconstruct and measure slices of a cell, all at once."""
        began = time.perf_counter()
        settings, subject = self.settings, self.opened(cell.file.name)
        batch = batch_of(subject, cell.sampling, numbers, settings, self.maps / cell.file.stem)
        if needs_prior(cell.sampler) and self.prior is None:
            self.prior = priors.load(settings.prior, precision=PRECISIONS[settings.precision],
                                     device=settings.device)
        try:
            draws, told = self._draws(cell, numbers, batch, subject)
        except (ValueError, TypeError) as error:
            where = f"slice{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
            raise ValueError(f"{cell.file.name}, {where}, {cell.sampler}, {cell.sampling.label}: "
                             f"{error}") from error
        sound = (draws.abs() < LARGEST).transpose(0, 1).flatten(1).all(1).tolist()  # no NaN either
        images = finished(draws, subject)[:, :, 0]  # (samples, slices, h, w)
        mean = finished(draws.mean(0), subject)[:, 0]
        std = images.std(0) if len(images) > 1 else None
        left = _misfit(batch, draws, cell.sampler)
        seconds = (time.perf_counter() - began) / len(numbers)
        results = []
        for i, number in enumerate(numbers):
            record = {
                "file": cell.file.name, "slice": number, "acquisition": cell.file.acquisition,
                "sampling": cell.sampling.label, "seed": cell.seed, "sampler": cell.sampler,
                "draws": len(draws), "sampled": _sampled(batch), "shape": list(mean[i].shape),
                "noise_std": float(batch.noise_std[i]),
                "scale": told["scale"][i] if "scale" in told else None,
                "diverged": not sound[i]}
            place = subject.numbers.index(number)
            reference = None if subject.references is None else subject.references[place]
            if not sound[i]:  # nothing of it can be measured
                record |= {"residual_over_noise": None, "squared_error": None}
            else:
                record["residual_over_noise"] = left[i]
                record |= _measured(mean[i], images[:, i], reference, cell.file)
                if isinstance(subject.data, Volume) and reference is not None:
                    record |= _in_hu(mean[i], reference)
            results.append(Result(record, mean[i], None if std is None else std[i], seconds))
        return results

    def _draws(self, cell: Cell, numbers: Sequence[int], batch: Batch,
               subject: Subject) -> tuple[Tensor, dict[str, Any]]:
        """``(samples, slices, 1, h, w)`` on the CPU, and the settings they were made with."""
        if cell.sampler == ZERO_FILLED:
            return zero_filled(batch, subject)[None], {}
        seeds = [slice_seed(cell.seed, cell.file.name, number) for number in numbers]
        device = self.settings.device
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "measurements are all zero")  # and so is the record
            found = reconstruct(
                batch.y.to(device), batch.operator.to(device),
                self.prior if needs_prior(cell.sampler) else None, cell.sampler,
                noise_std=batch.noise_std.to(device), seed=seeds,
                **self.settings.keywords(cell.sampler))
        draws = found.samples.cpu()
        operator = batch.operator.cpu()
        if isinstance(operator, CartesianMRI) and operator.maps is not None:
            # where no coil sees, nothing is measured and a sample would show what the prior makes
            draws = torch.where(operator.maps.abs().amax(-3, keepdim=True) > 0, draws, 0)
        return draws, found.settings


def slice_seed(seed: int, name: str, number: int) -> int:
    """A seed of its own for each slice of each file, whatever else is evaluated."""
    entropy = (seed, zlib.crc32(name.encode()), number)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _measured(mean: Tensor, draws: Tensor, reference: Tensor | None,
              file: File) -> dict[str, Any]:
    maximum = file.maximum
    if reference is None or maximum is None:
        return {"squared_error": None}
    sums: dict[str, Any] = sums_of(file.kind)(mean, reference, maximum)._asdict()
    region = reference > REGION * maximum
    if len(draws) > 1 and bool(region.any()):
        inside, truth = draws[:, region].double(), reference[region].double()
        covered = (inside.amin(0) <= truth) & (truth <= inside.amax(0))
        sums["coverage"] = float(covered.double().mean())
        sums["std"] = float(inside.var(0).mean().sqrt())
        sums["error_in_region"] = float((mean[region].double() - truth).square().mean().sqrt())
    return sums


def _in_hu(mean: Tensor, reference: Tensor) -> dict[str, Any]:
    """Errors within the patient; None for a slice of air."""
    truth = mu_to_hu(reference)
    body = body_mask(truth)
    if not bool(body.any()):
        return {"hu_squared_error": None, "hu_absolute_error": None, "body_pixels": 0}
    found = hu_errors(mu_to_hu(mean), truth, body)
    return {"hu_squared_error": found.rmse**2 * found.pixels,
            "hu_absolute_error": found.mae * found.pixels, "body_pixels": found.pixels}


def _misfit(batch: Batch, draws: Tensor, sampler: str) -> list[float | None]:
    """``||y - A x|| / (noise sqrt(m))`` of the mean, over the ``m`` real numbers measured."""
    if sampler == ZERO_FILLED:
        return [None] * len(batch.y)
    operator, x = batch.operator, draws.mean(0)
    left = torch.view_as_real(operator(x) - batch.y) if x.is_complex() else operator(x) - batch.y
    parts = left.numel() // len(left)
    size = left.flatten(1).double().square().sum(1)
    if isinstance(operator, CartesianMRI):
        parts = round(parts * float(operator.mask.double().mean()))
    noise = batch.noise_std.double() * parts**0.5
    return [float(s.sqrt() / n) if n > 0 else None for s, n in zip(size, noise, strict=True)]


def _sampled(batch: Batch) -> float | None:
    """The part of k-space that was sampled."""
    if isinstance(batch.operator, CartesianMRI):
        return float(batch.operator.mask.double().mean())
    return None
