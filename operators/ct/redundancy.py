"""How much each view, and each ray that is measured twice, counts in filtered back-projection."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.ct.geometry import Fan, Geometry

# A gap of this many mean steps between views is a part of the turn that was not scanned.
_MISSING = 3.0
# Width of the smooth ends of a scan too short for Parker's weights (Noo et al. use 10 degrees).
_ENDS = math.pi / 18


class Scan(NamedTuple):
    """The part of a turn that views cover: half a step before the first to half one after the last.

    ``steps`` is the angle each view stands for, in the order of the views.
    """

    start: float
    length: float
    closed: bool
    steps: Tensor  # (views,)


def scanned(angles: Tensor, period: float) -> Scan:
    """The covered part of a turn of ``period``, from half the gaps between neighbouring views."""
    turned = angles.remainder(period)
    ordered, order = turned.sort()
    gaps = torch.cat([ordered.diff(), ordered[:1] + period - ordered[-1:]])
    widest = int(gaps.argmax())
    others = float(period - gaps[widest]) / max(len(gaps) - 1, 1)
    closed = len(gaps) == 1 or float(gaps[widest]) <= _MISSING * others
    if not closed:
        gaps[widest] = others
    steps = torch.empty_like(turned)
    steps[order] = (gaps + gaps.roll(1)) / 2
    first = float(ordered[(widest + 1) % len(ordered)])
    return Scan(first - float(gaps[widest]) / 2, float(gaps.sum()), closed, steps)


def view_weights(geometry: Geometry) -> Tensor:
    """Angle each view stands for, ``(views,)``: their sum is half a turn or, of fans, what it is.

    Parallel views half a turn apart are the same one mirrored, and share its angle.
    """
    period = 2 * math.pi if isinstance(geometry, Fan) else math.pi
    return scanned(geometry.angles, period).steps


def measured_once(geometry: Geometry, radius: float) -> Tensor:
    """Weights ``(views, bins)`` that count each ray once; ``radius`` is that of the object.

    Parallel views share by their angles already: there the weights are 1, or twice Wang's.
    """
    angle, distance = geometry.rays(slice(None))
    turn = scanned(geometry.angles, 2 * math.pi)
    fan = isinstance(geometry, Fan)
    once = torch.full_like(distance, 0.5 if fan else 1.0)
    if turn.closed:
        low, high = geometry.reach()
        if not any(unseen(geometry, radius)):
            return once
        return 2 * once * _shifted(distance, min(high, -low), high > -low)
    if not isinstance(geometry, Fan):
        return once
    beta = (geometry.angles - turn.start).remainder(2 * math.pi)[:, None]
    gamma = geometry.angles[:, None] - angle
    if turn.length >= math.pi + 2 * float(gamma.abs().max()):
        return _parker(beta, gamma, turn.length)
    return _noo(beta, gamma, turn.length)


def unseen(geometry: Geometry, radius: float) -> tuple[int, int]:
    """Bins to add below and above for a detector that is shifted so far as to need Wang's weights.

    Over a full turn, with one side ending inside the object and the other reaching further. What
    is measured from the other side has been filtered beyond the short side's end as well.
    """
    low, high = geometry.reach()
    more = round(2 * abs(geometry.offset))
    if not more or min(high, -low) >= radius or not scanned(geometry.angles, 2 * math.pi).closed:
        return 0, 0
    return (more, 0) if geometry.offset > 0 else (0, more)


def _parker(beta: Tensor, gamma: Tensor, length: float) -> Tensor:
    """Parker 1982, for any scan from half a turn and the fan to a full turn.

    The fan angle here has the opposite sign: the same ray is seen from ``beta + pi - 2 gamma``.
    """
    most = (length - math.pi) / 2
    tiny = 1e-12  # both ends of the fan need no smooth part at all
    rise = (math.pi / 4 * beta / (most + gamma).clamp(min=tiny)).clamp(0, math.pi / 2)
    fall = (math.pi / 4 * (length - beta) / (most - gamma).clamp(min=tiny)).clamp(0, math.pi / 2)
    return (rise.sin() * fall.sin()).square()


def _noo(beta: Tensor, gamma: Tensor, length: float) -> Tensor:
    """Noo et al. 2002, Phys. Med. Biol. 47, 2525: ``c / (c + c of the same ray seen again)``."""
    ends = min(_ENDS, length / 4)

    def c(beta: Tensor) -> Tensor:
        end = torch.minimum(beta, length - beta)
        return (math.pi / 2 * (end / ends).clamp(0, 1)).sin().square()

    again = sum((c(beta - 2 * gamma + side * math.pi) for side in (-1, 1)),
                torch.zeros_like(gamma * beta))
    own = c(beta).clamp(min=1e-12)  # a view at the very end still counts where it stands alone
    return own / (own + again)


def _shifted(distance: Tensor, short: float, more_above: bool) -> Tensor:
    """Wang 2002, Med. Phys. 29(7), 1634: from 0 at the short side's end to 1 at its mirror's."""
    if short <= 0:  # nothing is measured twice
        return torch.ones_like(distance)
    place = distance if more_above else -distance
    return (math.pi / 4 * (1 + (place / short).clamp(-1, 1))).sin().square()
