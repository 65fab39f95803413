"""Closed forms of ``solve`` for operators that see some modes of an image and nothing of others."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# An unseen part of rhs below so many eps of it is what rounding left of the seen one, of which
# products of images of 256 x 256 pixels leave up to 3.4.
_ROUNDING = 8


def solved_by_modes(rhs: Tensor, shift: Tensor, x0: Tensor | None, gain: Tensor, to_modes: Map,
                    from_modes: Map, item_ndim: int) -> Tensor:
    """``(A^H A + shift)^-1 rhs`` for ``A^H A = from_modes(gain to_modes(x))``.

    ``from_modes(to_modes(x))`` is the projection onto what A sees; ``shift`` broadcasts to ``rhs``.
    The unseen rest is divided by ``shift``, and with it, if that is small, what rounding left there
    of what is seen: that is projected out once more, and a rest that is no more than rounding is
    none, so that ``x0``, or zero, stays. It always does where ``shift`` is 0.
    """
    def modes(x: Tensor) -> Tensor:
        return torch.where(gain > 0, to_modes(x), 0)

    asked = rhs if x0 is None else rhs - shift * x0
    seen = modes(asked)
    rest = asked - from_modes(seen)
    item = tuple(range(-item_ndim, 0))
    size = rhs.detach().abs().amax(item, keepdim=True)
    size = torch.where(size > 0, size, 1)  # squares of numbers beyond 1e19 are no longer finite
    whole, left = (torch.linalg.vector_norm(t.detach() / size, dim=item, keepdim=True)
                   for t in (rhs, rest))
    known = (left > _ROUNDING * torch.finfo(rhs.dtype).eps * whole) & (shift != 0)
    apart = torch.where(known, 1 / torch.where(shift == 0, 1, shift), 0)
    change = seen if x0 is None else seen - gain * modes(x0)
    total = gain + shift
    change = torch.where(total == 0, 0, change / torch.where(total == 0, 1, total))
    x = from_modes(change - apart * modes(rest)) + apart * rest
    return x if x0 is None else x0 + x
