"""Time image operators against deepinv's: ``python tests/benchmarks/images.py``.

Bicubic downsampling by 4, blur by a 25 x 25 kernel and blur that varies, forward and adjoint, of
256 x 256 pixels, float32, one process. Competitors take turns, call by call; each time is a median
of the process's own time on one thread, and the ratio is what counts. Results are compared first:
the two compute the same thing, or the script stops. glibc's allocator is set so that temporaries
above 32 MiB are not mapped and faulted in on every call, which would cost the peer several times
its time and us little.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}
Call = Callable[[], object]


def interleaved(calls: list[Call], rounds: int) -> list[float]:
    """Median of each in milliseconds, after one warm call."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            if turn:
                kept.append(1e3 * (time.process_time() - begin))
    return [statistics.median(kept) for kept in times]


class Race(NamedTuple):
    """One thing that two libraries compute."""

    what: str
    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any]
    goal: float | None  # how many times faster ours should be; None to say only
    margin: int = 0  # pixels at the edge where they differ on purpose
    aligned: Callable[[Any], Any] | None = None  # theirs, without a shift that is theirs alone

    def run(self, x: Any, rounds: int) -> Any:
        """Compare, time and print; returns our result."""
        inside = (..., *(slice(self.margin, -self.margin or None),) * 2)
        ours, theirs = self.ours(x), (self.aligned or self.theirs)(x)
        error = float((ours[inside] - theirs[inside]).norm() / theirs[inside].norm())
        if not error < 1e-5:
            raise RuntimeError(f"{self.what}: the two compute different things, {error:.1e} apart")
        fast, slow = interleaved([lambda: self.ours(x), lambda: self.theirs(x)], rounds)
        verdict = "" if self.goal is None else (
            f">= {self.goal:g}  {'met' if slow >= self.goal * fast else 'MISSED'}")
        times = f"{fast:>9.2f} {slow:>9.2f} {slow / fast:>7.2f}"
        print(f"{self.what:<40} {len(x):>5} {times} {verdict}", flush=True)
        return ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        # glibc reads these when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepinv import physics

    from recon.operators import (
        Blur,
        Downsampling,
        LinearOperator,
        Space,
        VaryingBlur,
        gaussian_kernel,
        region_weights,
    )

    n, generator = 256, torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, 1 thread, process CPU time, {arguments.rounds} rounds, "
          f"{n} x {n}")
    print(f"{'':<40} {'items':>5} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} goal")
    space, kernel = Space((1, n, n)), torch.rand(25, 25, generator=generator)
    kernel /= kernel.sum()
    kernels, weights = torch.rand(9, 25, 25, generator=generator), region_weights((3, 3), (n, n))
    pairs: list[tuple[str, LinearOperator, Any, float | None]] = [
        *((f"blur 25 x 25, {ours}", Blur(kernel, space, ours),
           physics.Blur(kernel[None, None], padding=theirs), 5.0) for ours, theirs in
          (("periodic", "circular"), ("reflect", "reflect"), ("valid", "valid"))),
        ("blur 5 x 5, periodic", Blur(gaussian_kernel(0.7, 5), space),
         physics.Blur(gaussian_kernel(0.7, 5)[None, None], padding="circular"), None),
        ("blur by 9 kernels 25 x 25, valid", VaryingBlur(kernels, weights, space, "valid"),
         physics.SpaceVaryingBlur(filters=kernels[None, None], multipliers=weights[None, None],
                                  padding="valid"), None),
    ]
    down = Downsampling(space, 4)
    peer = physics.Downsampling((1, n, n), filter="bicubic", factor=4)

    def turned(x: torch.Tensor, by: int) -> torch.Tensor:
        return x.roll((by, by), (-1, -2))

    for items in (1, 8):
        x = torch.rand(items, 1, n, n, generator=generator)
        # deepinv's lies one fine pixel away from torch's interpolate and Pillow, and goes round
        y = Race("bicubic x4, forward", down, peer.A, 5, 4,
                 lambda x: peer.A(turned(x, -1))).run(x, arguments.rounds)
        Race("bicubic x4, adjoint", down.adjoint, peer.A_adjoint, 5, 32,
             lambda y: turned(peer.A_adjoint(y), 1)).run(y, arguments.rounds)
        for what, ours, theirs, goal in pairs:
            x = torch.rand(items, 1, n, n, generator=generator)
            y = Race(f"{what}, forward", ours, theirs.A, goal).run(x, arguments.rounds)
            Race(f"{what}, adjoint", ours.adjoint, theirs.A_adjoint, goal).run(
                y, arguments.rounds)


if __name__ == "__main__":
    main()
