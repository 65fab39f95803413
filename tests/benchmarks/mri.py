"""Time MRI's operators and coil maps: ``python tests/benchmarks/mri.py --threads 1 --clock cpu``.

SENSE's ``A^H A`` with 8 coils of 256 x 256 and every fourth column on average, against the two
bare Fourier transforms along a row that it cannot do without (orthonormal, item by item, into
buffers; and the fastest that was found: unscaled, coil by coil) and against deepinv, SigPy and
mrpro; the non-uniform transform of 64 spokes of 512 samples and 8 coils
against finufft at 1e-4 and torchkbnufft by its defaults, with the error of each; coil maps from
24 x 24 samples with patches of 6 x 6 and equal thresholds against SigPy and ``bart ecalib`` (its
whole process: start, reading and writing included), with the sine of the angle of each to the true
maps. complex64, one process. What is not installed is
named. The competitors take turns, call by call, so that other work on the machine slows all of
them; each time is a median, and the ratio is what counts. Where other work fills the machine,
``--threads 1 --clock cpu`` counts our own time only, and that of BART's processes. glibc's
allocator is set so that temporaries above 32 MiB are not mapped and faulted in on every call, which
would cost the peers several times their time and us nothing.
"""

import argparse
import importlib.util
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "200000000",
}


Clock = Callable[[], float]


def cpu() -> float:
    """Seconds this process and those it waited for have computed."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def present(package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package + ' is not installed':<34}")
    return found


def interleaved(calls: list[Callable[[], object]], rounds: int, clock: Clock) -> list[float]:
    """Median of each in milliseconds, after one warm call."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, kept in zip(calls, times, strict=True):
            begin = clock()
            call()
            if turn:
                kept.append(1e3 * (clock() - begin))
    return [statistics.median(kept) for kept in times]


def line(what: str, items: int, ours: float, peer: float, ratio: float, goal: str,
         met: bool) -> None:
    print(f"{what:<34} {items:>5} {ours:>9.2f} {peer:>9.2f} {ratio:>7.2f} {goal:>7}  "
          f"{'met' if met else 'MISSED'}")


def sense(rounds: int, clock: Clock) -> None:
    import torch
    from deepinv.physics import MultiCoilMRI

    from recon.operators.mri import CartesianMRI, masks

    coils, size = 8, 256
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(coils, size, size, dtype=torch.complex64, generator=generator)
    mask = masks.random(size, center_fraction=0.08, acceleration=4, seed=0)
    A = CartesianMRI((size, size), mask, maps)
    peer = MultiCoilMRI(mask=mask.expand(1, 1, size, size).float(), coil_maps=maps[None],
                        img_size=(1, 2, size, size))
    for items in (1, 8):
        x = A.domain.randn(items, generator=generator)
        x_peer = torch.view_as_real(x).movedim(-1, 1).squeeze(2).contiguous()
        k = (maps * x).contiguous()
        buffers = torch.empty_like(k), torch.empty_like(k)

        def bare(k: torch.Tensor = k,
                 buffers: tuple[torch.Tensor, torch.Tensor] = buffers) -> None:
            for one, there, back in zip(k, *buffers, strict=True):
                torch.fft.fft(one, norm="ortho", out=there)
                torch.fft.ifft(there, norm="ortho", out=back)

        def fastest(k: torch.Tensor = k) -> None:
            for one in k.flatten(0, 1):
                torch.fft.ifft(torch.fft.fft(one), norm="forward")

        def theirs(x: torch.Tensor = x_peer) -> torch.Tensor:
            pulled: torch.Tensor = peer.A_adjoint(peer.A(x))
            return pulled

        def ours(x: torch.Tensor = x) -> torch.Tensor:
            return A.normal(x)

        both = ours().squeeze(1), torch.complex(*theirs().unbind(1))
        error = float((both[0] - both[1]).norm() / both[1].norm())
        if not error < 1e-6:
            raise RuntimeError(f"the two compute different things: {error:.1e} apart")
        fast, floor, unscaled, slow = interleaved([ours, bare, fastest, theirs], rounds, clock)
        line("A^H A / bare FFT pair", items, fast, floor, fast / floor, "<= 1.3",
             fast / floor <= 1.3)
        line("A^H A / unscaled FFT pair", items, fast, unscaled, fast / unscaled, "<= 1.3",
             fast / unscaled <= 1.3)
        line("A^H A, deepinv / ours", items, fast, slow, slow / fast, ">= 4", slow / fast >= 4)


def sense_of_peers(rounds: int, clock: Clock) -> None:
    """One image at a time, as SigPy has it."""
    import torch

    from recon.operators.mri import CartesianMRI, masks

    coils, size = 8, 256
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(coils, size, size, dtype=torch.complex64, generator=generator)
    mask = masks.random(size, center_fraction=0.08, acceleration=4, seed=0)
    A = CartesianMRI((size, size), mask, maps)
    x = A.domain.randn(generator=generator)
    peers: dict[str, Callable[[], torch.Tensor]] = {}
    if present("sigpy"):
        import sigpy.mri

        linop = sigpy.mri.linop.Sense(
            maps.numpy(), weights=mask.expand(size, size).float().numpy())
        image = x[0].numpy()
        peers["sigpy"] = lambda: torch.from_numpy(linop.H * (linop * image))
    if present("mrpro"):
        from mrpro.operators import FastFourierOp, SensitivityOp

        kept = mask.float()
        coil, fourier = SensitivityOp(maps[None, :, None]), FastFourierOp(dim=(-2, -1))

        def mrpro() -> torch.Tensor:
            k = fourier(*coil(x[None, None]))[0] * kept
            pulled: torch.Tensor = coil.adjoint(*fourier.adjoint(k * kept))[0]
            return pulled[0, 0, 0]

        peers["mrpro"] = mrpro
    for name, peer in peers.items():
        error = float((peer() - A.normal(x)[0]).norm() / A.normal(x).norm())
        if not error < 1e-5:
            raise RuntimeError(f"{name} computes something else: {error:.1e} apart")
        fast, slow = interleaved([lambda: A.normal(x), peer], rounds, clock)
        line(f"A^H A, {name} / ours", 1, fast, slow, slow / fast, ">= 3", slow / fast >= 3)


def nufft(rounds: int, clock: Clock) -> None:
    import torch

    from recon.operators.mri import NonCartesianMRI, trajectories

    coils, size = 8, 256
    k = trajectories.radial(size, 64).view(-1, 2)
    A = NonCartesianMRI((size, size), k, tolerance=2.5e-4)
    generator = torch.Generator().manual_seed(0)
    x = A.domain.randn(coils, generator=generator)
    y = A.range.randn(coils, generator=generator)
    omega = 2 * math.pi * k.T.contiguous() / size
    transforms: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "ours": (lambda: A(x)[:, 0], lambda: A.adjoint(y)[:, 0])}
    if present("finufft"):
        import finufft

        images, samples = x[:, 0].numpy(), y[:, 0].numpy()
        plans = []
        for kind, sign in ((2, -1), (1, 1)):
            plan = finufft.Plan(kind, (size, size), n_trans=coils, eps=1e-4, isign=sign,
                                dtype="complex64", nthreads=torch.get_num_threads())
            plan.setpts(*(w.numpy() for w in omega))
            plans.append(plan)
        transforms["finufft"] = (lambda: plans[0].execute(images) / size,
                                 lambda: plans[1].execute(samples) / size)
    if present("torchkbnufft"):
        warnings.filterwarnings("ignore")  # of sparse tensors and integer types
        import torchkbnufft

        there = torchkbnufft.KbNufft((size, size))
        back = torchkbnufft.KbNufftAdjoint((size, size))
        transforms["torchkbnufft"] = (
            lambda: there(x.movedim(0, 1), omega)[0] / size,
            lambda: back(y.movedim(0, 1), omega)[0] / size)
    best = NonCartesianMRI((size, size), k, tolerance=1e-12, backend="finufft") if (
        "finufft" in transforms) else NonCartesianMRI((size, size), k, tolerance=2.5e-6)
    exact = best(x.to(torch.complex128))[:, 0], best.adjoint(y.to(torch.complex128))[:, 0]
    for name, pair in transforms.items():
        errors = [float((torch.as_tensor(call()) - want).norm() / want.norm())
                  for call, want in zip(pair, exact, strict=True)]
        print(f"{'error, ' + name:<34} {coils:>5} {errors[0]:>9.1e} {errors[1]:>9.1e}  "
              "(image to samples, and back)")
        if not max(errors) < 2e-3:
            raise RuntimeError(f"{name} computes something else")
    calls = [call for pair in transforms.values() for call in pair]
    times = interleaved(calls, rounds, clock)
    goals = {"finufft": 1.3, "torchkbnufft": 10.0}
    for place, name in enumerate(transforms):
        for kind, what in enumerate(("transform", "adjoint")):
            fast, slow = times[kind], times[2 * place + kind]
            if name != "ours":
                line(f"{what}, {name} / ours", coils, fast, slow, slow / fast,
                     f">= {goals[name]:g}", slow / fast >= goals[name])


def coil_maps(rounds: int, clock: Clock) -> None:
    import torch

    from recon.operators.mri import espirit
    from recon.operators.mri.fourier import fft2c

    coils, size = 8, 256
    at = torch.linspace(-1, 1, size)
    y, x = at[:, None], at
    angles = [2 * math.pi * i / coils for i in range(coils)]
    true = torch.stack([
        torch.polar(torch.exp(-(y - math.sin(a)) ** 2 - (x - math.cos(a)) ** 2), a + x * y)
        for a in angles
    ])
    inside = y**2 + x**2 < 0.6
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    kspace = fft2c(true * (inside * (1 + 0.2 * noise)))
    folder = tempfile.TemporaryDirectory()
    estimates: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: espirit(kspace, threshold=4e-4, crop=0.95)}
    if present("sigpy"):
        import sigpy.mri

        image = kspace.numpy()
        # its threshold is of singular values, the square root of ours and BART's
        estimates["sigpy"] = lambda: torch.from_numpy(sigpy.mri.app.EspiritCalib(
            image, calib_width=24, thresh=0.02, kernel_width=6, crop=0.95, show_pbar=False).run())
    if shutil.which("bart") is None:
        print("bart is not installed")
    else:
        name, maps = Path(folder.name) / "k", Path(folder.name) / "s"
        name.with_suffix(".hdr").write_text(f"# Dimensions\n1 {size} {size} {coils}\n")
        name.with_suffix(".cfl").write_bytes(kspace.permute(0, 2, 1).contiguous().numpy().tobytes())
        call = ["bart", "ecalib", "-m1", "-r24", "-k6", "-t0.0004", "-c0.95", str(name), str(maps)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}

        def bart() -> torch.Tensor:
            subprocess.run(call, check=True, capture_output=True, env={**os.environ, **threads})
            read = torch.frombuffer(bytearray(maps.with_suffix(".cfl").read_bytes()),
                                    dtype=torch.complex64)
            return read.view(coils, size, size).mT

        estimates["bart ecalib"] = bart
    for name_of, estimate in estimates.items():
        sines = sines_of_angles(estimate(), true)[inside]
        kept = sines[sines.isfinite()]
        print(f"{'sine to the true maps, ' + name_of:<34} {1:>5} {float(kept.median()):>9.2e} "
              f"{float(kept.quantile(0.99)):>9.2e}  (median, 99 %; of {len(kept) / len(sines):.1%} "
              "of the object)")
        if not float(kept.median()) < 1e-2:
            raise RuntimeError(f"{name_of} finds other maps")
    times = dict(zip(estimates, interleaved(list(estimates.values()), max(3, rounds // 3), clock),
                     strict=True))
    folder.cleanup()
    for peer, goal in (("sigpy", 8), ("bart ecalib", 2)):
        if peer in times:
            line(f"espirit, {peer} / ours", 1, times["ours"], times[peer],
                 times[peer] / times["ours"], f">= {goal}", times[peer] / times["ours"] >= goal)


def sines_of_angles(maps: Any, true: Any) -> Any:
    """At each pixel, between two vectors of coils ``(coils, ...)``; NaN where the maps are zero."""
    import torch

    maps, true = (torch.nn.functional.normalize(m.to(torch.complex128), dim=0, eps=0)
                  for m in (maps, true))
    return (maps - torch.linalg.vecdot(true, maps, dim=0) * true).abs().square().sum(0).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None, help="torch's own choice if absent")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        # glibc reads these when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{arguments.clock} time, {arguments.rounds} rounds, 8 coils, 256 x 256")
    print(f"{'':<34} {'items':>5} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'goal':>7}")
    clock = cpu if arguments.clock == "cpu" else time.perf_counter
    sense(arguments.rounds, clock)
    sense_of_peers(arguments.rounds, clock)
    nufft(arguments.rounds, clock)
    coil_maps(arguments.rounds, clock)


if __name__ == "__main__":
    main()
