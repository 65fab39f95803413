"""Time ParallelBeamCT and FanBeamCT against peers: ``python tests/benchmarks/ct.py``.

256 x 256 pixels, 60 views, float32, one process: deepinv's Tomography, ASTRA's projectors on the
CPU and ODL's ray transform upon them (where astra-toolbox can be imported; neither is installed by
the project). All take turns, call by call, so that other work on the machine slows all; each time
is a median, and the ratio is what counts. The default is CPU time of one thread: on busy cores wall
time of short calls measures the scheduler, and two threads wait for one another at every step.
``--threads 2 --wall`` suits a quiet machine. glibc's allocator is set so that temporaries above
32 MiB are not mapped and faulted in on every call, which would cost deepinv 2 to 3 times its time
and us nothing. ``--memory`` prints the most memory a process takes for 512 x 512 pixels, 180 views
and 8 images, forward and adjoint.
"""

import argparse
import importlib.util
import math
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


FAR, NEAR = 2.0, 1.2  # source and detector of the fan, in sides of the image
Calls = dict[str, Callable[[], object]]


class Row(NamedTuple):
    """One line of the table; times in milliseconds."""

    what: str
    peer: str
    items: int
    ours: float
    theirs: float
    goal: float

    def __str__(self) -> str:
        ratio = self.theirs / self.ours
        verdict = "met" if ratio >= self.goal else "MISSED"
        return (f"{self.what:<17} {self.peer:<8} {self.items:>5} {self.ours:>9.2f} "
                f"{self.theirs:>9.1f} {ratio:>7.1f} {self.goal:>6.0f}  {verdict}")


def interleaved(calls: Calls, rounds: int, clock: Callable[[], float],
                warm: bool) -> dict[str, float]:
    """Medians in milliseconds; ``warm`` calls once untimed on each turn, to fill the caches."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if warm:
                call()
            begin = clock()
            call()
            times[name].append(1e3 * (clock() - begin))
    return {name: statistics.median(kept) for name, kept in times.items()}


def astra_calls(A: Any, x: Any, y: Any) -> dict[str, Calls]:
    """ASTRA image by image, as it works, and ODL's module of the same projector."""
    import astra
    import numpy as np
    import odl
    from odl.applications import tomo
    from odl.contrib.torch import OperatorModule

    from recon.operators.ct.geometry import Fan

    g, n = A.geometry, A.domain.shape[1]
    volume, fan = astra.create_vol_geom(n, n), isinstance(g, Fan)
    angles = g.angles.numpy()
    if fan:
        detector = astra.create_proj_geom("fanflat", g.spacing, g.bins, angles, g.source,
                                          g.detector)
    else:
        detector = astra.create_proj_geom("parallel", g.spacing, g.bins, angles)
    projector = astra.create_projector("line_fanflat" if fan else "linear", detector, volume)
    operator = astra.OpTomo(projector)
    images = [np.ascontiguousarray(one.numpy().ravel()) for one in x[:, 0]]
    views = [np.ascontiguousarray(one.numpy().ravel()) for one in y[:, 0]]
    space = odl.uniform_discr([-n / 2] * 2, [n / 2] * 2, (n, n), dtype="float32")
    turn = odl.uniform_partition(0, 2 * math.pi if fan else math.pi, len(angles))
    half = g.bins * g.spacing / 2
    bins = odl.uniform_partition(-half, half, g.bins)
    geometry = (tomo.FanBeamGeometry(turn, bins, g.source, g.detector) if fan
                else tomo.Parallel2dGeometry(turn, bins))
    module = OperatorModule(tomo.RayTransform(space, geometry, impl="astra_cpu"))
    back = OperatorModule(tomo.RayTransform(space, geometry, impl="astra_cpu").adjoint)
    return {
        "forward": {"ASTRA": lambda: [operator.FP(one) for one in images],
                    "ODL": lambda: module(x[:, 0])},
        "adjoint": {"ASTRA": lambda: [operator.BP(one) for one in views],
                    "ODL": lambda: back(y[:, 0])},
    }


def table(geometry: str, rounds: int, views: int, size: int, items: list[int], threads: int,
          wall: bool, with_cg: bool) -> None:
    import torch
    from deepinv.optim.linear import conjugate_gradient
    from deepinv.physics import Tomography

    from recon.operators.ct import FanBeamCT, ParallelBeamCT

    torch.set_num_threads(threads)
    clock = time.perf_counter if wall else time.process_time
    fan = geometry == "fan"
    angles = torch.arange(views, dtype=torch.float64) * ((2 if fan else 1) * torch.pi / views)
    begin = clock()
    A: Any
    if fan:
        A = FanBeamCT(size, angles, FAR * size, NEAR * size)
    else:
        A = ParallelBeamCT(size, angles, math.ceil(math.sqrt(2) * size))
    built, g = clock() - begin, A.geometry
    # its default angles run over half a turn
    peer = Tomography(
        angles=torch.rad2deg(angles).float(), img_width=size, circle=False, normalize=False,
        fan_beam=fan, fan_parameters=None if not fan else {
            "pixel_spacing": 1.0, "source_radius": g.source, "detector_radius": g.detector,
            "n_detector_pixels": g.bins, "detector_spacing": g.spacing})
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

    print(f"{'':<17} {'peer':<8} {'items':>5} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} "
          f"{'goal':>6}")
    for n in items:
        at = torch.linspace(-1, 1, size)
        blob = torch.exp(-((at[:, None] - 0.2) ** 2 + (at - 0.1) ** 2) / 0.05)
        x = blob.expand(n, 1, size, size).contiguous()
        y = A(x)
        y_peer = torch.randn_like(peer.A(x))  # it wants (items, 1, detectors, views)
        calls: dict[str, Calls] = {
            "forward": {"ours": partial(A, x), "deepinv": partial(peer.A, x)},
            "adjoint": {"ours": partial(A.adjoint, y), "deepinv": partial(peer.A_adjoint, y_peer)},
        }
        if importlib.util.find_spec("astra"):
            for what, more in astra_calls(A, x, y).items():
                calls[what] |= more
        goals = {"forward": {"deepinv": 10.0}, "adjoint": {"deepinv": 40.0},
                 "10 CG": {"deepinv": 25.0}}
        with torch.no_grad():
            if with_cg:
                # Each solves for its own data: the peer's centre is half a pixel off, and what its
                # operator cannot produce is magnified by norm / shift, here a thousandfold.
                rhs, rhs_peer = A.normal(x), peer.A_adjoint(peer.A(x))
                solved = [cg(rhs)] + ([] if fan else [cg_peer(rhs_peer)])
                for solution in solved:
                    error = float((solution - x).norm() / x.norm())
                    if error > 0.05:
                        raise AssertionError(f"10 CG iterations leave an error of {error:.0%}")
                calls["10 CG"] = {"ours": partial(cg, rhs), "deepinv": partial(cg_peer, rhs_peer)}
            for what, of in calls.items():
                long = what == "10 CG"  # warms itself
                times = interleaved(of, max(3, rounds // 3) if long else rounds, clock,
                                    warm=not long)
                for name in list(of)[1:]:
                    goal = goals[what].get(name, 7.0 if n == 1 else 12.0)
                    print(Row(f"{geometry} {what}", name, n, times["ours"], times[name], goal),
                          flush=True)


def memory() -> None:
    """Peak resident memory of this process, which does nothing else."""
    import torch

    from recon.operators.ct import FanBeamCT, ParallelBeamCT

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name in ("parallel", "fan"):
        A: Any
        turn = torch.arange(180, dtype=torch.float64) * torch.pi / 180
        A = ParallelBeamCT(512, turn) if name == "parallel" else FanBeamCT(512, 2 * turn, 1024.0)
        x = torch.ones(8, 1, 512, 512)
        begin = time.process_time()
        A.adjoint(A(x))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{A.label()}, 8 images, by {A.lines.path(8)}, {time.process_time() - begin:.2f} s: "
              f"peak {peak:.2f} GiB, {before:.2f} before", flush=True)
        del A


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 8], help="images at a time")
    parser.add_argument("--geometry", choices=["parallel", "fan"], nargs="+",
                        default=["parallel", "fan"])
    parser.add_argument("--no-cg", action="store_true", help="leave out conjugate gradients")
    parser.add_argument("--memory", action="store_true", help="memory instead of time")
    parser.add_argument("--wall", action="store_true", help="for a quiet machine; or CPU time")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        # glibc reads these when a process starts
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ALLOCATOR)
    warnings.filterwarnings("ignore", category=UserWarning)  # the peer's
    if arguments.memory:
        memory()
        return
    for geometry in arguments.geometry:
        table(geometry, arguments.rounds, arguments.views, arguments.size, arguments.items,
              arguments.threads, arguments.wall, not arguments.no_cg)


if __name__ == "__main__":
    main()
