"""The snippet of docs/mri.md runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mri.md"


def test_snippet() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    x, image, gridded = names["x"], names["image"], names["gridded"]
    assert float((image - x).norm() / x.norm()) < 0.1
    assert names["k"].shape == (40, 64, 2)
    assert abs(float(names["noise_std"]) / (0.01 / 2**0.5) - 1) < 0.05
    power = names["maps"].abs().square().sum(0)
    assert float((gridded - power * x).norm() / (power * x).norm()) < 0.2
