"""Print every operator of the tests beside every promise: ``python tests/benchmarks/contract.py``.

A mark says that the promise was measured and kept, ``-`` that it does not apply (one of a linear
operator asked of a nonlinear one), FAIL that it was broken. The last lines are the planted faults,
each with the promise that has to find it. Exits with 1 if a row fails or a fault is missed.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from recon.operators import check

TESTS = Path(__file__).parents[1] / "operators"


def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", TESTS / "test_contract.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/operators/test_contract.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    torch.set_num_threads(1)
    tests, bad = table(), 0
    names: list[str] = []
    groups = [("linear", tests.OPERATORS, ((), (3,), (2, 3))),
              ("one for each item", tests.PER_ITEM, ((3,), (2, 3))),
              ("nonlinear", tests.NONLINEAR, ((), (3,), (2, 3)))]
    for title, operators, batches in groups:
        print(f"\n{title}")
        for name, build in operators.items():
            report = check(build(), batches=batches)
            if not names:
                names = [row.name for row in report.rows] + ["vjp by differences"]
                print("\n".join(f"{' ' * 42}{'|  ' * i}+- {n}" for i, n in enumerate(names)))
            found = {row.name: "ok" if row.passed else "FAIL" for row in report.rows}
            marks = " ".join(f"{found.get(n, '-'):<2}" for n in names)
            print(f"{name:<42}{marks}  norm {report.norm:.3g}, {report.milliseconds:.2g} ms")
            bad += not report.passed
    print("\nplanted faults")
    for name, (row, build) in tests.FAULTS.items():
        failed = [r.name for r in check(build()).rows if not r.passed]
        print(f"{name:<42}{'found by ' + row if row in failed else 'MISSED by ' + row}")
        bad += row not in failed
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
