"""What an operator promises, measured: run it on any operator before trusting a reconstruction."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from recon.operators.base import LinearOperator, Operator
from recon.operators.check_cost import milliseconds, peak_bytes
from recon.operators.check_rules import (
    LIMITS,
    LINEAR_ONLY,
    RULES,
    Case,
    CheckRow,
    converted,
    in_precision,
    row,
)

__all__ = ["CheckRow", "OperatorReport", "check"]


@dataclass(frozen=True)
class OperatorReport:
    """What ``check`` found; print it for a table.

    ``linear`` is measured, not declared. ``norm`` is the largest singular value, approached from
    below by power iteration (NaN for a nonlinear operator); ``milliseconds`` the median time of
    one forward and one adjoint (or vjp) at the first batch, ``peak_bytes`` the most that these two
    hold at once beside their arguments and the operator (NaN and 0 where they raise).
    """

    label: str
    rows: tuple[CheckRow, ...]
    linear: bool
    norm: float
    milliseconds: float
    peak_bytes: int

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"{self.label}: {sum(row.passed for row in self.rows)} of {len(self.rows)} passed; "
            f"linear: {'yes' if self.linear else 'no'}; norm {self.norm:.4g}; "
            f"{self.milliseconds:.3g} ms; peak {_readable(self.peak_bytes)}",
        ]
        for found in self.rows:
            mark = "ok  " if found.passed else "FAIL"
            limit = f" <= {found.limit:.0e}" if found.limit else ""
            numbers = f"{found.value:8.1e}{limit}"
            lines.append(f"  {mark}  {found.name:<{width}}  {numbers:<17}  {found.advice}".rstrip())
        return "\n".join(lines)

    def raise_if_failed(self) -> None:
        """Raise ValueError with the table unless every row passed."""
        if not self.passed:
            raise ValueError(str(self))


def check(A: Operator, *, batches: Sequence[tuple[int, ...]] = ((), (3,), (2, 3)),
          scales: Sequence[float] = (1e-6, 1.0, 1e6),
          precisions: Sequence[torch.dtype] = (torch.float32, torch.float64),
          seed: int = 0) -> OperatorReport:
    """Measure whether ``A`` is what the rest of the package takes it for.

    Parameters
    ----------
    A
        Any operator. A linear one is held to linearity, its adjoint, ``normal`` and ``solve``; a
        nonlinear one to a ``vjp`` that agrees with finite differences.
    batches
        Leading shapes to try. An operator that holds one mask, kernel or coil map per item wants
        shapes that fit them, such as ``((3,), (2, 3))`` for three masks.
    scales
        Factors on the input; far from 1 they show absolute thresholds and constant terms.
    precisions
        Real dtypes to try; complex spaces take the complex dtype of that precision.

    Errors are relative, per item, against 1e-5 in float32 and 1e-11 in float64.
    """
    if not isinstance(A, Operator):
        raise TypeError(f"check: want an Operator, got {type(A).__name__}: "
                        "wrap functions with from_functions")
    if not (batches and scales and precisions) or any(p not in LIMITS for p in precisions):
        raise ValueError("check: want at least one batch, scale and precision, the latter of "
                         f"float32 and float64, got {batches}, {scales}, {precisions}")
    device = next((t.device for t in [*A.parameters(), *A.buffers()]), torch.device("cpu"))
    linear = isinstance(A, LinearOperator)
    with torch.inference_mode(False), torch.no_grad():
        cases = [Case(cast(LinearOperator, A), p, tuple(b), 1.0, seed, device, 1.0)
                 for p in precisions for b in batches]
        # copied before anything is called, so that a cache is filled under our eyes
        fresh = [case._replace(A=converted(case)) for case in cases]
        unit = [case._replace(A=in_precision(case)) for case in cases]
        norm = _or_nan(unit[0].norm) if linear else math.nan
        unit = [case._replace(size=norm if norm > 0 else 1.0) for case in unit]
        kinds = {
            "as given": cases,
            "fresh": fresh,
            "unit": unit,
            "scaled": [case._replace(scale=s) for case in unit for s in scales],
            "last": [case._replace(scale=s) for case in unit[len(batches) - 1 :: len(batches)]
                     for s in scales],  # fewer, where one measurement takes many evaluations
            # differences want double precision, which a single-precision library does not have
            "double": [] if torch.float64 not in precisions else [
                cases[0]._replace(precision=torch.float64, A=in_precision(
                    cases[0]._replace(precision=torch.float64)))],
            "float64": [double._replace(A=in_precision(double)) for double in
                        (c._replace(precision=torch.float64) for c in cases[: len(batches)])],
        }
        found = {name: row(name, kinds) for name in RULES if linear or name not in LINEAR_ONLY}
        is_linear = found["additivity"].passed and found["homogeneity"].passed
        for name in ("vjp by differences",) if linear else ("additivity", "homogeneity"):
            del found[name]  # true or not, no promise of this kind of operator
        first = unit[0]
        return OperatorReport(
            A.label(), tuple(found.values()), is_linear, norm,
            _or_nan(lambda: milliseconds(first.A, first.x(), first.y())),
            int(_or_nan(lambda: peak_bytes(first.A, first.x(), first.y()), 0)))


def _or_nan(measure: Callable[[], float], otherwise: float = math.nan) -> float:
    with contextlib.suppress(Exception):  # the rows say what is wrong
        return measure()
    return otherwise


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
