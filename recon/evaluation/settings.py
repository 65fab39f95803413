"""What an evaluation is asked for; everything here decides numbers."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from recon import samplers
from recon.mri import MASK_KINDS
from recon.priors import Prior
from recon.reconstruct import RECOMMENDED, _settled, is_classical, sampler_named

ZERO_FILLED = "zero_filled"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Sampling(NamedTuple):
    """How one file is sampled: by undersampling k-space, by some of the views, or as measured."""

    label: str
    acceleration: int | None = None
    center_fraction: float = 0.0
    views: int | None = None


AS_MEASURED = Sampling("as-measured")


class Settings(NamedTuple):
    """The settings of ``recon evaluate``; the command line explains each.

    ``samplers`` names them with settings of their own, which win over ``samples``, ``steps`` and
    ``baseline_weight``; ``zero_filled`` is the root-sum-of-squares of the coils' zero-filled
    images, as in fastMRI.
    """

    samplers: Mapping[str, Mapping[str, Any]]
    accelerations: tuple[int, ...] = (4,)
    center_fractions: tuple[float, ...] = (0.08,)
    mask: str = "equispaced_fraction"
    mask_seed: int | None = None
    views: tuple[int, ...] = (60,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 4
    steps: int | None = None
    baseline_weight: float = 1e-3
    prior: str = "brain-mri"
    precision: str = "float32"
    slices: tuple[int, int] | None = None
    noise_std: float | None = None
    calibration: int | None = None
    unit: str | None = None
    batch: int = 1
    threads: int = 1
    device: str = "cpu"

    def checked(self) -> "Settings":
        """Itself, refused where no file could make it work."""
        if not self.samplers:
            raise ValueError("evaluate wants at least one sampler")
        for name, chosen in self.samplers.items():
            self.keywords(name)
            if "samples" in chosen and not isinstance(chosen["samples"], int):
                raise ValueError(f"{name}: samples wants a whole number, got {chosen['samples']!r}")
        if len(self.accelerations) != len(self.center_fractions):
            raise ValueError(f"{len(self.accelerations)} accelerations but "
                             f"{len(self.center_fractions)} center fractions: give one for each")
        if self.mask not in MASK_KINDS:
            raise ValueError(f"mask wants one of {', '.join(MASK_KINDS)}, got {self.mask!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision wants one of {', '.join(PRECISIONS)}, "
                             f"got {self.precision!r}")
        if self.unit not in (None, "HU", "arbitrary"):
            raise ValueError(f"unit wants HU or arbitrary, got {self.unit!r}")
        for name in ("accelerations", "views", "seeds"):
            numbers = getattr(self, name)
            least = 0 if name == "seeds" else 1
            if not numbers or min(numbers) < least or len(set(numbers)) < len(numbers):
                raise ValueError(f"{name} want different whole numbers >= {least}, got {numbers}")
        for name in ("samples", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} wants at least 1, got {getattr(self, name)}")
        if self.noise_std is not None and not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std wants a finite number >= 0, got {self.noise_std}")
        if self.slices is not None and not 0 <= self.slices[0] < self.slices[1]:
            raise ValueError(f"slices want first < stop, both >= 0, got {self.slices}")
        return self

    def keywords(self, name: str) -> dict[str, Any]:
        """What ``recon.reconstruct`` is given for a sampler, besides data, prior and noise."""
        own = dict(self.samplers[name])
        if name == ZERO_FILLED:
            if own:
                raise TypeError(f"{ZERO_FILLED} has no settings, got {', '.join(own)}")
            return {}
        method = sampler_named(name)
        known = inspect.signature(method).parameters
        if next(iter(known)) != "y" or name in _NOT_OF_SLICES:
            raise ValueError(f"{name} does not reconstruct slice by slice: leave it out")
        common: dict[str, Any] = {}
        if "weight" in known and is_classical(method):
            common["weight"] = self.baseline_weight
        if self.steps is not None and "steps" in known:
            common["steps"] = self.steps
        if not is_classical(method):
            common["samples"] = self.samples
        unknown = sorted(own.keys() - known.keys() - {"scale", "chunk", "samples"})
        if unknown:
            raise TypeError(f"{name} takes no setting {unknown[0]!r}: it has "
                            f"{', '.join(list(known)[3:])}")
        for key, value in own.items():
            usual = known[key].default if key in known else None
            if isinstance(usual, int | float) and not isinstance(value, int | float):
                raise TypeError(f"{name}.{key} wants {_WANTED[type(usual)]}, got {value!r}")
        return common | own

    def check_samplers(self, prior: Prior | None) -> None:
        """Raise what ``recon.reconstruct`` would raise of the samplers' settings."""
        for name in self.samplers:
            if name == ZERO_FILLED:
                continue
            usual = RECOMMENDED.get(name, {}) if prior is not None and prior.normalised else {}
            chosen = {key: value for key, value in self.keywords(name).items()
                      if key not in ("samples", "scale", "chunk")}
            try:
                _settled(name, sampler_named(name), {**usual, **chosen})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from error


_WANTED = {bool: "true or false", int: "a number", float: "a number"}
_NOT_OF_SLICES = ("ads", "mbir", "diffusion_mbir")


def needs_prior(name: str) -> bool:
    """Whether a sampler draws from a prior."""
    return name != ZERO_FILLED and not is_classical(getattr(samplers, name))
