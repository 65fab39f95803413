"""Bodies of ellipses: their pictures and their integrals along any lines, in closed form.

Ellipses are (density, centre X and Y, half axes, rotation), in units of half the image.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Body = list[tuple[float, ...]]
Array = NDArray[np.float64]

DISC: Body = [(1.0, 0.11, -0.07, 0.6, 0.6, 0.0)]
SHEPP_LOGAN: Body = [
    (1.0, 0.0, 0.0, 0.69, 0.92, 0.0), (-0.8, 0.0, -0.0184, 0.6624, 0.874, 0.0),
    (-0.2, 0.22, 0.0, 0.11, 0.31, -0.1 * math.pi), (-0.2, -0.22, 0.0, 0.16, 0.41, 0.1 * math.pi),
    (0.1, 0.0, 0.35, 0.21, 0.25, 0.0), (0.1, 0.0, 0.1, 0.046, 0.046, 0.0),
    (0.1, 0.0, -0.1, 0.046, 0.046, 0.0), (0.1, -0.08, -0.605, 0.046, 0.023, 0.0),
    (0.1, 0.0, -0.606, 0.023, 0.023, 0.0), (0.1, 0.06, -0.605, 0.023, 0.046, 0.0),
]


def picture(body: Body, n: int, fine: int = 6) -> Tensor:
    """Each pixel's mean over ``fine`` squared points."""
    at = (np.arange(n * fine) + 0.5) / (n * fine) * 2 - 1
    X, Y = at[None, :], -at[:, None]
    total = np.zeros((n * fine, n * fine))
    for density, x0, y0, a, b, turn in body:
        c, s = math.cos(turn), math.sin(turn)
        u, v = (X - x0) * c + (Y - y0) * s, (Y - y0) * c - (X - x0) * s
        total += density * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    means = total.reshape(n, fine, n, fine).mean((1, 3))
    return torch.from_numpy(means).float().unsqueeze(0)


def integrals(body: Body, n: int, angles: Tensor, detectors: int) -> Tensor:
    """Along parallel rays, averaged over each bin, in pixels."""
    edges = (np.arange(detectors + 1) - detectors / 2) / (n / 2)
    theta = angles.numpy()[:, None]
    total = np.zeros((len(angles), detectors))
    for density, x0, y0, a, b, turn in body:
        reach = np.hypot(a * np.cos(theta - turn), b * np.sin(theta - turn))
        t = np.clip((edges - x0 * np.cos(theta) - y0 * np.sin(theta)) / reach, -1, 1)
        # the integral of sqrt(1 - t^2) is (t sqrt(1 - t^2) + asin t) / 2
        area = density * a * b * (t * np.sqrt(1 - t**2) + np.arcsin(t))
        total += np.diff(area, axis=1)
    return torch.from_numpy(total * (n / 2) ** 2).float().unsqueeze(0)


def fan_lines(angles: Tensor, source: float, detector: float, places: NDArray[np.floating[Any]],
              curved: bool) -> tuple[Array, Array]:
    """Normals' angles and distances of lines from the source to places along the detector."""
    t = angles.numpy()[:, None]
    start = source * np.stack([np.sin(t), -np.cos(t)])
    reaches = source + detector
    if curved:
        turn = places / reaches
        aside, ahead = reaches * np.sin(turn), reaches * np.cos(turn) - source
    else:
        aside, ahead = places, np.full_like(places, detector)
    end = (aside * np.stack([np.cos(t), np.sin(t)]) - ahead * np.stack([np.sin(t), -np.cos(t)]))
    along = end - start
    along /= np.hypot(*along)
    normal = np.stack([along[1], -along[0]])
    return np.arctan2(normal[1], normal[0]), (normal * start).sum(0)


def chords(body: Body, n: int, angle: Array, distance: Array) -> Array:
    """Integrals along the lines ``X cos(angle) + Y sin(angle) = distance``, in pixels."""
    total = np.zeros(np.broadcast_shapes(angle.shape, distance.shape))
    for density, x0, y0, a, b, turn in body:
        reach = (a * np.cos(angle - turn)) ** 2 + (b * np.sin(angle - turn)) ** 2
        t = distance / (n / 2) - x0 * np.cos(angle) - y0 * np.sin(angle)
        total += 2 * density * a * b * np.sqrt(np.clip(reach - t**2, 0, None)) / reach
    return total * (n / 2)


def fan_integrals(body: Body, n: int, angles: Tensor, source: float, detector: float, bins: int,
                  spacing: float, *, offset: float = 0.0, curved: bool = False,
                  fine: int = 16) -> Tensor:
    """Along a fan of rays, the mean of ``fine`` in each bin, in pixels."""
    at = (np.arange(bins * fine) + 0.5) / fine - bins / 2 + offset
    angle, distance = fan_lines(angles, source, detector, at * spacing, curved)
    means = chords(body, n, angle, distance).reshape(len(angles), bins, fine).mean(-1)
    return torch.from_numpy(means).float().unsqueeze(0)
