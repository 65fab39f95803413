"""The shape of every sampler: a generator of steps that can be run to its end or iterated."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from recon.operators.mri import Covariance, whiten

P = ParamSpec("P")


class Carried(Protocol):
    """What every step holds: ``Step`` and the NamedTuples of samplers that carry more."""

    @property
    def index(self) -> Any: ...  # int; Any because tuples have a method of that name
    @property
    def sigma(self) -> Tensor: ...
    @property
    def x(self) -> Tensor: ...
    @property
    def x0(self) -> Tensor: ...


S = TypeVar("S", bound=Carried)


class Sampler(Generic[P, S]):
    """``sampler(y, operator, prior, ...)`` returns draws; ``sampler.steps(...)`` iterates.

    ``steps`` yields one ``Step`` per noise level, so that progress bars, previews, early stopping
    and resuming are the caller's loop. ``run`` takes ``callback(step)`` besides and returns the
    last step, with whatever the sampler carries; the call returns its ``x0`` alone, ``(samples,
    *batch, channel, *spatial)``. ``joint`` says that the samples of one item are made together, so
    that they must not be split into chunks. ``noise_std`` may be a ``Covariance`` over the coils:
    the method then runs on whitened measurements and their operator. One that is given a function
    that measures whitens what it returns by itself.
    """

    def __init__(self, steps: Callable[P, Iterator[S]],
                 check: Callable[..., None] | None = None, *, joint: bool = False) -> None:
        functools.update_wrapper(self, steps)
        self._check = check
        self.joint = joint
        signature = inspect.signature(steps)
        self.steps = _whitening(torch.no_grad()(steps), signature)
        extra = inspect.Parameter("callback", inspect.Parameter.KEYWORD_ONLY, default=None,
                                  annotation="Callable[[Step], None] | None")
        self.__signature__ = signature.replace(
            parameters=[*signature.parameters.values(), extra], return_annotation=Tensor)

    def __call__(self, *args: Any, callback: Callable[[S], None] | None = None,
                 **settings: Any) -> Tensor:
        return self.run(*args, callback=callback, **settings).x0

    def __reduce__(self) -> str:
        # by its module and name, as functions are: __wrapped__ has the same and is not found there
        return str(vars(self)["__qualname__"])

    def run(self, *args: Any, callback: Callable[[S], None] | None = None, **settings: Any) -> S:
        """All steps; the last one."""
        last: S | None = None
        for last in self.steps(*args, **settings):
            if callback is not None:
                callback(last)
        assert last is not None  # every schedule has a level
        return last

    def check(self, **settings: Any) -> None:
        """Refuse settings that would be refused whatever the measurements; wants all of them."""
        if self._check is not None:
            self._check(**settings)


def _whitening(steps: Callable[P, Iterator[S]],
               signature: inspect.Signature) -> Callable[P, Iterator[S]]:
    """``steps``, given ``W y``, ``W A`` and one number where ``noise_std`` is a ``Covariance``."""
    @functools.wraps(steps)
    def started(*args: P.args, **settings: P.kwargs) -> Iterator[S]:
        if isinstance(settings.get("noise_std"), Covariance):
            given = signature.bind(*args, **settings).arguments
            y = next(iter(given))  # the first argument of every sampler
            if not callable(given[y]):
                given[y], given["operator"], given["noise_std"] = whiten(
                    given[y], given["operator"], given["noise_std"])
            call: Any = steps
            return call(**given)
        return steps(*args, **settings)

    return started


def sampler(steps: Callable[P, Iterator[S]]) -> Sampler[P, S]:
    """Make a sampler of a generator function."""
    return Sampler(steps)


def sampler_with(check: Callable[..., None] | None = None, *, joint: bool = False,
                 ) -> Callable[[Callable[P, Iterator[S]]], Sampler[P, S]]:
    """As ``sampler``, with what refuses bad settings before measurements are looked at."""
    return lambda steps: Sampler(steps, check, joint=joint)
