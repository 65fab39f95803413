"""Forward models, and the linear algebra on them."""

from recon.operators import mri
from recon.operators.algebra import Identity, Scale, stack
from recon.operators.base import LinearOperator, Operator
from recon.operators.blur import Blur
from recon.operators.blur_kernels import gaussian_kernel, motion_kernel, shake_kernel
from recon.operators.blur_varying import VaryingBlur, region_weights
from recon.operators.check import OperatorReport, check
from recon.operators.ct import ParallelBeamCT
from recon.operators.custom import from_functions, from_nonlinear
from recon.operators.masking import Masking
from recon.operators.mri import CartesianMRI
from recon.operators.solve import ConjugateGradient, conjugate_gradient
from recon.space import Space

__all__ = [
    "Blur",
    "CartesianMRI",
    "ConjugateGradient",
    "Identity",
    "LinearOperator",
    "Masking",
    "Operator",
    "OperatorReport",
    "ParallelBeamCT",
    "Scale",
    "Space",
    "VaryingBlur",
    "check",
    "conjugate_gradient",
    "from_functions",
    "from_nonlinear",
    "gaussian_kernel",
    "motion_kernel",
    "mri",
    "region_weights",
    "shake_kernel",
    "stack",
]
