"""Masks and coil maps as given by a caller: checked, and brought to the shape operators use."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

# of the last axes of an image, from the last one back
_AXES = ("columns", "rows", "planes")
# Of a trajectory, in cycles per pixel: half a cycle is the edge, and gradients may overshoot it.
_FURTHEST = 0.55


def checked_shape(call: str, shape: Sequence[int]) -> tuple[int, ...]:
    """``(height, width)`` or ``(depth, height, width)``, without the channel that may lead it."""
    size = tuple(int(n) for n in shape)
    if len(size) in (3, 4) and size[0] == 1:
        size = size[1:]
    if len(size) not in (2, 3) or min(size) < 1:
        raise ValueError(f"{call}: want a shape (height, width) or (depth, height, width), got "
                         f"{tuple(shape)}")
    return size


def checked_mask(call: str, mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """``mask`` as bool, ``(*items, 1, *size)`` with 1 for leading axes along which it is constant.
    """
    ndim = len(size)
    if mask.ndim == 0 or mask.shape[-1] != size[-1]:
        count = 0 if mask.ndim == 0 else mask.shape[-1]
        raise ValueError(
            f"{call}: mask has {count} columns but the k-space has {size[-1]}: pass the mask "
            "of this file, or crop the k-space to the mask"
        )
    each = ", ".join(("items", "1", *"1" * (ndim - 1), "width"))
    mask = mask.reshape((1,) * (ndim + 1 - mask.ndim) + mask.shape)
    for axis, name in enumerate(_AXES[1:ndim], 2):
        if mask.shape[-axis] not in (1, size[-axis]):
            whole = "height, width" if ndim == 2 else "depth, height, width"
            raise ValueError(
                f"{call}: mask has {mask.shape[-axis]} {name} but the k-space has {size[-axis]}: "
                f"pass (width,), ({whole}) or, one for each item, ({each})"
            )
    if mask.shape[-ndim - 1] != 1:
        raise ValueError(
            f"{call}: mask {tuple(mask.shape)} has {mask.shape[-ndim - 1]} where the coils are: "
            f"all coils share one mask; for one mask an item pass ({each})"
        )
    binary = (mask == 0) | (mask == 1)
    if not bool(binary.all()):
        raise ValueError(
            f"{call}: mask holds {mask[~binary][0].item()}, want zeros and ones only: "
            "threshold it, or apply weights with operators.Scale"
        )
    sampled = (mask != 0).flatten(-ndim - 1).any(-1)
    if not bool(sampled.all()):
        where = f" of item {_first(~sampled)}" if sampled.ndim else ""
        raise ValueError(f"{call}: mask{where} is all zero: nothing is measured")
    mask = squeezed(mask != 0, ndim + 1)
    for axis in range(-ndim, -1):
        # written out in full, a mask of columns still deserves the cheaper path
        one = mask.narrow(axis, 0, 1)
        mask = one.clone() if bool((mask == one).all()) else mask
    return mask


def checked_maps(call: str, maps: Tensor, size: tuple[int, ...], sets: int) -> Tensor:
    """``maps`` as ``(*items, coils, *size)``, or ``(*items, sets, coils, *size)`` of several sets.
    """
    ndim = len(size)
    if sets < 1:
        raise ValueError(f"{call}: want at least 1 set of maps, got sets={sets}")
    if not maps.is_complex():
        raise TypeError(
            f"{call}: want complex maps, got {maps.dtype}: pass maps.to(torch.complex64), "
            "or torch.view_as_complex(maps) if the last dimension is (real, imaginary)"
        )
    lead = ("coils",) if sets == 1 else (f"{sets} sets", "coils")
    if maps.ndim < ndim + len(lead) or tuple(maps.shape[-ndim:]) != size or 0 in maps.shape:
        want = ", ".join((*lead, *map(str, size)))
        raise ValueError(
            f"{call}: want maps ({want}) to match the image, got "
            f"{tuple(maps.shape)}: estimate them from this k-space, or crop both alike"
        )
    if sets > 1 and maps.shape[-ndim - 2] != sets:
        raise ValueError(f"{call}: want maps of {sets} sets, got {maps.shape[-ndim - 2]} in "
                         f"{tuple(maps.shape)}: pass sets={maps.shape[-ndim - 2]}")
    finite = torch.isfinite(maps).flatten(-ndim).all(-1)  # (*items, coils)
    if not bool(finite.all()):
        raise ValueError(f"{call}: maps are not finite at coil {_first(~finite)}")
    if not bool(maps.any()):
        raise ValueError(f"{call}: maps are all zero: was the calibration data empty?")
    return squeezed(maps.resolve_conj(), ndim + len(lead))


def checked_trajectory(call: str, trajectory: Tensor, size: tuple[int, ...]) -> Tensor:
    """``trajectory`` as float64 on the CPU, ``(*samples, axes)``; warns where units look wrong."""
    trajectory = torch.as_tensor(trajectory)
    if trajectory.is_complex() or trajectory.ndim < 2 or trajectory.shape[-1] != len(size):
        raise ValueError(f"{call}: want a real trajectory (*samples, {len(size)}) for an image of "
                         f"{len(size)} axes, got {trajectory.dtype} {tuple(trajectory.shape)}")
    if trajectory.numel() == 0:
        raise ValueError(f"{call}: the trajectory {tuple(trajectory.shape)} has no samples")
    # a copy: what is built from it later must not follow a caller who writes the next one there
    k = trajectory.detach().to("cpu", torch.float64, copy=True)
    finite = torch.isfinite(k)
    if not bool(finite.all()):
        at = _first(~finite)
        raise ValueError(f"{call}: want a finite trajectory, got {float(k[at])} at sample "
                         f"{at[:-1]}")
    reach = (k.abs() / torch.tensor(size)).flatten(0, -2)
    furthest = int(reach.amax(1).argmax())
    if float(reach.max()) > _FURTHEST:
        values = ", ".join(f"{v:g}" for v in k.flatten(0, -2)[furthest].tolist())
        raise ValueError(
            f"{call}: the trajectory reaches ({values}), an image {size} has frequencies up to "
            "half its size: give cycles per field of view, radians per pixel times size / (2 pi)"
        )
    if float(k.abs().max()) <= math.pi and min(size) >= 16:
        warnings.warn(
            f"{call}: the trajectory reaches {float(k.abs().max()):g} of {min(size) / 2:g} cycles "
            "per field of view: multiply cycles per pixel by size, radians per pixel by "
            "size / (2 pi)", stacklevel=3)
    return k


def item_trajectories(call: str, k: Tensor, item_axes: int) -> tuple[Tensor, int]:
    """Without leading item axes of size one, which are shared; and how many item axes are left."""
    samples = k.ndim - 1
    if not 0 <= item_axes < samples:
        raise ValueError(
            f"{call}: want item_axes from 0 to {samples - 1} of a trajectory {tuple(k.shape)}, "
            f"which is (*items, *samples, {k.shape[-1]}), got {item_axes}"
        )
    own = squeezed(k, k.ndim - item_axes)
    return own, item_axes - (k.ndim - own.ndim)


def _first(flags: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in flags.nonzero()[0])


def squeezed(t: Tensor, ndim: int) -> Tensor:
    """Without leading item dimensions of size one: those are shared, not per item."""
    while t.ndim > ndim and t.shape[0] == 1:
        t = t[0]
    return t
