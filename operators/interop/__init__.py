"""Operators of other libraries as ours, and ours as theirs; each imported only when used."""

from recon.operators.interop.deepinv import from_deepinv, to_deepinv
from recon.operators.interop.odl import from_odl, to_odl
from recon.operators.interop.scipy import from_scipy
from recon.operators.interop.sigpy import from_sigpy

__all__ = ["from_deepinv", "from_odl", "from_scipy", "from_sigpy", "to_deepinv", "to_odl"]
