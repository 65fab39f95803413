"""Time DDS against its network calls alone: ``python tests/benchmarks/dds.py``.

The shipped prior on 8-coil k-space of 256 x 256, every fourth column on average; eight draws at a
time. The network calls alone are the same calls of the same prior on tensors of the same size,
taken in turns with whole runs of DDS. One process; ratios are what counts. ``--clock cpu`` counts
our own time where other work fills the machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from recon import priors
from recon.integrators import schedules
from recon.operators import CartesianMRI
from recon.operators.mri import masks
from recon.samplers import dds
from recon.simulate import coil_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock: Callable[[], float] = time.perf_counter if args.clock == "wall" else time.process_time
    size = 256
    mask = masks.equispaced_fraction(size, center_fraction=0.08, acceleration=4, seed=0)
    A = CartesianMRI((size, size), mask=mask, maps=coil_maps(8, size, size))
    y = A(A.domain.randn(generator=torch.Generator().manual_seed(0)))
    sigmas = schedules.karras(args.steps, 0.01, 3.0)
    print(f"{'network':<10} {'CG steps':>8} {'DDS s':>8} {'network s':>10} {'ratio':>7}  goal 1.15")
    for precision in (torch.float32, torch.bfloat16):
        prior = priors.load("brain-mri", precision=precision, max_batch=4)
        x = A.domain.randn(args.samples, generator=torch.Generator().manual_seed(1))

        def network(prior: priors.Prior = prior, x: torch.Tensor = x) -> None:
            for sigma in sigmas[:-1]:
                prior(x, float(sigma))

        for cg in (5, 15):

            def run(prior: priors.Prior = prior, cg: int = cg) -> None:
                dds(y, A, prior, noise_std=0.02, samples=args.samples, sigmas=sigmas,
                    cg_iterations=cg, generator=torch.Generator().manual_seed(2))

            times: dict[Callable[[], None], list[float]] = {run: [], network: []}
            for turn in range(args.rounds + 1):
                for call, kept in times.items():
                    began = clock()
                    call()
                    if turn:
                        kept.append(clock() - began)
            whole, bare = (statistics.median(t) for t in times.values())
            print(f"{str(precision)[6:]:<10} {cg:>8} {whole:>8.2f} {bare:>10.2f} "
                  f"{whole / bare:>7.3f}  {'met' if whole / bare <= 1.15 else 'MISSED'}")


if __name__ == "__main__":
    main()
