"""Forward models, and the linear algebra on them."""

from recon.operators import mri
from recon.operators.algebra import Identity, Scale, stack
from recon.operators.base import LinearOperator, Operator
from recon.operators.blur import Blur
from recon.operators.blur_kernels import gaussian_kernel, motion_kernel, shake_kernel
from recon.operators.blur_varying import VaryingBlur, region_weights
from recon.operators.check import OperatorReport, check
from recon.operators.colour import Greyscale, colour_filter
from recon.operators.counts import Counts, draw_counts
from recon.operators.ct import ConeBeamCT, FanBeamCT, ParallelBeamCT
from recon.operators.custom import from_functions, from_nonlinear, from_numpy
from recon.operators.hadamard import Hadamard, sequency
from recon.operators.interop import (
    from_deepinv,
    from_odl,
    from_scipy,
    from_sigpy,
    to_deepinv,
    to_odl,
)
from recon.operators.jpeg import JPEG, SmoothJPEG, StraightThroughJPEG
from recon.operators.masking import Masking, missing_block, random_pixels
from recon.operators.matrix import Matrix
from recon.operators.mri import CartesianMRI, NonCartesianMRI
from recon.operators.phase import PhaseRetrieval, random_phases
from recon.operators.resample import Downsampling
from recon.operators.sensor import (
    Clipping,
    NonlinearBlur,
    Quantisation,
    StraightThroughQuantisation,
)
from recon.operators.solve import ConjugateGradient, conjugate_gradient
from recon.operators.weighting import Weighting, Whitened, whitened
from recon.space import Space

__all__ = [
    "JPEG",
    "Blur",
    "CartesianMRI",
    "Clipping",
    "ConeBeamCT",
    "ConjugateGradient",
    "Counts",
    "Downsampling",
    "FanBeamCT",
    "Greyscale",
    "Hadamard",
    "Identity",
    "LinearOperator",
    "Masking",
    "Matrix",
    "NonCartesianMRI",
    "NonlinearBlur",
    "Operator",
    "OperatorReport",
    "ParallelBeamCT",
    "PhaseRetrieval",
    "Quantisation",
    "Scale",
    "SmoothJPEG",
    "Space",
    "StraightThroughJPEG",
    "StraightThroughQuantisation",
    "VaryingBlur",
    "Weighting",
    "Whitened",
    "check",
    "colour_filter",
    "conjugate_gradient",
    "draw_counts",
    "from_deepinv",
    "from_functions",
    "from_nonlinear",
    "from_numpy",
    "from_odl",
    "from_scipy",
    "from_sigpy",
    "gaussian_kernel",
    "missing_block",
    "motion_kernel",
    "mri",
    "random_phases",
    "random_pixels",
    "region_weights",
    "sequency",
    "shake_kernel",
    "stack",
    "to_deepinv",
    "to_odl",
    "whitened",
]
