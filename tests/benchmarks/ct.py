"""Time ParallelBeamCT against deepinv's Tomography: ``python tests/benchmarks/ct.py``.

256 x 256 pixels, 60 views, 363 bins, float32, one process. Both take turns, call by call, so that
other work on the machine slows both; each time is a median, and the ratio is what counts. The
default is CPU time of one thread: on busy cores wall time of short calls measures the scheduler,
and two threads wait for one another at every step. ``--threads 2 --wall`` suits a quiet machine.
glibc's allocator is set so that temporaries above 32 MiB are not mapped and faulted in on every
call, which would cost the peer 2 to 3 times its time and us nothing.
"""

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


class Row(NamedTuple):
    """One line of the table; times in milliseconds."""

    what: str
    items: int
    ours: float
    peer: float
    goal: float

    def __str__(self) -> str:
        ratio = self.peer / self.ours
        verdict = "met" if ratio >= self.goal else "MISSED"
        return (f"{self.what:<8} {self.items:>5} {self.ours:>9.2f} {self.peer:>9.1f} "
                f"{ratio:>7.1f} {self.goal:>6.0f}  {verdict}")


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int,
                clock: Callable[[], float], warm: bool) -> tuple[float, float]:
    """Medians in milliseconds; ``warm`` calls once untimed on each turn, to fill the caches."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for call, kept in zip((ours, peer), times, strict=True):
            if warm:
                call()
            begin = clock()
            call()
            kept.append(1e3 * (clock() - begin))
    return statistics.median(times[0]), statistics.median(times[1])


def table(rounds: int, views: int, size: int, threads: int, wall: bool) -> None:
    import torch
    from deepinv.optim.linear import conjugate_gradient
    from deepinv.physics import Tomography

    from recon.operators.ct import ParallelBeamCT

    torch.set_num_threads(threads)
    clock = time.perf_counter if wall else time.process_time
    detectors = math.ceil(math.sqrt(2) * size)
    begin = time.perf_counter()
    A = ParallelBeamCT(size, torch.arange(views, dtype=torch.float64) * torch.pi / views, detectors)
    built = time.perf_counter() - begin
    peer = Tomography(angles=views, img_width=size, circle=False, normalize=False)
    weights = A.lines.folded.value.numel()
    print(f"{A.label()}\nbuilt in {built:.2f} s: {weights} weights for {A.lines.entries}; "
          f"torch {torch.__version__}, {threads} threads, {rounds} rounds, "
          f"{'wall' if wall else 'cpu'} time")

    def cg(rhs: torch.Tensor) -> torch.Tensor:
        return A.solve(rhs, 10.0, max_iter=10, rtol=0.0)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = peer.A_adjoint(peer.A(x))
        return normal + 10.0 * x

    def cg_peer(rhs: torch.Tensor) -> torch.Tensor:
        solution: torch.Tensor = conjugate_gradient(shifted, rhs, max_iter=10, tol=0.0)
        return solution

    print(f"{'':<8} {'items':>5} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'goal':>6}")
    for items in (1, 8):
        at = torch.linspace(-1, 1, size)
        blob = torch.exp(-((at[:, None] - 0.2) ** 2 + (at - 0.1) ** 2) / 0.05)
        x = blob.expand(items, 1, size, size).contiguous()
        y = A(x)
        y_peer = y.transpose(-1, -2).contiguous()  # it wants (items, 1, detectors, views)
        # Each solves for its own data: the peer's centre is half a pixel off, and what its operator
        # cannot produce is magnified by norm / shift, here a thousandfold.
        rhs, rhs_peer = A.normal(x), peer.A_adjoint(peer.A(x))
        with torch.no_grad():
            for solution in (cg(rhs), cg_peer(rhs_peer)):
                error = float((solution - x).norm() / x.norm())
                if error > 0.05:
                    raise AssertionError(f"10 CG iterations leave an error of {error:.0%}")
            calls: list[tuple[str, Callable[[], object], Callable[[], object], float]] = [
                ("forward", partial(A, x), partial(peer.A, x), 10),
                ("adjoint", partial(A.adjoint, y), partial(peer.A_adjoint, y_peer), 40),
                ("10 CG", partial(cg, rhs), partial(cg_peer, rhs_peer), 25),
            ]
            for what, mine, theirs, goal in calls:
                long = what == "10 CG"  # warms itself
                times = interleaved(mine, theirs, max(3, rounds // 3) if long else rounds, clock,
                                    warm=not long)
                print(Row(what, items, *times, goal), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="for a quiet machine; or CPU time")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        # glibc reads these when a process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
    warnings.filterwarnings("ignore", category=UserWarning)  # the peer's
    table(arguments.rounds, arguments.views, arguments.size, arguments.threads,
          arguments.wall)


if __name__ == "__main__":
    main()
