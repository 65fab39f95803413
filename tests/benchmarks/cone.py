"""Time ConeBeamCT against mbirjax: ``python tests/benchmarks/cone.py --mbirjax ENV/bin/python``.

64^3 voxels, 60 views of a full turn, 96 x 96 detector pixels, float32, CPU time of one thread.
mbirjax brings jax and wants an environment of its own, whose interpreter is given; it runs as a
second process before and after ours, and the ratio is to the faster of the two.
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from recon.operators import ConeBeamCT

GOALS = {"forward": 3.0, "adjoint": 2.0}
PEER = """
import statistics, time
import jax, jax.numpy as jnp, mbirjax, numpy as np
model = mbirjax.ConeBeamModel((60, 96, 96), jnp.linspace(0, 2 * np.pi, 60, endpoint=False),
                              source_detector_dist=300.0, source_iso_dist=200.0)
model.set_params(recon_shape=(64, 64, 64), delta_det_row=1.5, delta_det_channel=1.5,
                 delta_voxel=1.0)
x = jnp.asarray(np.random.rand(64, 64, 64).astype(np.float32))
y = model.forward_project(x)
for name, call in (("forward", lambda: model.forward_project(x)),
                   ("adjoint", lambda: model.back_project(y))):
    jax.block_until_ready(call())
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - begin)
    print("took", name, 1e3 * statistics.median(times))
"""
ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
              "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return 1e3 * statistics.median(times)


def peer(python: str, rounds: int) -> dict[str, float]:
    done = subprocess.run(["taskset", "-c", "0", python, "-c", PEER.replace("ROUNDS", str(rounds))],
                          env=ONE_THREAD, capture_output=True, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("took"))
    return {name: float(took) for _, name, took in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mbirjax", metavar="PYTHON", help="interpreter that has mbirjax")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    turn = torch.arange(60, dtype=torch.float64) * 2 * torch.pi / 60
    A = ConeBeamCT(64, turn, (96, 96), 200.0, 100.0, detector_spacing=1.5, backend="numba")
    x = torch.rand(1, 64, 64, 64)
    y = A(x)
    before = peer(args.mbirjax, args.rounds) if args.mbirjax else {}
    ours = {"forward": milliseconds(lambda: A(x), args.rounds),
            "adjoint": milliseconds(lambda: A.adjoint(y), args.rounds)}
    after = peer(args.mbirjax, args.rounds) if args.mbirjax else {}
    for name, took in ours.items():
        if not args.mbirjax:
            print(f"{name}: {took:.0f} ms; mbirjax not run")
            continue
        ratio = min(before[name], after[name]) / took
        verdict = "met" if ratio >= GOALS[name] else "MISSED"
        print(f"{name}: {took:.0f} ms, mbirjax {before[name]:.0f} and {after[name]:.0f} ms, ratio "
              f"{ratio:.1f}, goal {GOALS[name]:.0f}: {verdict}")


if __name__ == "__main__":
    main()
