"""SigPy's linear operators."""

from typing import Any

from recon.operators.base import LinearOperator
from recon.operators.foreign import Foreign, through_numpy
from recon.space import Space


def from_sigpy(linop: Any, domain: Space, range: Space) -> LinearOperator:  # noqa: A002
    """A ``sigpy.linop.Linop``, applied on the CPU, one call for each item of a batch.

    ``domain`` and ``range`` say what SigPy does not: whether numbers are real or complex. Their
    shapes are those of ``linop.ishape`` and ``linop.oshape``, with any number of leading ones more
    (SigPy's ``(height, width)`` is ``(1, height, width)`` here).
    """
    if not all(hasattr(linop, name) for name in ("ishape", "oshape", "H")):
        raise TypeError(f"from_sigpy: want a sigpy.linop.Linop, got {type(linop).__name__}")
    ishape, oshape = tuple(linop.ishape), tuple(linop.oshape)
    for name, space, shape in (("domain", domain, ishape), ("range", range, oshape)):
        if _bare(space.shape) != _bare(shape):
            raise ValueError(f"from_sigpy: want a {name} of {shape}, with leading ones if need be, "
                             f"got {space.shape}")
    adjoint = linop.H
    return Foreign(
        through_numpy("from_sigpy", lambda x: linop(x.reshape(ishape)).reshape(range.shape),
                      range),
        through_numpy("from_sigpy", lambda y: adjoint(y.reshape(oshape)).reshape(domain.shape),
                      domain, real_part=True),
        domain, range)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
