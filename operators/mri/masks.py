"""Which points of k-space are sampled.

``random``, ``equispaced``, ``equispaced_fraction``, ``magic`` and ``magic_fraction`` are the five
masks of fastMRI, draw for draw. Each returns a bool tensor ``(n_columns,)`` with the
``round(n_columns * center_fraction)`` central columns and, outside them, columns chosen by its own
rule so that about one in ``acceleration`` is sampled. The draws are those of the `fastmri` package
0.3.0 (``fastmri.data.subsample``, Zbontar et al. 2018, arXiv 1811.08839), on numpy's frozen
``RandomState``. ``inversebench`` gives columns by the rule of that benchmark, ``poisson_disc``
points ``(H, W)``.

``seed`` is an integer, or a file name, whose base name with suffix gives the mask that fastMRI
gives that file (the folder does not matter), or None for a new mask at every call.
``center_fraction`` and ``acceleration`` of fastMRI's masks may be lists of equal length: one pair
is drawn, or with ``allow_any_combination`` one entry of each.
"""

import math
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from recon.operators.mri.poisson_disc import variable_density

Seed = int | str | os.PathLike[str] | None
Numbers = float | Sequence[float]
_Columns = NDArray[np.bool_]


def random(n_columns: int, center_fraction: Numbers = 0.08, acceleration: Numbers = 4,
           seed: Seed = None, *, allow_any_combination: bool = False) -> Tensor:
    """Each column outside the centre with one probability (``RandomMaskFunc``; knee data)."""
    def draw(rng: RandomState, n: int, centre: int, a: float) -> _Columns:
        _check_room("random", n, centre, a)
        # all n numbers are drawn, the centre's included
        return rng.uniform(size=n) < (n / a - centre) / (n - centre)

    return _mask("random", draw, n_columns, center_fraction, acceleration, seed,
                 allow_any_combination)


def equispaced(n_columns: int, center_fraction: Numbers = 0.08, acceleration: Numbers = 4,
               seed: Seed = None, *, allow_any_combination: bool = False) -> Tensor:
    """Every ``acceleration``-th column (``EquiSpacedMaskFunc``, since September 2021).

    The centre comes on top, so fewer than ``n_columns`` in ``acceleration`` are saved; the
    leaderboard's brain masks are ``equispaced_fraction``.
    """
    def draw(rng: RandomState, n: int, _: int, a: float) -> _Columns:
        step = _whole("equispaced", a)
        columns = np.zeros(n, dtype=bool)
        columns[rng.randint(0, step)::step] = True
        return columns

    return _mask("equispaced", draw, n_columns, center_fraction, acceleration, seed,
                 allow_any_combination)


def equispaced_fraction(n_columns: int, center_fraction: Numbers = 0.08, acceleration: Numbers = 4,
                        seed: Seed = None, *, allow_any_combination: bool = False) -> Tensor:
    """Equal steps, widened until the total is right (``EquispacedMaskFractionFunc``; brain data).

    The steps are rounded to columns, hence not quite equal, and the last column is never chosen:
    both are kept because the public test masks have them.
    """
    def draw(rng: RandomState, n: int, centre: int, a: float) -> _Columns:
        _check_room("equispaced_fraction", n, centre, a)
        step = a * (centre - n) / (centre * a - n)
        columns = np.zeros(n, dtype=bool)
        chosen = np.arange(rng.randint(0, round(step)), n - 1, step)
        columns[np.around(chosen).astype(int)] = True
        return columns

    return _mask("equispaced_fraction", draw, n_columns, center_fraction, acceleration, seed,
                 allow_any_combination)


def magic(n_columns: int, center_fraction: Numbers = 0.08, acceleration: Numbers = 4,
          seed: Seed = None, *, allow_any_combination: bool = False) -> Tensor:
    """Every ``acceleration``-th column, off by one between the halves (``MagicMaskFunc``).

    The halves of k-space sample complementary columns under conjugate symmetry (Defazio 2019,
    arXiv 1912.01101).
    """
    def draw(rng: RandomState, n: int, _: int, a: float) -> _Columns:
        return _magic(rng, n, _whole("magic", a))

    return _mask("magic", draw, n_columns, center_fraction, acceleration, seed,
                 allow_any_combination)


def magic_fraction(n_columns: int, center_fraction: Numbers = 0.08, acceleration: Numbers = 4,
                   seed: Seed = None, *, allow_any_combination: bool = False) -> Tensor:
    """``magic`` with its step widened until the total is right (``MagicMaskFractionFunc``)."""
    def draw(rng: RandomState, n: int, centre: int, a: float) -> _Columns:
        _check_room("magic_fraction", n, centre, a)
        return _magic(rng, n, round(n / (round(n / a) - centre)))

    return _mask("magic_fraction", draw, n_columns, center_fraction, acceleration, seed,
                 allow_any_combination, least_centre=1)


def inversebench(n_columns: int, acceleration: float = 4, seed: Seed = None) -> Tensor:
    """Columns drawn without replacement, ``floor(n_columns / acceleration)`` with the centre.

    The centre is ``floor(0.08 n_columns)`` wide for accelerations above 1 and up to 6, else
    ``floor(0.04 n_columns)``. Draw for draw the random masks of InverseBench (Zheng et al. 2025,
    arXiv 2503.11043), whose ``mask_seed`` is ``seed``; it has 320 columns.
    """
    n, a = _size("inversebench", n_columns), acceleration
    _check_acceleration("inversebench", a)
    centre, total = math.floor((0.08 if 1 < a <= 6 else 0.04) * n), math.floor(n / a)
    if total < max(1, centre):
        raise ValueError(
            f"inversebench mask: the centre takes {centre} of {n} columns, acceleration {a:g} "
            f"allows {total} in all: lower acceleration"
        )
    columns = np.zeros(n, dtype=bool)
    start = (n - centre) // 2
    columns[start:start + centre] = True
    rng = _generator("inversebench", seed)
    columns[rng.choice(np.flatnonzero(~columns), size=total - centre, replace=False)] = True
    return torch.from_numpy(columns)


def poisson_disc(shape: tuple[int, int], acceleration: float = 4,
                 calibration: int | tuple[int, int] = 24, seed: Seed = None, *,
                 ellipse: bool = True) -> Tensor:
    """Points at distances that grow linearly with that from the calibration: ``(H, W)``, bool.

    Exactly ``round(H W / acceleration)`` points, those of the calibration included: a block of
    ``calibration`` rows and columns, starting at ``(n - side + 1) // 2``. With ``ellipse`` the
    corners outside the ellipse that touches the edges are left out. Distances are in grid steps,
    for phase encoding along both axes. The kind of mask of SigPy's ``poisson`` and BART's
    ``poisson -v``, though not their draws; by random sequential adsorption (dart throwing, Cook
    1986, doi 10.1145/7529.8927).
    """
    height, width = (operator.index(n) for n in shape)
    if min(height, width) < 1:
        raise ValueError(f"poisson_disc mask: want shape (H, W) of at least 1, got {shape}")
    sides = (calibration, calibration) if isinstance(calibration, int) else calibration
    if not (0 <= sides[0] <= height and 0 <= sides[1] <= width):
        raise ValueError(f"poisson_disc mask: want 0 <= calibration <= {(height, width)}, "
                         f"got {sides}")
    _check_acceleration("poisson_disc", acceleration)
    rows, columns = ((np.arange(n) - n // 2) / (n / 2) for n in (height, width))
    sites = np.hypot(rows[:, None], columns) <= (1 if ellipse else math.inf)
    top, left = (height - sides[0] + 1) // 2, (width - sides[1] + 1) // 2
    sites[top:top + sides[0], left:left + sides[1]] = False
    total, centre, room = round(height * width / acceleration), sides[0] * sides[1], sites.sum()
    if not max(centre, 1) <= total <= centre + room:
        raise ValueError(
            f"poisson_disc mask: acceleration {acceleration:g} asks for {total} of "
            f"{height * width} points, but the calibration takes {centre} and there is room for "
            f"{room} more: change acceleration, calibration or ellipse"
        )
    rng = _generator("poisson_disc", seed)
    drawn = variable_density((height, width), total - centre, sides, sites, rng)
    return torch.from_numpy(drawn.mask)


def _magic(rng: RandomState, n: int, step: int) -> _Columns:
    offset = int(rng.randint(0, step))
    odd = offset % 2
    first, mirrored = (offset + 2, offset - 1) if odd else (offset + 1, offset + 2)
    positive, negative = np.zeros((n + 1) // 2, dtype=bool), np.zeros(n // 2, dtype=bool)
    positive[first::step] = True
    negative[mirrored::step] = True
    return np.fft.fftshift(np.concatenate((positive, negative[::-1])))


def _mask(kind: str, draw: Callable[[RandomState, int, int, float], _Columns], n_columns: int,
          fractions: Numbers, accelerations: Numbers, seed: Seed, any_combination: bool,
          least_centre: int = 0) -> Tensor:
    n = _size(kind, n_columns)
    rng = _generator(kind, seed)
    fraction, a = _choice(kind, rng, _listed(fractions), _listed(accelerations), any_combination)
    centre = max(round(n * fraction), least_centre)
    columns = draw(rng, n, centre, a)
    start = (n - centre + 1) // 2
    columns[start:start + centre] = True
    if not columns.any():
        raise ValueError(
            f"{kind} mask: this draw sampled none of {n} columns: raise center_fraction "
            f"{fraction:g} so that the centre holds at least one"
        )
    return torch.from_numpy(columns)


def _choice(kind: str, rng: RandomState, fractions: list[float], accelerations: list[float],
            any_combination: bool) -> tuple[float, float]:
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ValueError(f"{kind} mask: want 0 <= center_fraction < 1, got {fraction}")
    for a in accelerations:
        _check_acceleration(kind, a)
    if not (fractions and accelerations):
        raise ValueError(f"{kind} mask: want at least one center_fraction and one acceleration")
    if any_combination:
        return float(rng.choice(fractions)), float(rng.choice(accelerations))
    if len(fractions) != len(accelerations):
        raise ValueError(
            f"{kind} mask: {len(fractions)} center_fraction but {len(accelerations)} acceleration: "
            "pass pairs, or allow_any_combination=True"
        )
    i = rng.randint(len(fractions))  # with a single pair this consumes nothing of the stream
    return fractions[i], accelerations[i]


def _size(kind: str, n_columns: int) -> int:
    n = operator.index(n_columns)
    if n < 1:
        raise ValueError(f"{kind} mask: want n_columns >= 1, got {n_columns}")
    return n


def _check_acceleration(kind: str, a: float) -> None:
    if not (a >= 1 and math.isfinite(a)):
        raise ValueError(f"{kind} mask: want a finite acceleration >= 1, got {a}")


def _check_room(kind: str, n: int, centre: int, a: float) -> None:
    """Raise where the centre alone exceeds the total that ``acceleration`` allows."""
    # magic_fraction rounds the total; there, fastMRI fails when nothing remains (its issue 344)
    total = round(n / a) if kind == "magic_fraction" else n / a
    if centre >= total:
        raise ValueError(
            f"{kind} mask: the centre takes {centre} of {n} columns, acceleration {a:g} allows "
            f"{total:g} in all: want center_fraction * acceleration < 1, lower one of them"
        )


def _whole(kind: str, a: float) -> int:
    if a != round(a):
        raise ValueError(f"{kind} mask: want a whole acceleration, got {a:g}: use {kind}_fraction")
    return round(a)


def _listed(value: Numbers) -> list[float]:
    return [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]


def _generator(kind: str, seed: Seed) -> RandomState:
    if seed is None:
        return RandomState()
    if isinstance(seed, str | os.PathLike):
        name = PurePath(seed).name
        if not name:
            raise ValueError(f"{kind} mask: want a file name as seed, got {os.fspath(seed)!r}")
        return RandomState([ord(letter) for letter in name])
    if not 0 <= seed < 2**32:
        raise ValueError(f"{kind} mask: want 0 <= seed < 2**32, got {seed}")
    return RandomState(seed)
