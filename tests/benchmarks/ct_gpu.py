"""Time CT on a GPU against deepinv: ``python tests/benchmarks/ct_gpu.py``.

256 x 256 pixels, 60 parallel views, float32, 1 and 8 images: sparse products of both kinds, the
Triton kernels and plain torch, and deepinv's Tomography on the same GPU, whose adjoint is by
default that of automatic differentiation. Then 64^3 voxels and 60 cone-beam views, kernels against
plain torch. Times are medians of CUDA events around one call, after warming up; all take turns,
call by call. ``--check`` first compares each form with float64. There is no GPU in the project's
tests, and no figure of this table has been published.
"""

import argparse
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch

from recon.operators.ct import ConeBeamCT, ParallelBeamCT, kernels
from recon.operators.ct.symmetry import Method

Calls = dict[str, Callable[[], object]]
METHODS: tuple[Method, ...] = ("symmetry", "matrix", "gather")


def milliseconds(calls: Calls, rounds: int) -> dict[str, float]:
    """Medians over turns; each call runs untimed until its kernels are compiled and warm."""
    for call in calls.values():
        for _ in range(5):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                          for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(kept) for name, kept in times.items()}


def report(what: str, items: int, calls: Calls, peer: str, rounds: int) -> None:
    took = milliseconds(calls, rounds)
    for name, time in took.items():
        print(f"{what:<17} {items:>5} {name:<14} {time:>9.3f} {took[peer] / time:>9.1f}",
              flush=True)


def planes(size: int, views: int, items: list[int], rounds: int, check: bool) -> None:
    from deepinv.physics import Tomography

    angles = torch.arange(views, dtype=torch.float64) * math.pi / views
    bins = math.ceil(math.sqrt(2) * size)
    forms = {method: ParallelBeamCT(size, angles, bins, method=method).cuda()
             for method in METHODS}
    peer = Tomography(angles=torch.rad2deg(angles).float().cuda(), img_width=size, circle=False,
                      normalize=False, device="cuda")
    exact = ParallelBeamCT(size, angles, bins, method="matrix", dtype=torch.float64)
    for n in items:
        x = torch.rand(n, 1, size, size, device="cuda")
        y, y_peer = forms["matrix"](x), torch.rand_like(peer.A(x))
        for name, A in forms.items() if check else ():
            compare(f"{name}, forward", A(x), exact(x.cpu().double()))
            compare(f"{name}, adjoint", A.adjoint(y), exact.adjoint(y.cpu().double()))
        gather = forms["gather"].lines.gather
        flat_x, flat_y = (t.reshape(n, -1).T.contiguous() for t in (x, y))
        kernel = "gather, triton"
        forward: Calls = {(kernel if name == "gather" else name): partial(A, x)
                          for name, A in forms.items()}
        adjoint: Calls = {(kernel if name == "gather" else name): partial(A.adjoint, y)
                          for name, A in forms.items()}
        forward |= {"gather, torch": partial(gather.project, flat_x),
                    "deepinv": partial(peer.A, x)}
        adjoint |= {"gather, torch": partial(gather.backproject, flat_y),
                    "deepinv": partial(peer.A_adjoint, y_peer)}
        with torch.no_grad():
            report("parallel forward", n, forward, "deepinv", rounds)
            report("parallel adjoint", n, adjoint, "deepinv", rounds)


def cones(size: int, views: int, rounds: int, check: bool) -> None:
    """deepinv has cone beams only through ASTRA's CUDA projectors, so plain torch is the peer."""
    turn = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    detector = (3 * size // 2, 3 * size // 2)
    by_triton, by_torch = (ConeBeamCT(size, turn, detector, 3.1 * size, 1.6 * size,
                                      detector_spacing=1.5, backend=backend)
                           for backend in ("triton", "torch"))
    x = torch.rand(1, size, size, size, device="cuda")
    y = by_triton(x)
    if check:
        compare("cone, forward", y, by_torch(x.double()))
        compare("cone, adjoint", by_triton.adjoint(y), by_torch.adjoint(y.double()))
    with torch.no_grad():
        report("cone forward", 1, {"triton": partial(by_triton, x), "torch": partial(by_torch, x)},
               "torch", rounds)
        report("cone adjoint", 1, {"triton": partial(by_triton.adjoint, y),
                                   "torch": partial(by_torch.adjoint, y)}, "torch", rounds)


def compare(what: str, got: torch.Tensor, want: torch.Tensor) -> None:
    want = want.to(got.device)
    error = float((got.double() - want).norm() / want.norm())
    print(f"{what}: relative difference to float64 {error:.1e}")
    if not error < 2e-6:
        raise AssertionError(f"{what}: want 2e-6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 8], help="images at a time")
    parser.add_argument("--cone-size", type=int, default=64)
    parser.add_argument("--check", action="store_true", help="compare the forms before timing them")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"ct_gpu.py: want a CUDA device that torch {torch.__version__} can use, found "
                 "none: nothing was timed; tests/benchmarks/ct.py times CPUs")
    if not kernels.present(torch.device("cuda")):
        sys.exit("ct_gpu.py: want triton, which comes with torch's CUDA wheels: without it the "
                 "forms to be timed are not there")
    warnings.filterwarnings("ignore", category=UserWarning)  # the peer's
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, medians of {args.rounds}\n"
          f"{'':<17} {'items':>5} {'form':<14} {'ms':>9} {'ratio':>9}")
    planes(args.size, args.views, args.items, args.rounds, args.check)
    cones(args.cone_size, args.views, args.rounds, args.check)


if __name__ == "__main__":
    main()
