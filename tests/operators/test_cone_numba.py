"""Compiled loops of cone beams: kept on disk where that can be, compiled each time where not."""

from collections.abc import Callable
from typing import Any

import pytest

numba = pytest.importorskip("numba", reason="the extra `numba` is not installed")
from recon.operators.ct import cone_numba  # noqa: E402


def test_what_is_compiled_is_kept() -> None:
    for loop in (cone_numba._project, cone_numba._backproject):
        assert loop.stats.cache_path


def test_where_nothing_can_be_written_it_is_compiled_each_time(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(**options: Any) -> Callable[..., Any]:
        def compiled(loop: Callable[..., Any]) -> Any:
            if options.pop("cache", False):
                raise RuntimeError("cannot cache function: no locator available")
            return loop, options

        return compiled

    monkeypatch.setattr(numba, "njit", njit)
    assert cone_numba._compiled(print) == (print, {"parallel": True})
