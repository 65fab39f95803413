"""The shape of every sampler: a generator of steps that can be run to its end or iterated."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec

import torch
from torch import Tensor

from recon.integrators import Step

P = ParamSpec("P")


class Sampler(Generic[P]):
    """``sampler(y, operator, prior, ...)`` returns draws; ``sampler.steps(...)`` iterates.

    ``steps`` yields one ``Step`` per noise level, so that progress bars, previews, early stopping
    and resuming are the caller's loop. The call takes ``callback(step)`` besides and returns the
    last ``x0``, ``(samples, *batch, channel, *spatial)``.
    """

    def __init__(self, steps: Callable[P, Iterator[Step]],
                 check: Callable[..., None] | None = None) -> None:
        functools.update_wrapper(self, steps)
        self._check = check
        self.steps = torch.no_grad()(steps)
        signature = inspect.signature(steps)
        extra = inspect.Parameter("callback", inspect.Parameter.KEYWORD_ONLY, default=None,
                                  annotation="Callable[[Step], None] | None")
        self.__signature__ = signature.replace(
            parameters=[*signature.parameters.values(), extra], return_annotation=Tensor)

    def __call__(self, *args: Any, callback: Callable[[Step], None] | None = None,
                 **settings: Any) -> Tensor:
        last: Step | None = None
        for last in self.steps(*args, **settings):
            if callback is not None:
                callback(last)
        assert last is not None  # every schedule has a level
        return last.x0

    def check(self, **settings: Any) -> None:
        """Refuse settings that would be refused whatever the measurements; wants all of them."""
        if self._check is not None:
            self._check(**settings)


def sampler(steps: Callable[P, Iterator[Step]]) -> Sampler[P]:
    """Make a sampler of a generator function."""
    return Sampler(steps)


def sampler_with(check: Callable[..., None]) -> Callable[[Callable[P, Iterator[Step]]], Sampler[P]]:
    """As ``sampler``, with what refuses bad settings before measurements are looked at."""
    return lambda steps: Sampler(steps, check)
