"""Evaluating samplers over a folder of files, so that no killed night is lost."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from recon import datasets
from recon.datasets.slices import new_data
from recon.evaluation.compute import Result, Worker
from recon.evaluation.identity import prior_hash, prior_of
from recon.evaluation.live import Live
from recon.evaluation.plan import (
    Cell,
    Plan,
    cells,
    differences,
    make_plan,
    place_of,
    read_plan,
    unchanged,
    write_plan,
)
from recon.evaluation.ray import computed_by_ray, needed
from recon.evaluation.records import Record, only_writer, read_records
from recon.evaluation.settings import Settings
from recon.evaluation.store import Store
from recon.evaluation.summary import summarise

Engine = Literal["local", "ray"]
Work = list[tuple[Cell, tuple[int, ...]]]


def evaluate(folder: str | Path, out: str | Path, settings: Settings, *, engine: Engine = "local",
             workers: int = 1, maps: str | Path | None = None, skip_bad: bool = False,
             progress: bool = True, say: Callable[[str], None] = print) -> Plan:
    """Reconstruct and measure every slice of every file of a folder, and summarise.

    ``out`` gets ``plan.json`` (settings, files and versions), ``records.jsonl`` (one line a slice),
    ``submissions/SAMPLER/SAMPLING/SEED/`` (fastMRI's layout), ``std/`` likewise,
    ``timings.jsonl``, and ``summary.md`` with its figures. A second call with the same
    settings goes on where the first ended, however it ended; records and submissions are the same
    to the bit. Batches, workers and engines do not change them but for rounding in the network,
    which sees ``settings.batch`` slices at once.

    Coil maps are estimated once and kept in ``out/.maps`` until their file is done, or for good in
    the folder ``maps``, which other evaluations may share.

    Data without a reference are reconstructed and not measured; nor are slices of which a draw
    diverged, which :func:`diverged` lists. Returns the plan; its ``bad`` names files that
    ``skip_bad`` left out. Raises ValueError where ``out`` holds slices of another evaluation or
    files have changed since, and FormatError for files that cannot be used.
    """
    folder, out = Path(folder), Path(out)
    if folder.name in ("", ".."):
        folder = folder.resolve()  # volumes go by their names, and a series is one
    settings = settings.checked()
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder.name}: want a folder of files to evaluate")
    if workers < 1:
        raise ValueError(f"workers wants at least 1, got {workers}")
    if engine not in ("local", "ray"):
        raise ValueError(f"engine wants local or ray, got {engine!r}")
    if engine == "ray":
        needed()
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out.name} is a file, not a folder: choose another --out")
    if out.is_dir() and not (out / "plan.json").exists() and _foreign(out):
        raise FileExistsError(f"{out.name} holds other files: choose another --out")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        for part in out.rglob(".*.part"):  # what a killed run was writing
            part.unlink()
        try:
            plan = _planned(folder, out, settings, skip_bad, say)
        except BaseException:
            if made:  # nothing was begun
                shutil.rmtree(out, ignore_errors=True)
            raise
        store = Store(out, plan)
        try:
            work = store.left()
            total = sum(len(cell.file.numbers) for cell in cells(plan))
            todo = sum(store.missing(cell) for cell in cells(plan))
            if 0 < todo < total:
                say(f"going on: {total - todo} of {total} slices are done")
            with Live(plan, store, progress, say) as live:
                kept = out / ".maps" if maps is None else Path(maps)
                for cell, results in _results(engine, workers, folder, kept, plan, work):
                    store.add(cell, results)
                    live.update(cell, results)
                    if maps is None and not store.missing(cell) and store.is_done(cell.file):
                        shutil.rmtree(kept / cell.file.stem, ignore_errors=True)
            store.finish()
        finally:
            store.close()
        summarise(folder, out, plan, fresh=todo > 0)
    for name, why in plan.left_out:
        say(f"no data, left out: {name}: {why}")
    for name, why in plan.bad:
        say(f"bad, left out: {name}: {why}")
    for (sampler, label), count in Counter(
            (r["sampler"], r["sampling"]) for r in diverged(out)).items():
        say(f"diverged: {sampler}, {label}: {count} slice(s), which summary.md leaves out")
    say(f"{total} slices in {out}: summary.md, records.jsonl, submissions")
    return plan


def diverged(out: str | Path) -> list[Record]:
    """The records of slices of which a draw came to NaN, infinity or what cannot be squared.

    Their images are kept as they are, in the submissions too.
    """
    records = read_records(Path(out) / "records.jsonl")
    return [record for record in records if record.get("diverged")]


def _foreign(out: Path) -> bool:
    """Whether a folder without a plan holds anything but what a killed start leaves."""
    return any(path.name != ".lock" and not path.name.endswith(".part") for path in out.iterdir())


def _planned(folder: Path, out: Path, settings: Settings, skip_bad: bool,
             say: Callable[[str], None]) -> Plan:
    path = out / "plan.json"
    if path.exists():
        try:
            return _gone_on_with(read_plan(path), folder, out, settings)
        except ValueError:
            if read_records(out / "records.jsonl") or (out / "submissions").exists():
                raise
        say(f"{out.name}: planned anew, for no slice was done by the plan there")
        shutil.rmtree(out / "slices", ignore_errors=True)
    plan = make_plan(folder, settings, skip_bad, say)
    write_plan(path, plan)
    return plan


def _gone_on_with(plan: Plan, folder: Path, out: Path, settings: Settings) -> Plan:
    """A plan whose results may be gone on with; ValueError says why others may not."""
    if changed := differences(plan, settings):
        raise ValueError(f"{out.name} holds an evaluation with other settings: "
                         f"{'; '.join(changed)}: choose another --out")
    if prior_hash(settings, prior_of(settings)) != plan.prior_sha256:
        raise ValueError(f"the prior {settings.prior} is not what it was when {out.name} was "
                         "begun: its weights, what is said of them in it or beside it, or the "
                         "packages it runs on have changed: choose another --out")
    known = {file.name for file in plan.files} | {name for name, _ in (*plan.left_out, *plan.bad)}
    if more := new_data(folder, known):
        raise ValueError(f"{', '.join(more)} came into {folder.name} after {out.name} was begun: "
                         "take it out, or choose another --out")
    for file in plan.files:
        if not unchanged(place_of(folder, file.name), file):
            raise datasets.FormatError.about(
                file.name, f"has changed or gone since {out.name} was begun: restore it, or "
                           "choose another --out")
    return plan


def _results(engine: Engine, workers: int, folder: Path, maps: Path, plan: Plan,
             work: Work) -> Iterator[tuple[Cell, list[Result]]]:
    if engine == "ray":
        yield from computed_by_ray(folder, maps, plan.settings, work, workers)
        return
    if workers > 1:
        print("recon: --workers counts with --engine ray alone", file=sys.stderr)
    worker = Worker(folder, plan.settings, maps)
    for cell, numbers in work:
        yield cell, worker.compute(cell, numbers)
