"""Time each sampler against its network calls alone: ``python tests/benchmarks/samplers.py``.

The shipped prior on 8-coil k-space of 256 x 256, every fourth column on average; eight draws (or
slices) at a time. Network time is taken inside the same run, around each call of the prior's
network, so that a ratio is of one process at one moment. ``--clock cpu`` counts our own time where
other work fills the machine. Samplers that differentiate the network are listed without a goal:
their backward passes are not calls.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recon import acquisition, priors, samplers
from recon.integrators import schedules
from recon.operators import CartesianMRI
from recon.operators.mri import masks
from recon.simulate import coil_maps

GOAL = 1.15
SIZE, DRAWS, NOISE = 256, 8, 0.02
Clock = Callable[[], float]


class Timed(priors.Prior):
    """A prior that counts its calls and the time they take."""

    def __init__(self, of: priors.Prior, clock: Clock) -> None:
        super().__init__(channels=of.channels, is_complex=of.is_complex, space=of.space)
        self.of, self.clock, self.seconds, self.calls = of, clock, 0.0, 0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        began = self.clock()
        found = self.of(x, sigma)
        self.seconds += self.clock() - began
        self.calls += 1
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="samplers; all without it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock: Clock = time.perf_counter if args.clock == "wall" else time.process_time
    network = priors.load("brain-mri", precision=getattr(torch, args.precision), max_batch=4)
    print(f"{'sampler':<16} {'calls':>6} {'whole s':>8} {'network s':>10} {'ratio':>7} "
          f" goal {GOAL}")
    for name, (run, goal) in table(args.steps).items():
        if args.names and name.split()[0] not in args.names:
            continue
        ratios, wholes, bares, calls = [], [], [], 0
        for turn in range(args.rounds + 1):
            prior = Timed(network, clock)
            began = clock()
            run(prior)
            whole = clock() - began
            if turn:  # the first one warms up
                ratios.append(whole / prior.seconds)
                wholes.append(whole)
                bares.append(prior.seconds)
            calls = prior.calls
        ratio = statistics.median(ratios)
        verdict = ("met" if ratio <= GOAL else "MISSED") if goal else "-"
        print(f"{name:<16} {calls:>6} {statistics.median(wholes):>8.2f} "
              f"{statistics.median(bares):>10.2f} {ratio:>7.3f}  {verdict}", flush=True)


def table(steps: int) -> dict[str, tuple[Callable[[priors.Prior], Any], bool]]:
    """Each sampler on the same data, and whether the goal is meant for it."""
    mask = masks.equispaced_fraction(SIZE, center_fraction=0.08, acceleration=4, seed=0)
    maps = coil_maps(8, SIZE, SIZE)
    A = CartesianMRI((SIZE, SIZE), mask=mask, maps=maps)
    whole = CartesianMRI((SIZE, SIZE), mask=torch.ones(SIZE), maps=maps)
    generator = torch.Generator().manual_seed(0)
    image = A.domain.randn(generator=generator)
    y, full = A(image), whole(image)
    volume = y.expand(DRAWS, *y.shape)
    sigmas = schedules.karras(steps, 0.01, 3.0)

    def drawn(name: str, **settings: Any) -> Callable[[priors.Prior], Any]:
        def run(prior: priors.Prior) -> Any:
            return getattr(samplers, name)(
                y, A, prior, noise_std=NOISE, samples=DRAWS, sigmas=sigmas,
                generator=torch.Generator().manual_seed(2), **settings)
        return run

    def scanned(prior: priors.Prior) -> Any:
        return samplers.ads(
            lambda selection: torch.where(selection.mask, full, 0), whole, prior,
            candidates=acquisition.columns(whole), budget=SIZE // 4, noise_std=NOISE,
            samples=DRAWS, sigmas=sigmas, generator=torch.Generator().manual_seed(2))

    def stacked(name: str) -> Callable[[priors.Prior], Any]:
        def run(prior: priors.Prior) -> Any:
            return getattr(samplers, name)(
                volume, A, prior, noise_std=NOISE, sigmas=sigmas,
                generator=torch.Generator().manual_seed(2))
        return run

    return {
        "dds (5 CG)": (drawn("dds"), True),
        "dds (15 CG)": (drawn("dds", cg_iterations=15), True),
        "ddnm": (drawn("ddnm"), True),
        "diffpir": (drawn("diffpir"), True),
        "red_diff": (drawn("red_diff"), True),
        "daps": (drawn("daps"), True),
        "smc": (drawn("smc"), True),
        "ads": (scanned, True),
        "mbir": (stacked("mbir"), True),
        "dps": (drawn("dps"), False),
        "pigdm": (drawn("pigdm"), False),
        "tmpd": (drawn("tmpd"), False),
        "twisted": (drawn("twisted"), False),
        "stsl": (drawn("stsl"), False),
    }


if __name__ == "__main__":
    main()
