"""Time volumes against mbirjax: ``python tests/benchmarks/cone.py --mbirjax ENV/bin/python``.

Cone beam: 64^3 voxels, 60 views of a full turn, 96 x 96 detector pixels. Parallel beam: a stack of
8 slices of 256^2, 60 views, 363 bins. float32, CPU time of one thread.
mbirjax brings jax and wants an environment of its own, whose interpreter is given; it runs as a
second process before and after ours, and the ratio is to the faster of the two.
"""

import argparse
import functools
import statistics
import subprocess
import time
from collections.abc import Callable

import torch

from recon.operators import ConeBeamCT, LinearOperator, ParallelBeamCT

GOALS = {"cone": {"forward": 3.0, "adjoint": 2.0}, "stack": {"forward": 5.0, "adjoint": 5.0}}
MODELS = {"cone": """
model = mbirjax.ConeBeamModel((60, 96, 96), jnp.linspace(0, 2 * np.pi, 60, endpoint=False),
                              source_detector_dist=300.0, source_iso_dist=200.0)
shape = (64, 64, 64)
model.set_params(recon_shape=shape, delta_det_row=1.5, delta_det_channel=1.5, delta_voxel=1.0)
""", "stack": """
model = mbirjax.ParallelBeamModel((60, 8, 363), jnp.linspace(0, np.pi, 60, endpoint=False))
shape = (256, 256, 8)
model.set_params(recon_shape=shape, delta_det_row=1.0, delta_det_channel=1.0, delta_voxel=1.0)
"""}
PEER = """
import statistics, time
import jax, jax.numpy as jnp, mbirjax, numpy as np
MODEL
x = jnp.asarray(np.random.rand(*shape).astype(np.float32))
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


def peer(python: str, model: str, rounds: int) -> dict[str, float]:
    code = PEER.replace("MODEL", MODELS[model]).replace("ROUNDS", str(rounds))
    done = subprocess.run(["taskset", "-c", "0", python, "-c", code],
                          env=ONE_THREAD, capture_output=True, text=True, check=True)
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("took"))
    return {name: float(took) for _, name, took in lines}


def operators() -> dict[str, tuple[LinearOperator, torch.Tensor]]:
    """Each with what it takes; the slices of a stack are a batch."""
    turn = torch.arange(60, dtype=torch.float64) * torch.pi / 60
    return {
        "cone": (ConeBeamCT(64, 2 * turn, (96, 96), 200.0, 100.0, detector_spacing=1.5,
                            backend="numba"), torch.rand(1, 64, 64, 64)),
        "stack": (ParallelBeamCT(256, turn, 363), torch.rand(8, 1, 256, 256)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mbirjax", metavar="PYTHON", help="interpreter that has mbirjax")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model, (A, x) in operators().items():
        y = A(x)
        before = peer(args.mbirjax, model, args.rounds) if args.mbirjax else {}
        ours = {"forward": milliseconds(functools.partial(A, x), args.rounds),
                "adjoint": milliseconds(functools.partial(A.adjoint, y), args.rounds)}
        after = peer(args.mbirjax, model, args.rounds) if args.mbirjax else {}
        for name, took in ours.items():
            if not args.mbirjax:
                print(f"{model} {name}: {took:.1f} ms; mbirjax not run")
                continue
            ratio, goal = min(before[name], after[name]) / took, GOALS[model][name]
            print(f"{model} {name}: {took:.1f} ms, mbirjax {before[name]:.0f} and "
                  f"{after[name]:.0f} ms, ratio {ratio:.1f}, goal {goal:.0f}: "
                  f"{'met' if ratio >= goal else 'MISSED'}")


if __name__ == "__main__":
    main()
