"""Whether images held out were trained on: the same voxels under any scale, in any file."""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recon.priors.training import Stack

RINGS = 6
FEW = 16
"""Pixels that stand out, of slices of which nothing can be said: one voxel is like another."""
APART = 3e-5
"""Copies of a slice in half precision are within 2e-5 of it, neighbours of one body over 1e-3."""


def checksum(stack: Stack) -> int:
    """Of the voxels, bit for bit."""
    return zlib.crc32(stack.values.contiguous().numpy().tobytes())


def fingerprints(stack: Stack) -> Tensor:
    """Cosines of the angles between each slice and rings about its centre, ``(slices, rings)``.

    Scale, offset, flips, transposition and the phase of complex images change nothing, and a copy
    is found by tolerance: rounded voxels have no checksum that survives another scale. NaN for
    slices of one value, as air is in everybody's images, and of a few pixels in it.
    """
    height, width = stack.values.shape[1:]
    basis = _rings(height, width)
    found = []
    for values in stack.values:
        x = values.abs() if values.is_complex() else values
        x = x.flatten().double()
        deviation = x - x.mean()
        norm = deviation.norm()
        cosines = basis @ deviation / norm
        told = (norm > 1e-6 * x.norm()) & (norm**4 > FEW * deviation.pow(4).sum())
        found.append(torch.where(told, cosines, math.nan).float())
    return torch.stack(found)


@functools.lru_cache(maxsize=8)
def _rings(height: int, width: int) -> Tensor:
    """``cos(pi (2 k + 1) r / sqrt(height width))`` less its mean, of norm one, as rows."""
    down, right = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    r = (down[:, None].square() + right.square()).sqrt() / math.sqrt(height * width)
    rings = torch.stack([torch.cos(math.pi * (2 * k + 1) * r) for k in range(1, RINGS + 1)])
    rings = (rings - rings.mean((1, 2), keepdim=True)).flatten(1)
    return rings / rings.norm(dim=1, keepdim=True)


def check_apart(held_out: Mapping[str, Tensor], trained: Mapping[str, Tensor],
                when: str = "of the training images") -> None:
    """Raise ValueError for a slice of one side's fingerprints, by name, that is on the other."""
    owners = [(name, i) for name, marks in trained.items() for i in range(len(marks))]
    known = torch.cat([marks.cpu() for marks in trained.values()])
    for name, marks in held_out.items():
        for i, mark in enumerate(marks):
            same = ((known - mark).abs().amax(1) < APART).nonzero()
            if len(same):
                its, k = owners[int(same[0])]
                raise ValueError(f"{name} is held out, but its slice {i} is slice {k} of {its}, "
                                 f"{when}: validate on other people")


def check_never_seen(held_out: Sequence[Stack], marks: Mapping[str, Tensor],
                     history: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for images held out that a run was trained on before it was changed.

    States written without fingerprints have checksums of whole files, or names alone, of which
    nothing can be said.
    """
    for past in history:
        when = f"trained on until step {past['step']}"
        if past.get("record"):
            check_apart(marks, past["record"]["fingerprints"], when)
        elif isinstance(past["about"].get("train"), dict):
            names = {crc: name for name, crc in past["about"]["train"].items()}
            for stack in held_out:
                if (its := names.get(checksum(stack))) is not None:
                    raise ValueError(f"{stack.name} is held out, but is {its}, {when}: validate on "
                                     "other people")
