"""What one forward and one adjoint cost: time, and memory beyond the operator's own."""

import contextlib
import time
import tracemalloc
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recon.operators.base import Operator


def milliseconds(A: Operator, x: Tensor, y: Tensor) -> float:
    """Median wall time of one forward and one adjoint (or vjp), after one that fills caches."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        A(x)
        A.vjp(x, y)  # the adjoint of a linear one
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times[1:])[2]


def peak_bytes(A: Operator, x: Tensor, y: Tensor) -> int:
    """Most bytes held at once by one forward and one adjoint, beside ``x``, ``y`` and ``A``.

    On a GPU by torch's allocator; on a CPU tensors that operations return and NumPy's arrays, but
    not what a library keeps to itself within one call.
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        A(x)
        A.vjp(x, y)
        return torch.cuda.max_memory_allocated(x.device) - before
    live = _Live([x, y, *A.buffers(), *A.parameters()])
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with live:
            A(x)
            A.vjp(x, y)
        arrays = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    # Python's own objects are traced too: some tens of KiB
    return live.peak + (arrays if arrays > 2**20 else 0)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made inside that are still held."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {t.untyped_storage()._cdata for t in known}
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first use imports the compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.held = {key: kept for key, kept in self.held.items()
                     if not kept[0].expired()}  # type: ignore[no-untyped-call]
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse ones
                    storage = leaf.untyped_storage()
                    if storage._cdata not in self.known:
                        self.held[storage._cdata] = (
                            StorageWeakRef(storage),  # type: ignore[no-untyped-call]
                            storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return out
