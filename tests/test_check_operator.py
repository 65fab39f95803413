"""``recon check operator``: what it prints, what it exits with, what it says of wrong targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Recon = Callable[..., Any]

MODULE = '''
import numpy as np
import torch
from recon.operators import Blur, Masking, Space, from_functions, from_numpy

SPACE = Space((1, 6, 5))
blur = Blur(torch.ones(3, 3) / 9, SPACE)
wrong = from_functions(lambda x: x.cumsum(-1), lambda y: y.cumsum(-1), domain=SPACE, range=SPACE)
single = from_numpy(lambda x: np.float32(x).cumsum(-1),
                    lambda y: np.float32(y)[..., ::-1].cumsum(-1)[..., ::-1],
                    domain=SPACE, range=SPACE)
kernels = Blur(torch.rand(3, 1, 2, 2), SPACE)
number = 3

class Box:
    inside = blur

def build():
    return blur

def of_size(n):
    return Blur(torch.ones(n, n), SPACE)

def no_operator():
    return 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"operators_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_sound_operator_is_a_table_and_exits_with_0(recon: Recon, module: str) -> None:
    for target in (f"{module}:blur", f"{module}.py:build", f"{module}:Box.inside"):
        ran = recon("check", "operator", target)
        assert ran.code == 0, ran.err
        assert ran.out.startswith("Blur[(1, 6, 5) -> (1, 6, 5)]: 17 of 17 passed; linear: yes; ")
        for part in ("norm 1;", " ms; peak ", "ok    gradcheck", "ok    state_dict",
                     "ok    .to()", "ok    deepcopy"):
            assert part in ran.out


def test_a_fault_exits_with_1_and_says_how_to_mend_it(recon: Recon, module: str) -> None:
    ran = recon("check", "operator", f"{module}:wrong")
    assert ran.code == 1
    (row,) = [line for line in ran.out.splitlines() if line.startswith("  FAIL  adjoint ")]
    assert "conjugate, transpose and sum; or delete adjoint, and autograd gives it" in row


def test_single_precision_and_batches_are_options(recon: Recon, module: str) -> None:
    assert recon("check", "operator", f"{module}:single").code == 1
    assert recon("check", "operator", f"{module}:single", "--precision", "float32").code == 0
    assert recon("check", "operator", f"{module}:kernels").code == 1
    assert recon("check", "operator", f"{module}:kernels", "--batch", 3, "--batch", "2,3").code == 0


@pytest.mark.parametrize(("target", "message"), [
    ("{m}", "want MODULE:OBJECT, as my_module:A or my_file.py:A"),
    ("{m}:blr", "has no 'blr': it has blur, wrong, single, kernels, build, of_size, no_operator"),
    ("{m}:number", "want an Operator or a function that returns one, got int"),
    ("{m}:of_size", "wants n: name an operator that is built"),
    ("{m}:no_operator", "gives int, want an Operator"),
    ("absent_file.py:A", "absent_file.py: no such file"),
    ("absent_module:A", "No module named 'absent_module'"),
])
def test_wrong_targets_are_one_line(recon: Recon, module: str, target: str, message: str) -> None:
    ran = recon("check", "operator", target.format(m=module))
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


def test_wrong_batch_is_one_line(recon: Recon, module: str) -> None:
    ran = recon("check", "operator", f"{module}:blur", "--batch", "2,x")
    assert (ran.code, ran.err) == (2, "recon: --batch wants sizes, as 3 or 2,3, got '2,x'\n")
