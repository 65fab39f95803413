"""What a person reads after an evaluation: a table with intervals, and three slices a sampler."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recon import datasets
from recon.evaluation.live import psnr_of
from recon.evaluation.plan import Cell, Plan, cells, place_of
from recon.evaluation.records import Record, read_records
from recon.evaluation.store import key_of, submission_path
from recon.evaluation.subject import open_subject
from recon.metrics.conventions import Score, SliceSums, fastmri_from_slices
from recon.metrics.ct import MU_WATER
from recon.report import grid, markdown
from recon.report.figure import Panel

CONFIDENCE = 0.95


class Volume(NamedTuple):
    """One volume's scores by one sampler, averaged over seeds."""

    file: str
    nmse: float
    psnr: float
    ssim: float


def volume_score(records: Sequence[Record]) -> Score:
    """NMSE, PSNR and SSIM of a volume from its slices, by fastMRI's rules."""
    return fastmri_from_slices([SliceSums(*(r[name] for name in SliceSums._fields))
                                for r in records])


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; NaN for fewer than two."""
    from scipy.stats import t

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return mean, quantile * math.sqrt(variance / len(values))


def summarise(folder: Path, out: Path, plan: Plan, *, fresh: bool = True) -> None:
    """Write ``summary.md`` and a figure per sampler and sampling from what lies in ``out``.

    Without ``fresh`` nothing was computed since figures were made, and those there are kept.
    """
    records = {key_of(record): record for record in read_records(out / "records.jsonl")}
    figures = []
    for label in dict.fromkeys(cell.sampling.label for cell in cells(plan)):
        for sampler in plan.settings.samplers:
            name = f"slices-{sampler}-{label}.png"
            kept = not fresh and (out / name).exists()
            if kept or _figure(folder, out, plan, records, sampler, label, out / name):
                figures.append(name)
    text = "\n\n".join(_sections(plan, records, figures)) + "\n"
    with datasets.replacing(out / "summary.md", overwrite=True) as (part,):
        part.write_text(text)


def scores(plan: Plan, records: dict[Any, Record]) -> dict[tuple[str, str, str], list[Volume]]:
    """By acquisition, sampling and sampler: the volumes that have a reference.

    A volume of which a slice diverged, by any seed, is in none.
    """
    lost = {(r["file"], r["sampling"], r["sampler"]) for r in records.values() if r["diverged"]}
    found: dict[tuple[str, str, str], dict[str, list[Score]]] = {}
    for cell in cells(plan):
        if cell.file.maximum is None:
            continue
        group = found.setdefault((cell.file.acquisition, cell.sampling.label, cell.sampler), {})
        if (cell.file.name, cell.sampling.label, cell.sampler) not in lost:
            one = volume_score([records[(*cell.key, n)] for n in cell.file.numbers])
            group.setdefault(cell.file.name, []).append(one)
    return {key: [Volume(name, *(math.fsum(getattr(s, field) for s in seeds) / len(seeds)
                                 for field in ("nmse", "psnr", "ssim")))
                  for name, seeds in group.items()] for key, group in found.items()}


def _sections(plan: Plan, records: dict[Any, Record], figures: list[str]) -> list[str]:
    found = scores(plan, records)
    many = len({acquisition for acquisition, _, _ in found}) > 1
    together: dict[tuple[str, str, str], list[Volume]] = {}
    for (_, label, sampler), volumes in found.items():
        together.setdefault(("all", label, sampler), []).extend(volumes)
    groups = (together | found) if many else found
    parts = ["# Evaluation"]
    if groups:
        parts += [_scores_table(groups), _differences_table(groups, plan)]
        some = plan.settings.slices
        chosen = "" if some is None else f", of its slices from {some[0]} to {some[1] - 1} alone"
        sources = sorted({file.reference for file in plan.files if file.maximum is not None})
        parts.append(
            "NMSE, PSNR and SSIM of volumes: NMSE and PSNR over the whole volume, SSIM (7 x 7 "
            "uniform window) averaged over its slices, the range being the largest value of the "
            f"reference volume{chosen}; files of fastMRI's layout in the square that "
            "`fastmri.evaluate` compares, others whole. Magnitude of the mean of the draws. "
            f"Reference: {'; '.join(sources)}. ± is half of a {CONFIDENCE:.0%} interval for the "
            "mean over volumes (Student's t), after averaging over seeds.")
    parts += [part for part in (_diverged_table(plan, records), _hu_table(plan, records),
                                _spread_table(plan, records)) if part]
    unmeasured = [file.name for file in plan.files if file.maximum is None]
    if unmeasured:
        parts.append(f"Reconstructed without a reference: {', '.join(unmeasured)}.")
    if figures:
        parts.append("Worst, median and best slice by PSNR:")
        parts += [f"![{name}]({name})" for name in figures]
    parts += [_files_table(plan), _settings(plan)]
    for title, pairs in (("No data, left out", plan.left_out), ("Bad, left out", plan.bad)):
        if pairs:
            parts.append(f"{title}:\n\n" + "\n".join(f"- {name}: {why}" for name, why in pairs))
    return parts


def _scores_table(groups: dict[tuple[str, str, str], list[Volume]]) -> str:
    rows = []
    for (acquisition, label, sampler), volumes in groups.items():
        cells_ = [_plus_minus([v.nmse for v in volumes], 4),
                  _plus_minus([v.psnr for v in volumes], 2),
                  _plus_minus([v.ssim for v in volumes], 4)]
        rows.append([f"{acquisition}, {label}, {sampler}", str(len(volumes)), *cells_])
    return markdown(["acquisition, sampling, sampler", "volumes", "NMSE", "PSNR dB", "SSIM"], rows)


def _differences_table(groups: dict[tuple[str, str, str], list[Volume]], plan: Plan) -> str:
    first, *others = plan.settings.samplers
    rows = []
    for (acquisition, label, sampler), volumes in groups.items():
        base = {v.file: v for v in groups.get((acquisition, label, first), [])}
        if sampler == first or not base:
            continue
        pairs = [(v, base[v.file]) for v in volumes if v.file in base]
        rows.append([f"{acquisition}, {label}, {first} - {sampler}", str(len(pairs)),
                     _plus_minus([b.nmse - a.nmse for a, b in pairs], 4),
                     _plus_minus([b.psnr - a.psnr for a, b in pairs], 2),
                     _plus_minus([b.ssim - a.ssim for a, b in pairs], 4)])
    if not others:
        return "One sampler, nothing to compare."
    if not rows:
        return "Nothing to compare: no volume was measured by two samplers."
    return "Paired by volume:\n\n" + markdown(
        ["difference", "volumes", "NMSE", "PSNR dB", "SSIM"], rows)


def _diverged_table(plan: Plan, records: dict[Any, Record]) -> str:
    """What the means leave out."""
    rows = []
    for label in dict.fromkeys(cell.sampling.label for cell in cells(plan)):
        for sampler in plan.settings.samplers:
            mine = [r for r in records.values()
                    if (r["sampler"], r["sampling"]) == (sampler, label)]
            some = [r for r in mine if r["diverged"]]
            if some:
                volumes, of = ({r["file"] for r in found} for found in (some, mine))
                rows.append([f"{label}, {sampler}", f"{len(some)} of {len(mine)}",
                             f"{len(volumes)} of {len(of)}"])
    if not rows:
        return ""
    return ("Diverged, to NaN, infinity or numbers too large to be squared. Such slices are not "
            "measured, and volumes with one are left out of that sampler's means, which are then "
            "of fewer, perhaps easier volumes than others'; differences are of the same ones:"
            "\n\n" + markdown(["sampling, sampler", "slices", "volumes"], rows))


def _hu_table(plan: Plan, records: dict[Any, Record]) -> str:
    """CT numbers, over all pixels of the patients."""
    rows = []
    for label in dict.fromkeys(cell.sampling.label for cell in cells(plan)):
        for sampler in plan.settings.samplers:
            some = [r for r in records.values() if r.get("body_pixels")
                    and (r["sampler"], r["sampling"]) == (sampler, label)]
            if some:
                pixels = sum(r["body_pixels"] for r in some)
                rows.append([f"{label}, {sampler}", str(len(some)),
                             f"{math.sqrt(_total(some, 'hu_squared_error') / pixels):.1f}",
                             f"{_total(some, 'hu_absolute_error') / pixels:.1f}"])
    if not rows:
        return ""
    return ("Within the patients (above -500 HU, holes filled), mu of water "
            f"{MU_WATER:g} / mm:\n\n"
            + markdown(["sampling, sampler", "slices", "RMSE HU", "mean absolute error HU"], rows))


def _total(records: Sequence[Record], name: str) -> float:
    return math.fsum(r[name] for r in records)


def _spread_table(plan: Plan, records: dict[Any, Record]) -> str:
    """Whether the draws know how wrong they are."""
    rows = []
    draws = 0
    for label in dict.fromkeys(cell.sampling.label for cell in cells(plan)):
        for sampler in plan.settings.samplers:
            some = [r for r in records.values() if r.get("coverage") is not None
                    and (r["sampler"], r["sampling"]) == (sampler, label)]
            if not some:
                continue
            draws = int(some[0]["draws"])
            n = len(some)
            rows.append([f"{label}, {sampler}", str(draws), f"{(draws - 1) / (draws + 1):.0%}",
                         f"{math.fsum(r['coverage'] for r in some) / n:.0%}",
                         f"{math.fsum(r['std'] / r['error_in_region'] for r in some) / n:.2f}"])
    if not rows:
        return ""
    return ("Spread of the draws, where the reference exceeds 5 % of its maximum. The smallest and "
            "largest of M calibrated draws enclose the truth in (M - 1) / (M + 1) of the pixels; "
            "the reference's own noise lowers what is found:\n\n"
            + markdown(["sampling, sampler", "draws", "calibrated", "enclosed", "std / error"],
                       rows))


def _files_table(plan: Plan) -> str:
    rows = [[_in_table(f.name), f.kind, _in_table(f.acquisition), str(len(f.numbers)),
             f.reference or "none", _in_table(f.note)] for f in plan.files]
    return markdown(["file", "kind", "acquisition", "slices", "reference", "note"], rows)


def _in_table(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _settings(plan: Plan) -> str:
    told = plan.settings._asdict() | {"prior_sha256": plan.prior_sha256[:16]} | plan.environment
    return "Settings and versions:\n\n" + "\n".join(
        f"- {name}: {value}" for name, value in told.items() if value not in (None, ""))


def _plus_minus(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _figure(folder: Path, out: Path, plan: Plan, records: dict[Any, Record], sampler: str,
            label: str, path: Path) -> bool:
    """Rows of reference, result, error (and std) of the worst, median and best slice."""
    mine = [(cell, n, psnr_of(records[(*cell.key, n)])) for cell in cells(plan)
            if (cell.sampler, cell.sampling.label) == (sampler, label)
            and cell.seed == plan.settings.seeds[0] for n in cell.file.numbers]
    ranked = sorted(((p, cell.file.name, n, cell) for cell, n, p in mine if p is not None),
                    key=lambda entry: entry[:3])
    if not ranked:
        return False
    chosen = dict(zip(("worst", "median", "best"),
                      (ranked[0], ranked[len(ranked) // 2], ranked[-1]), strict=True))
    rows = []
    for name, (psnr, _, number, cell) in chosen.items():
        rows.append(_row(folder, out, plan, cell, number, f"{name}: {psnr:.1f} dB"))
    grid(path, rows, title=f"{sampler}, {label}", overwrite=True)
    return True


def _row(folder: Path, out: Path, plan: Plan, cell: Cell, number: int, title: str) -> list[Panel]:
    subject = open_subject(place_of(folder, cell.file.name), plan.settings)
    place = cell.file.numbers.index(number)
    assert subject.references is not None
    reference = subject.references[place]
    image = _stored(submission_path(out, cell), place)
    peak = float(reference.max()) or 1.0
    row = [Panel(f"{cell.file.stem}, slice {number}", reference, "reference", peak),
           Panel(title, image, "mean of the draws", peak),
           Panel("error", (image - reference).abs(), "white = 0.1 max", 0.1 * peak, "magma")]
    spread = out / "std" / cell.folder / f"{cell.file.stem}.h5"
    if spread.exists():
        row.append(Panel("std of the draws", _stored(spread, place), "white = 0.1 max", 0.1 * peak,
                         "magma"))
    return row


def _stored(path: Path, place: int) -> torch.Tensor:
    import h5py

    with h5py.File(path, "r") as file:
        return torch.from_numpy(file["reconstruction"][place])
