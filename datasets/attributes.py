"""Which attributes of their own k-space files hand on: the acquisition's, by a list.

Whoever wrote an HDF5 or npz file chose its keys, and a patient may be behind any other: names and
comments, and numbers too, such as ``mrn`` or ``birth_date`` 19610203.
"""

import re
from collections.abc import Iterable

import numpy as np

TEXTS = ("acquisition", "sequence", "contrast")
"""Handed on whatever they hold: not to be used for a patient's."""
NUMBERS = (
    # of fastMRI's files
    "acceleration", "num_low_frequency", "num_low_frequencies", "max", "norm", "padding_left",
    "padding_right", "encoded", "recon",
    # of the measurement
    "tr", "te", "ti", "fa", "repetition_time", "echo_time", "inversion_time", "flip_angle",
    "echo_spacing", "echo_train_length", "etl", "bandwidth", "dwell", "dwell_time", "field", "b0",
    "field_strength", "frequency", "acceleration_factor", "center_fraction", "averages", "nex",
    "noise", "noise_std", "sigma", "snr", "scale", "seed",
    # of the image
    "coils", "slices", "pixel", "pixel_size", "voxel", "voxel_size", "fov", "field_of_view",
    "slice_thickness", "thickness", "slice_spacing", "spacing", "slice", "gap",
)  # fmt: skip
"""With ``_x``, ``_y``, ``_z`` or a digit behind them, and then a unit: ``te1_ms``, ``pixel_x_mm``.

Capitals are the same; arrays of numbers too.
"""
UNITS = ("um", "mm", "cm", "m", "us", "ms", "s", "hz", "khz", "mhz", "deg", "rad", "t", "mt")
_NUMBER = re.compile(rf"({'|'.join(NUMBERS)})(_?[xyz0-9])?(_({'|'.join(UNITS)}))?", re.IGNORECASE)


def of_the_acquisition(key: str, value: object) -> bool:
    """Whether a file's attribute says how was measured, and so may leave its reader."""
    if key.lower() in TEXTS:
        return True
    return bool(_NUMBER.fullmatch(key)) and np.asarray(value).dtype.kind in "biuf"


def told(left_out: Iterable[str]) -> list[str]:
    """The note on attributes left out, by their keys alone; none where there are none."""
    keys = sorted(key if key.isprintable() else ascii(key) for key in left_out)
    return [f"left out, as they may name a patient: {', '.join(keys)}"] if keys else []
