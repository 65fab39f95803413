"""The yardstick: every sampler against posteriors known in closed form, as one table."""

import csv
import importlib
import inspect
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import recon
from recon import datasets, samplers
from recon.files import refuse_results
from recon.progress import Bar
from recon.reconstruct import is_classical, sampler_named
from recon.report import markdown
from recon.yardstick import problems
from recon.yardstick.posterior import Measures, PosteriorReport, evaluate_posterior, floor
from recon.yardstick.problems import Problem

STEPS = 100

# What each sampler is run with besides STEPS noise levels: one row for each, the paper's defaults
# where nothing is said.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "dds": {"dds": {}, "dds, released": {"rule": "released", "gamma": 1.0}},
}
LEFT_OUT = {
    "ads": "chooses its measurements",
    "diffusion_mbir": "wants volumes",
    "mbir": "wants volumes",
}

# How to make each problem, and by what its draws and fresh pairs are divided: images cost more.
PROBLEMS: dict[str, tuple[Callable[[], Problem], int]] = {
    "gaussian": (problems.gaussian, 1),
    "four_modes": (problems.four_modes, 1),
    "five_modes": (problems.five_modes, 1),
    "mcgdiff_mixture": (problems.mcgdiff_mixture, 1),
    "stationary_pixels": (lambda: problems.stationary("pixels", size=16), 4),
    "stationary_frequencies": (lambda: problems.stationary("frequencies", size=8), 4),
    "multicoil": (lambda: problems.multicoil(size=8, coils=2), 8),
}
LEAST_PAIRS = 50

COLUMNS = ("sampler", "mean", "cov", "var", "modes", "sW2", "sW2/floor", "ranks p", "misfit",
           "fresh misfit", "net", "back", "A", "s")


class Row(NamedTuple):
    """One sampler on one problem: what was found, or why nothing was."""

    problem: str
    label: str
    settings: dict[str, Any]
    report: PosteriorReport | None
    failure: str = ""
    warned: tuple[str, ...] = ()


class Method(NamedTuple):
    """A line of every table."""

    label: str
    sampler: Callable[..., Any]
    settings: dict[str, Any]


def run(wanted: Sequence[str] | None = None, on: Sequence[str] | None = None, *,
        own: str | None = None, samples: int = 512, seeds: int = 8, calibration: int = 200,
        out: Sequence[Path] = (), overwrite: bool = False, progress: bool = True,
        say: Callable[[str], None] = print) -> list[Row]:
    """Measure samplers on closed-form problems, say the tables and write them to ``out``.

    ``wanted`` names samplers of ``recon.samplers`` and ``on`` problems, None for all; ``own`` is a
    function of the user's, ``module:function``, alone unless samplers are named as well. A sampler
    that fails on a problem has the reason in its line. ``out`` are ``.md``, ``.json`` and ``.csv``.
    """
    for path in out:
        if path.suffix not in _WRITERS:
            raise ValueError(f"cannot write {path.name}: want a name ending in .md, .json or .csv")
    refuse_results(out, overwrite)
    methods = [] if own is not None and wanted is None else _methods(wanted)
    if own is not None:
        methods.append(Method(own.partition(":")[2], _imported(own), {}))
    names = list(PROBLEMS) if on is None else list(on)
    if unknown := [name for name in names if name not in PROBLEMS]:
        raise ValueError(f"no problem {unknown[0]!r}: want one of {', '.join(PROBLEMS)}")
    if samples < 8 or seeds < 1 or (calibration < 10 and calibration != 0):
        raise ValueError("want at least 8 samples, 1 seed and calibration 0 or at least 10, got "
                         f"{samples}, {seeds} and {calibration}")
    rows, tables = [], []
    with Bar(progress, len(methods) * len(names), "yardstick") as advance:
        for name in names:
            make, divisor = PROBLEMS[name]
            problem, draws = make(), max(8, samples // divisor)
            pairs = calibration and max(calibration // divisor, min(calibration, LEAST_PAIRS))
            found = []
            for method in methods:
                found.append(_row(method, problem, name, draws, seeds, pairs))
                advance()
            rows += found
            tables.append(_table(problem, name, found, floor(problem, draws), draws, pairs))
            say(tables[-1])
    text = _TEXT.format(
        version=recon.__version__, torch=torch.__version__, samples=samples, seeds=seeds,
        calibration=calibration, tables="\n".join(tables), steps=STEPS,
        settings="\n".join(f"- `{m.label}`: {_described(m.settings)}" for m in methods),
        left_out="; ".join(f"`{name}` {why}" for name, why in LEFT_OUT.items()))
    for path in out:
        path.parent.mkdir(parents=True, exist_ok=True)
        with datasets.replacing(path, overwrite=overwrite) as (part,):
            part.write_text(_WRITERS[path.suffix](rows, text))
    return rows


def _methods(wanted: Sequence[str] | None) -> list[Method]:
    if wanted is None:
        everything = {name: getattr(samplers, name) for name in sorted(samplers.__all__)}
        wanted = [name for name, method in everything.items()
                  if isinstance(method, samplers.Sampler) and name not in LEFT_OUT
                  and not is_classical(method)]
    methods = []
    for name in wanted:
        sampler = sampler_named(name)
        if name in LEFT_OUT or is_classical(sampler):
            why = LEFT_OUT.get(name, "has one answer and no draws")
            raise ValueError(f"{name} cannot be measured against these posteriors: it {why}")
        common = {"steps": STEPS} if "steps" in inspect.signature(sampler).parameters else {}
        methods += [Method(label, sampler, common | settings)
                    for label, settings in SETTINGS.get(name, {name: {}}).items()]
    return methods


def _imported(own: str) -> Callable[..., Any]:
    """The function ``module:function``, looked for in the working directory as well."""
    module, _, name = own.partition(":")
    if not module or not name:
        raise ValueError(f"a sampler of your own wants module:function, got {own!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"{own}: {module} has no function {name}")
    return found


def _row(method: Method, problem: Problem, name: str, draws: int, seeds: int, pairs: int) -> Row:
    report, failure = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            report = evaluate_posterior(method.sampler, problem, samples=draws, seeds=seeds,
                                        calibration=pairs, settings=method.settings)
        except Exception as error:  # whatever a sampler raises is a result, in its own line
            failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
    told = dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
    return Row(name, method.label, method.settings, report, failure, tuple(told))


def _table(problem: Problem, name: str, rows: Sequence[Row], exact: Measures, draws: int,
           pairs: int) -> str:
    summary = (inspect.getdoc(getattr(problems, _maker(name))) or "").partition("\n")[0]
    lines = [_cells("exact draws", exact, exact)]
    notes = []
    for row in rows:
        if row.report is None:
            lines.append([row.label, "failed", *[""] * (len(COLUMNS) - 2)])
            notes.append(f"- {row.label} failed: {row.failure}")
        else:
            lines.append(_cells(row.label, row.report.found, exact, row.report))
        notes += [f"- {row.label} warned: {text}" for text in row.warned]
    shape = " x ".join(map(str, problem.operator.domain.shape))
    kind = "complex" if problem.prior.is_complex else "real"
    head = (f"### {name}\n\n{summary} Images {shape}, {kind}; {draws} draws a run, {pairs} fresh "
            f"pairs.\n")
    return "\n".join([head, markdown(COLUMNS, lines), *([""] if notes else []), *notes, ""])


def _maker(name: str) -> str:
    return "stationary" if name.startswith("stationary") else name


def _cells(label: str, found: Measures, exact: Measures,
           report: PosteriorReport | None = None) -> list[str]:
    cells = [label, *(_number(value) for value in found[:5]),
             f"{found.sliced_w2 / exact.sliced_w2:.2f}"]
    if report is None:
        return [*cells, "", _number(exact.misfit), "1", "", "", "", ""]
    return [*cells, _probability(report.calibration_p), _number(found.misfit),
            _number(report.fresh_misfit), f"{report.network_calls:.4g}",
            f"{report.network_backward:.4g}", f"{report.operator_calls:.4g}",
            f"{report.seconds:.2g}"]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _probability(p: float) -> str:
    return "" if math.isnan(p) else "< 1e-6" if p < 1e-6 else f"{p:.2g}"


def _described(settings: dict[str, Any]) -> str:
    return ", ".join(f"`{k}={v!r}`" for k, v in settings.items()) or "its defaults"


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"problem": row.problem, "sampler": row.label,
                             "settings": row.settings, "failure": row.failure,
                             "warned": list(row.warned)}
    r = row.report
    if r is not None:
        found |= {"samples": r.samples, "seeds": r.seeds, "weighted": r.weighted}
        found |= r.found._asdict()
        found |= {f"floor_{k}": v for k, v in r.floor._asdict().items()}
        found |= {"sliced_w2_ratio": r.sliced_w2_ratio, "calibration_p": r.calibration_p,
                  "fresh_misfit": r.fresh_misfit, "fresh_misfit_error": r.fresh_misfit_error,
                  "network_calls": r.network_calls, "network_backward": r.network_backward,
                  "operator_calls": r.operator_calls, "seconds": r.seconds}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in found.items()}


def _json(rows: Sequence[Row], _: str) -> str:
    return json.dumps([_flat(row) for row in rows], indent=1) + "\n"


def _csv(rows: Sequence[Row], _: str) -> str:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


_WRITERS: dict[str, Callable[[Sequence[Row], str], str]] = {
    ".md": lambda _, text: text, ".json": _json, ".csv": _csv}

_TEXT = """# The yardstick

Every sampler against posteriors that are known in closed form. The prior is exact, so whatever is
wrong here is the sampler's approximation, its settings or a fault, never a network.

Written by `recon yardstick --samples {samples} --seeds {seeds} --calibration {calibration}` with
recon {version} and torch {torch}; `recon.evaluate_posterior` gives the same numbers for one sampler
on one problem, also for a function of your own.

- The first line of each table is the floor: as many exact draws, measured in the same way. Nothing
  can be better but by chance. Weighted particles are measured with their weights.
- **mean**: error of the mean in posterior standard deviations, root mean square over seeds.
  **cov**: relative error of the covariance. **var**: variance of the draws over the true one; below
  1 the sampler is too sure. **modes**: total variation between mode weights.
- **sW2**: sliced 2-Wasserstein distance in units of the image; **sW2/floor** in units of the floor:
  1 is perfect. Exact draws of 8 seeds scatter up to 1.1, where there are several modes up to 1.3.
- **ranks p**: p value of the ranks of the truth among draws, over fresh pairs: small where stated
  uncertainties are wrong. Draws of the prior would pass it, so read it with the others.
- **misfit**: `||y - A x||^2 / (m noise_std^2)` of the draws; the first line has the posterior's.
  **fresh misfit**: the same over fresh pairs, where the truth is 1: less fits the noise, more
  neglects the data.
- **net**, **back**, **A**: network calls forward and backward and operator calls, for each draw;
  **s**: seconds of processor time for all of them.

What is left out: {left_out}; classical methods have no draws.

Settings, the papers' defaults but for {steps} noise levels where nothing else is said:

{settings}

{tables}"""
