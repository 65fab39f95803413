"""What an evaluation shows while it runs: a table by sampler with the time left."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from recon.evaluation.compute import Result
from recon.evaluation.plan import Cell, Plan, cells
from recon.evaluation.records import Record
from recon.evaluation.store import Store

Row = tuple[str, str]


class Live:
    """A table on the terminal; elsewhere a line for every volume that is finished."""

    def __init__(self, plan: Plan, store: Store, shown: bool, say: Callable[[str], None]) -> None:
        self.say, self.plan, self.store = say, plan, store
        self.total: dict[Row, int] = {}
        self.left: dict[Row, int] = {}
        self.psnr: dict[Row, list[float]] = {}
        self.diverged: dict[Row, int] = {}
        self.seconds: dict[str, tuple[float, int]] = {}
        for cell in cells(plan):
            row = cell.sampler, cell.sampling.label
            self.total[row] = self.total.get(row, 0) + len(cell.file.numbers)
            self.left[row] = self.left.get(row, 0) + store.missing(cell)
            self.diverged[row] = self.diverged.get(row, 0) + _diverged(store.of(cell))
        for record in store.times.records:
            self._timed(str(record["sampler"]), float(record["seconds"]))
        self.began, self.spent = time.monotonic(), 0.0
        self.display: Any = None
        if shown:
            from rich.console import Console
            from rich.live import Live as Display

            console = Console(stderr=True)
            if console.is_terminal:
                self.display = Display(console=console, refresh_per_second=2)

    def __enter__(self) -> "Live":
        if self.display is not None:
            self.display.start()
            self.display.update(self._table())
        return self

    def __exit__(self, *_: object) -> None:
        if self.display is not None:
            self.display.stop()

    def update(self, cell: Cell, results: list[Result]) -> None:
        """Count a finished batch."""
        row = cell.sampler, cell.sampling.label
        self.left[row] = sum(self.store.missing(c) for c in cells(self.plan)
                             if (c.sampler, c.sampling.label) == row)
        self.diverged[row] += _diverged([result.record for result in results])
        for result in results:
            self._timed(cell.sampler, result.seconds)
            self.spent += result.seconds
            if (found := psnr_of(result.record)) is not None:
                self.psnr.setdefault(row, []).append(found)
        if self.display is not None:
            self.display.update(self._table())
        elif not self.store.missing(cell):
            of_file = [psnr_of(r) for r in self.store.of(cell)]
            known = [p for p in of_file if p is not None]
            told = f", {sum(known) / len(known):.2f} dB" if known else ""
            if lost := _diverged(self.store.of(cell)):
                told += f", {lost} of {len(of_file)} slices diverged"
            self.say(f"{cell.file.name}: {cell.sampler}, {cell.sampling.label}, seed {cell.seed}"
                     f"{told}; {self._time_left()}")

    def _timed(self, sampler: str, seconds: float) -> None:
        total, count = self.seconds.get(sampler, (0.0, 0))
        self.seconds[sampler] = total + seconds, count + 1

    def _time_left(self) -> str:
        """From the mean time of each sampler's slices, and how many workers that took."""
        if not any(self.left.values()):
            return "nothing left"
        known = {name: total / count for name, (total, count) in self.seconds.items() if count}
        if not known:
            return "time left unknown"
        slowest = max(known.values())
        ahead = sum(count * known.get(name, slowest) for (name, _), count in self.left.items())
        passed = time.monotonic() - self.began
        at_once = max(1.0, self.spent / passed) if passed > 0 else 1.0
        minutes = ahead / at_once / 60
        return (f"{minutes:.0f} min left" if minutes < 90 else
                f"{math.floor(minutes / 60)} h {minutes % 60:.0f} min left")

    def _table(self) -> Any:
        from rich.table import Table

        table = Table("sampler", "sampling", "slices", "PSNR of slices, dB",
                      title=self._time_left())
        for row, total in self.total.items():
            found = self.psnr.get(row)
            lost = f", {self.diverged[row]} diverged" if self.diverged[row] else ""
            table.add_row(*row, f"{total - self.left[row]} / {total}{lost}",
                          f"{sum(found) / len(found):.2f}" if found else "")
        return table


def psnr_of(record: dict[str, Any]) -> float | None:
    """PSNR of one slice with the range of its volume; None where nothing was to be measured."""
    if not record["squared_error"]:  # no reference, an empty slice, or it diverged
        return None
    mse = record["squared_error"] / record["pixels"]
    return 10 * math.log10(record["maximum"] ** 2 / mse)


def _diverged(records: Sequence[Record]) -> int:
    return sum(record["diverged"] for record in records)
