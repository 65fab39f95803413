"""The code of docs/operators.md runs as it stands, and names every operator there is."""

import re
from pathlib import Path
from typing import Any

import pytest

from recon import operators
from recon.operators import Operator

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    there: dict[str, Any] = {"__name__": "page"}
    for part in CODE:
        exec(compile(part, "docs/operators.md", "exec"), there)
    assert "Weigh[(1, 8, 8) -> (1, 8, 8)]: 17 of 17 passed" in capsys.readouterr().out
    assert there["x"].shape == (2, 2, 8, 8)
    assert len(CODE) == 7


def test_page_names_every_operator() -> None:
    public = [name for name in operators.__all__ if isinstance(getattr(operators, name), type)
              and issubclass(getattr(operators, name), Operator)]
    assert len(public) > 20
    for name in {*public} - {"Operator", "LinearOperator"}:
        assert f"`{name}`" in PAGE, name
    for name in re.findall(r"`((?:from|to)_\w+)[(`]", PAGE):
        assert name in operators.__all__
