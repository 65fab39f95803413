"""Fourier transforms at any frequencies by the library finufft (an extra), on the CPU."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from recon.operators.linear_map import linear_map

_AT_ONCE = 8


class Finufft(nn.Module):
    """The transform of ``Gridding``, and its adjoint, by finufft's types 2 and 1.

    To the relative ``tolerance``, 1e-6 at best in single precision and 1e-14 in double. For long
    three-dimensional trajectories, whose weights would not fit into memory. Raises ImportError
    without the package, and TypeError for tensors that are not on the CPU.
    """

    def __init__(self, size: tuple[int, ...], trajectory: Tensor, tolerance: float) -> None:
        super().__init__()
        try:
            import finufft  # noqa: F401 asked for here, used when a plan is made
        except ImportError as error:
            raise ImportError('backend="finufft" needs the package finufft: pip install '
                              '"recon[finufft]", or take backend="gridding"') from error
        self.size, self.samples, self.tolerance = size, len(trajectory), tolerance
        # radians per pixel, within one turn, as finufft has them
        self._points = [(2 * math.pi * trajectory[:, d] / n).remainder(2 * math.pi)
                        for d, n in enumerate(size)]
        self._plans: dict[tuple[int, int, torch.dtype], Any] = {}

    def transform(self, x: Tensor) -> Tensor:
        """``(items, *size)`` to ``(items, samples)``."""
        return linear_map(x, self._transform, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """``(items, samples)`` to ``(items, *size)``."""
        return linear_map(y, self._adjoint, self._transform)

    def _transform(self, x: Tensor) -> Tensor:
        return self._executed(2, x, (self.samples,))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._executed(1, y, self.size)

    def _executed(self, kind: int, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        if x.device.type != "cpu":
            raise TypeError(f'backend="finufft" runs on the CPU, the data are on {x.device}: '
                            'take backend="gridding"')
        result = x.new_empty(len(x), *shape)
        x = x.resolve_conj().contiguous()
        for i in range(0, len(x), _AT_ONCE):
            part = x[i : i + _AT_ONCE]
            found = self._plan(kind, len(part), x.dtype).execute(part.squeeze(0).numpy())
            result[i : i + _AT_ONCE] = torch.from_numpy(found).view(len(part), *shape)
        return result / math.sqrt(math.prod(self.size))

    def _plan(self, kind: int, images: int, dtype: torch.dtype) -> Any:
        key = (kind, images, dtype)
        if key not in self._plans:
            import finufft

            # a single precision that asks for more than it holds only warns
            least = 1e-6 if dtype == torch.complex64 else 1e-14
            plan = finufft.Plan(kind, self.size, n_trans=images, eps=max(self.tolerance, least),
                                isign=-1 if kind == 2 else 1, dtype=str(dtype).split(".")[1],
                                nthreads=torch.get_num_threads())
            plan.setpts(*(p.to(dtype.to_real()).numpy() for p in self._points))
            self._plans[key] = plan
        return self._plans[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plans": {}}
