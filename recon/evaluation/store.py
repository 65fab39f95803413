"""The folder of results: what is done, slice by slice, and volumes once all their slices are."""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon import datasets
from recon.evaluation.compute import Result
from recon.evaluation.plan import Cell, File, Plan, batches, cells
from recon.evaluation.records import Log, Record, rewrite

Key = tuple[str, str, int, str, int]


class Store:
    """Everything below ``out``; one process at a time may write.

    A slice counts as done when its record is in ``records.jsonl`` and its image is on disk. The
    image is written first, so a process killed between the two repeats the slice, to the same bits.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self.log = Log(out / "records.jsonl")
        self.times = Log(out / "timings.jsonl")
        self.done: dict[Key, Record] = {}
        for record in self.log.records:
            self.done[key_of(record)] = record
        self._recorded = set(self.done)
        self._missing: dict[tuple[str, str, int, str], int] = {}
        for cell in cells(plan):
            whole = self._volume(cell).exists()
            for number in cell.file.numbers:
                if not (whole or self._slice(cell, number).exists()):
                    self.done.pop((*cell.key, number), None)
            self._missing[cell.key] = sum((*cell.key, n) not in self.done
                                          for n in cell.file.numbers)
            if not self._missing[cell.key]:
                self._assemble(cell)

    def left(self) -> list[tuple[Cell, tuple[int, ...]]]:
        """The batches of which some slice is not done, in the plan's order."""
        size = self.plan.settings.batch
        return [(cell, numbers) for cell in cells(self.plan) for numbers in batches(cell, size)
                if any((*cell.key, n) not in self.done for n in numbers)]

    def missing(self, cell: Cell) -> int:
        """How many slices of a cell are not done."""
        return self._missing[cell.key]

    def is_done(self, file: File) -> bool:
        """Whether nothing of a file is left to do."""
        return not any(self._missing[cell.key] for cell in cells(self.plan) if cell.file is file)

    def of(self, cell: Cell) -> list[Record]:
        """The records of a cell, by slice, as far as they are done."""
        keys = [(*cell.key, n) for n in cell.file.numbers]
        return [self.done[key] for key in keys if key in self.done]

    def add(self, cell: Cell, results: list[Result]) -> None:
        """Keep a batch, on disk when this returns; write the volume if it was the last of it."""
        fresh = [r for r in results if (*cell.key, r.record["slice"]) not in self.done]
        for one in fresh:
            arrays = {"mean": one.mean.numpy()}
            if one.std is not None:
                arrays["std"] = one.std.numpy()
            path = self._slice(cell, one.record["slice"])
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.write_npz(path, arrays, overwrite=True)
        keys = {key_of(r.record): r.record for r in fresh}
        self.log.append(record for key, record in keys.items() if key not in self._recorded)
        self._recorded |= keys.keys()
        self.times.append({"seconds": one.seconds, **dict(zip(
            ("file", "sampling", "seed", "sampler", "slice"), key_of(one.record), strict=True))}
            for one in fresh)
        self.done |= keys
        self._missing[cell.key] -= len(fresh)
        if not self._missing[cell.key]:
            self._assemble(cell)

    def finish(self) -> None:
        """Records in the plan's order, so that equal evaluations give equal files."""
        keys = [(*cell.key, n) for cell in cells(self.plan) for n in cell.file.numbers]
        rewrite(self.log.path, [self.done[key] for key in keys if key in self.done])
        for name in ("slices", ".maps"):  # maps that were asked for may lie in a folder "maps"
            shutil.rmtree(self.out / name, ignore_errors=True)

    def close(self) -> None:
        self.log.close()
        self.times.close()

    def _slice(self, cell: Cell, number: int) -> Path:
        return self.out / "slices" / cell.folder / cell.file.stem / f"{number}.npz"

    def _volume(self, cell: Cell) -> Path:
        return submission_path(self.out, cell)

    def _assemble(self, cell: Cell) -> None:
        """One submission file, and one of standard deviations; then the slices are in the way."""
        folder = self._slice(cell, 0).parent
        if not self._volume(cell).exists():
            loaded = [read_slice(self._slice(cell, n)) for n in cell.file.numbers]
            stds = [std for _, std in loaded if std is not None]
            if len(stds) == len(loaded):  # first: the submission says that all is there
                path = self.out / "std" / cell.folder / f"{cell.file.stem}.h5"
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.write_hdf5(path, torch.stack(stds), overwrite=True)
            path = self._volume(cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.write_hdf5(path, torch.stack([mean for mean, _ in loaded]), overwrite=True)
        shutil.rmtree(folder, ignore_errors=True)


def submission_path(out: Path, cell: Cell) -> Path:
    """Where the volume of a cell is, in fastMRI's layout of a submission."""
    return out / "submissions" / cell.folder / f"{cell.file.stem}.h5"


def key_of(record: Record) -> Key:
    """What a record is of."""
    names = ("file", "sampling", "seed", "sampler", "slice")
    return tuple(record[name] for name in names)


def read_slice(path: Path) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of one slice, as ``Store`` wrote them."""
    with np.load(path, allow_pickle=False) as arrays:
        std = torch.from_numpy(arrays["std"]) if "std" in arrays else None
        return torch.from_numpy(arrays["mean"]), std
