"""The same work on the machines of a Ray cluster; one process alone writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recon.evaluation.compute import Result, Worker
from recon.evaluation.plan import Cell
from recon.evaluation.settings import Settings

ATTEMPTS = 3  # a worker may be killed, for memory or by its machine


def needed() -> Any:
    """Ray itself. Raises ImportError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install \"recon[ray]\"") from error
    return ray


def computed_by_ray(folder: Path, maps: Path, settings: Settings,
                    work: list[tuple[Cell, tuple[int, ...]]],
                    workers: int) -> Iterator[tuple[Cell, list[Result]]]:
    """Batches as they are finished, by ``workers`` actors of ``settings.threads`` processors each.

    Connects to the cluster that Ray finds (``RAY_ADDRESS``), or starts one on this machine. Every
    machine must see ``folder`` and ``maps`` under the same paths. A batch whose worker dies is
    given to a new one, three times at most; an error in the work itself ends the evaluation.
    Raises ImportError where Ray is not installed.
    """
    ray = needed()
    if not work:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    actor: Any = ray.remote(Worker)
    gpus = 1 if settings.device.startswith("cuda") else 0
    wanted = {"num_cpus": settings.threads, "num_gpus": gpus}

    def fresh() -> Any:
        return actor.options(**wanted).remote(folder.absolute(), settings, maps.absolute())

    waiting = [(cell, numbers, 1) for cell, numbers in reversed(work)]
    idle = [fresh() for _ in range(min(workers, len(work)))]
    running: dict[Any, tuple[Any, Cell, tuple[int, ...], int]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                cell, numbers, attempt = waiting.pop()
                worker = idle.pop()
                running[worker.compute.remote(cell, numbers)] = worker, cell, numbers, attempt
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            worker, cell, numbers, attempt = running.pop(ready)
            try:
                results: list[Result] = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayActorError:
                if attempt == ATTEMPTS:
                    raise RuntimeError(f"{cell.file.name}: slices {numbers} killed {ATTEMPTS} "
                                       "workers, probably for memory: lower --batch or --samples, "
                                       "or take fewer --workers on one machine") from None
                waiting.append((cell, numbers, attempt + 1))
                idle.append(fresh())
                continue
            idle.append(worker)
            yield cell, results
    finally:
        for worker in [*idle, *(entry[0] for entry in running.values())]:
            ray.kill(worker)
        if started:
            ray.shutdown()
