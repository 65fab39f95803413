"""A progress bar for long work."""

import sys
from collections.abc import Callable


class Bar:
    """A progress bar on the terminal, or nothing; yields the function that advances it.

    Lines printed meanwhile stand above it.
    """

    def __init__(self, shown: bool, total: int | None, name: str, done: int = 0) -> None:
        self.progress = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.progress = Progress(TextColumn("{task.description}"), BarColumn(),
                                     TextColumn("{task.completed}/{task.total}"),
                                     TimeRemainingColumn(), console=Console(stderr=True),
                                     # what is piped elsewhere stays there
                                     redirect_stdout=sys.stdout.isatty())
            self.task = self.progress.add_task(name, total=total, completed=done)

    def __enter__(self) -> Callable[[], None]:
        if self.progress is None:
            return lambda: None
        self.progress.start()
        return lambda: self.progress.advance(self.task) if self.progress else None

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()
