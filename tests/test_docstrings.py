"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import recon
from recon import datasets, integrators, metrics, operators, priors, samplers
from recon.integrators import schedules
from recon.operators import Space, ct, mri
from recon.operators.mri import masks, trajectories

HOUSE: dict[str, Any] = {
    **vars(priors), **vars(samplers), **vars(metrics), **vars(integrators), **vars(operators),
    **vars(recon), **vars(ct), **vars(mri), "Space": Space, "ct": ct, "datasets": datasets,
    "integrators": integrators, "masks": masks, "math": math, "metrics": metrics, "mri": mri,
    "nn": torch.nn, "np": np, "operators": operators, "priors": priors, "recon": recon,
    "samplers": samplers, "schedules": schedules, "torch": torch, "trajectories": trajectories}
"""What an example may take for granted, beside its module: the public names of the rooms."""


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(recon.__path__, "recon."):
        # what imports an extra at its top: a GPU's compiler, and numba, whose code has no examples
        if not found.name.endswith(("__main__", "_triton", "_numba")):
            yield importlib.import_module(found.name)


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        for test in finder.find(module, module.__name__):
            if test.examples:
                yield test


def failures(test: doctest.DocTest) -> str:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=told.append)
    return "".join(told)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name.removeprefix("recon."))
def test_examples(test: doctest.DocTest, tmp_path: Path,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    test.globs = HOUSE | test.globs
    assert failures(test) == ""


def test_a_wrong_example_is_told() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert "Expected:" in failures(wrong)
