"""What files say of their own beside their arrays: the acquisition passes, a patient does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon import datasets
from recon.datasets import attributes
from tests.conftest import Ran

SECRETS: dict[str, Any] = {
    "name": "DOE JANE", "patient_name": "DOE^JANE", "patient_id": "MRN0012345", "mrn": 12345678,
    "birth_date": 19610203, "study_date": "20200102", "dob": "19610203", "operator": "Dr. Mabuse",
    "comment": "Jane Doe, ward 3", "note": "of Jane Doe", "te_name": "DOE", "tr": "DOE^JANE",
    "field": "19610203", "seed_of_patient": 19610203, "te12": 19610203, "max_weight_kg": 61.25,
}  # fmt: skip
PASS: dict[str, Any] = {
    "acquisition": "AXT2", "acceleration": 4, "num_low_frequency": 3, "max": 2.5, "norm": 80.5,
    "TE": 12.5, "te2_ms": 25.0, "tr_ms": 500.0, "voxel_x_mm": 0.7, "fov_y_mm": 220.0,
    "field_strength_T": 2.89, "slice_thickness_mm": 4.0, "sequence": "tse", "flip_angle_deg": 15,
}  # fmt: skip
VALUES = ("DOE", "Doe", "0012345", "12345678", "1961", "20200102", "Mabuse", "ward", "61.25")


def of_hdf5(folder: Path, about: dict[str, Any]) -> Path:
    kspace = torch.randn(1, 2, 16, 16, dtype=torch.complex64,
                         generator=torch.Generator().manual_seed(0))
    datasets.write_fastmri(folder / "a.h5", kspace, attributes=about)
    return folder / "a.h5"


def of_npz(folder: Path, about: dict[str, Any]) -> Path:
    kspace = np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.complex64)
    datasets.write_npz(folder / "a.npz", {"kspace": kspace, **about})
    return folder / "a.npz"


@pytest.mark.parametrize("write", [of_hdf5, of_npz])
def test_a_patient_stays_in_the_file(tmp_path: Path, recon: Callable[..., Ran],
                                     write: Callable[[Path, dict[str, Any]], Path]) -> None:
    path = write(tmp_path, SECRETS | PASS)
    found = datasets.open(path).attributes
    assert {key: found[key] for key in PASS} == PASS
    assert not found.keys() & SECRETS.keys() - {"note"}
    left_out = sorted(SECRETS.keys() - ({"patient_id"} if write is of_hdf5 else set()))
    assert f"left out, as they may name a patient: {', '.join(left_out)}" in str(found["note"])
    shown = recon("info", path)
    assert shown.code == 0
    for value in VALUES:
        assert value not in repr(found)
        assert value not in shown.out + shown.err
    assert "te2_ms: 25" in shown.out


def test_other_rules_let_a_patient_out() -> None:
    """A list of forbidden words, all numbers, and names that only begin as allowed ones do."""
    allowed = (*attributes.TEXTS, *attributes.NUMBERS)
    for planted in (
        [k for k in SECRETS if not any(word in k for word in ("patient", "birth", "uid"))],
        [k for k, value in SECRETS.items() if np.asarray(value).dtype.kind in "biuf"],
        [k for k in SECRETS if k.startswith(allowed)],
    ):
        assert planted
    assert not any(attributes.of_the_acquisition(key, value) for key, value in SECRETS.items())
    assert all(attributes.of_the_acquisition(key, value) for key, value in PASS.items())


def test_what_our_own_readers_say_passes(tmp_path: Path) -> None:
    """So that results of one program serve as another's input without losing pixels."""
    own = {"encoded_x": 320, "recon_y": 160, "pixel_y_mm": 1.25, "padding_left": 2,
           "repetition_time_ms": 10.0, "echo_time_ms": 3.0, "inversion_time_ms": 5.0,
           "coils": 2, "slices": 1}  # fmt: skip
    assert datasets.open(of_npz(tmp_path, own)).attributes == own


def test_odd_keys_are_told_in_a_form_that_prints() -> None:
    assert attributes.told(["b\n", "a\udc80"]) == [
        "left out, as they may name a patient: 'a\\udc80', 'b\\n'"]
    assert attributes.told([]) == []
