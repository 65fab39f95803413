"""A network of one's own, with weights from a file or as it is."""

import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders.declared import (
    Declared,
    Predicts,
    Run,
    ValueRange,
    ends,
    in_units,
    preconditioned,
    wrapped,
)
from recon.priors.loaders.states import State, fill
from recon.priors.parameterisation import Schedule

LAYOUT = "a network of your own"
USES = ("schedule", "predicts", "sigma_data")


def build(name: str, state: State, said: Declared) -> Prior:
    """The prior of ``said.network``, filled with a file's weights, in the units it trained in."""
    if said.network is None or said.channels is None:
        raise CheckpointError(f"{name}: a network of one's own wants channels= too")
    network = fill(said.network, state, name, "the network given")
    return _prior(network, said)


def from_network(network: nn.Module, channels: int, *, predicts: Predicts | None = None,
                 schedule: Schedule | None = None, sigma_data: float | None = None,
                 value_range: ValueRange, is_complex: bool = False,
                 precision: torch.dtype = torch.float32, max_batch: int | None = None) -> Prior:
    """The prior of images from 0 to 1 that a network of one's own knows.

    The network is put into evaluation mode, as those of files are.

    Parameters
    ----------
    network
        Called as ``network(z, time)`` with real images ``(n, channels, height, width)``, scaled as
        the schedule says, and one time per item; what it makes beyond ``channels`` is left out.
    channels
        Channels of the network's images; ``2 c`` for ``c`` complex ones, real parts first.
    predicts, schedule
        ``"eps"``, the noise; ``"score"``; ``"x0"``, the image; ``"v"`` of Salimans & Ho 2022;
        ``"flow"``, the velocity; at which noise and time.
    sigma_data
        Instead: the network stands in EDM's preconditioning for this deviation.
    value_range
        Values of black and white in training, ``(-1, 1)``; or ``"normalised"``: a high quantile of
        each image's magnitude was one, and stays it.
    is_complex
        Whether channels are real, then imaginary parts.

    Examples
    --------
    >>> class Zero(nn.Module):
    ...     def forward(self, z, t):
    ...         return torch.zeros_like(z)
    >>> from recon.priors import VariancePreserving
    >>> prior = from_network(Zero(), 1, predicts="x0", schedule=VariancePreserving.linear(),
    ...                      value_range=(-1, 1))
    >>> float(prior(torch.ones(1, 8, 8), 0.1).mean())
    0.5
    """
    said = Declared(value_range=ends(value_range), is_complex=is_complex, channels=channels,
                    schedule=schedule, predicts=predicts, sigma_data=sigma_data, network=network,
                    precision=precision, max_batch=max_batch)
    return in_units("from_network", _prior(network, said), said).eval()


class _OwnRun(Run):
    """Of a network that is told the time in its own precision, as whoever wrote it expects."""

    def told(self, time: Tensor, kind: torch.dtype) -> Tensor:
        return time.to(kind)


def _prior(network: nn.Module, said: Declared) -> Prior:
    channels = said.channels or 0
    run = _OwnRun(network, said.precision)
    if said.sigma_data is not None:
        return preconditioned(run, channels, said.sigma_data, said.max_batch)
    if said.predicts is None or said.schedule is None:
        raise ValueError("a network of one's own wants predicts= and schedule=, or sigma_data= for "
                         "EDM's preconditioning")
    return wrapped(run, channels, said.predicts, said.schedule, said.max_batch)
