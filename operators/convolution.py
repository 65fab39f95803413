"""Convolution on a grid, by Fourier transforms or sums, with what lies beyond the edge."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from recon.space import Space

Boundary = Literal["periodic", "zero", "reflect", "symmetric", "replicate", "valid"]
_BOUNDARIES = ("periodic", "zero", "reflect", "symmetric", "replicate", "valid")

# A CPU sums up to 16 images in the time of one, a transform takes them one by one: at 256 x 256
# pixels the two take equally long with 25 weights for 2 images, 49 for 4 and about 121 from 8 on.
_TAPS_PER_IMAGE, _MOST_TAPS = 12, 121


class Spectrum(NamedTuple):
    """The kernel's Fourier transform, its power, and which kernel and precision it belongs to."""

    transfer: Tensor
    power: Tensor
    kernel: Tensor
    stamp: tuple[object, ...]


class Convolution:
    """``y = crop ifft(transfer * fft(extend x))``: every boundary by one pair of transforms.

    ``call`` names the operator in messages. ``kernel`` sizes are those of the last dimensions;
    ``to_fourier`` and ``from_fourier`` are the two halves on either side of the product, and the
    halves of the adjoint stand beside them. ``summed`` and ``summed_adjoint`` give the same numbers
    by sums over the kernel, for where ``is_summed`` finds those quicker.
    """

    def __init__(self, call: str, sizes: tuple[int, ...], kernel_sizes: tuple[int, ...],
                 boundary: str) -> None:
        if boundary == "circular":  # deepinv's and torch's name
            boundary = "periodic"
        if boundary not in _BOUNDARIES:
            raise ValueError(f"{call}: want boundary {', '.join(map(repr, _BOUNDARIES))}, "
                             f"got {boundary!r}")
        self.boundary = boundary
        self.sizes = sizes
        self.axes = tuple(-n for n in range(len(sizes), 0, -1))
        # y[i] = sum_j kernel[j] x[i + k // 2 - j] looks this far to the left and to the right
        self.left = tuple(k - 1 - k // 2 for k in kernel_sizes)
        self.right = tuple(k // 2 for k in kernel_sizes)
        arms = tuple(zip(sizes, self.left, self.right, strict=True))
        if boundary == "periodic":
            self.range, self.start, self.grid = sizes, (0,) * len(sizes), sizes
        elif boundary == "zero":
            # no wrapped sample may land in the image: the longer arm of the kernel fits beside it
            self.range, self.start = sizes, (0,) * len(sizes)
            self.grid = tuple(_fast_length(n + max(a, b)) for n, a, b in arms)
        elif boundary == "valid":
            # wrapped samples land in what is cut off anyway
            self.range, self.start = tuple(n - a - b for n, a, b in arms), self.left
            self.grid = tuple(_fast_length(n) for n in sizes)
        else:
            self.range, self.start = sizes, self.left
            self.grid = tuple(_fast_length(n + a + b) for n, a, b in arms)

    def to_fourier(self, x: Tensor) -> Tensor:
        if self.boundary in ("reflect", "symmetric", "replicate"):
            for axis, left, right in zip(self.axes, self.left, self.right, strict=True):
                x = self._extend(x, axis, left, right)
        return self._transform(x)

    def from_fourier(self, spectrum: Tensor, real: bool) -> Tensor:
        y = self._inverse(spectrum, real)
        for axis, start, n in zip(self.axes, self.start, self.range, strict=True):
            y = torch.narrow(y, axis, start, n)
        return y

    def to_fourier_adjoint(self, y: Tensor) -> Tensor:
        """The adjoint of ``from_fourier``, but for the factors that transforms share."""
        if any(self.start):
            padding = [p for n, start, m in zip(self.grid, self.start, self.range, strict=True)
                       for p in (n - start - m, start)]
            y = pad(y, padding[::-1])
        return self._transform(y)

    def from_fourier_adjoint(self, spectrum: Tensor, real: bool) -> Tensor:
        x = self._inverse(spectrum, real)
        extended = self.boundary in ("reflect", "symmetric", "replicate")
        for axis, n, left, right in zip(self.axes, self.sizes, self.left, self.right, strict=True):
            x = torch.narrow(x, axis, 0, n + left + right if extended else n)
            if extended:
                x = self._fold(x, axis, left, right)
        return x

    def is_summed(self, kernel: Tensor, x: Tensor) -> bool:
        """Whether sums over one small kernel take less time than transforms.

        On CPUs alone: GPUs round the factors of a convolution to ten bits by default.
        """
        sizes = kernel.shape[-len(self.axes) :]
        taps, images = math.prod(sizes), math.prod(x.shape[: -len(self.axes)])
        return (len(self.axes) == 2 and x.device.type == "cpu" and x.dtype == torch.float32
                and not kernel.is_complex() and kernel.numel() == taps
                and taps <= min(_TAPS_PER_IMAGE * images, _MOST_TAPS))

    def summed(self, kernel: Tensor, x: Tensor) -> Tensor:
        if self.boundary in ("reflect", "symmetric", "replicate"):
            for axis, left, right in zip(self.axes, self.left, self.right, strict=True):
                x = self._extend(x, axis, left, right)
        elif self.boundary != "valid":
            x = self._continued(x, self.left, self.right)
        return _correlated(x, kernel.flip(self.axes))

    def summed_adjoint(self, kernel: Tensor, y: Tensor) -> Tensor:
        if self.boundary in ("periodic", "zero"):
            return _correlated(self._continued(y, self.right, self.left), kernel)
        around = tuple(a + b for a, b in zip(self.left, self.right, strict=True))
        x = _correlated(pad(y, _around(around, around)), kernel)
        if self.boundary != "valid":
            for axis, left, right in zip(self.axes, self.left, self.right, strict=True):
                x = self._fold(x, axis, left, right)
        return x

    def _continued(self, x: Tensor, left: tuple[int, ...], right: tuple[int, ...]) -> Tensor:
        if self.boundary == "zero":
            return pad(x, _around(left, right))
        images = x.reshape(1, -1, *self.sizes)
        return pad(images, _around(left, right), mode="circular").view(
            *x.shape[:-2], *(n + a + b for n, a, b in zip(self.sizes, left, right, strict=True)))

    def spectrum(self, kernel: Tensor, like: Tensor, stamp: tuple[object, ...]) -> Spectrum:
        """That of ``kernel``, its centre ``k // 2`` at the origin, for products with ``like``."""
        dtype = like.dtype if kernel.is_complex() else like.dtype.to_real()
        centred = kernel.to(device=like.device, dtype=dtype)
        sizes = kernel.shape[-len(self.axes) :]
        padding = [p for n, k in zip(self.grid, sizes, strict=True) for p in (n - k, 0)]
        centred = pad(centred, padding[::-1])
        centred = centred.roll([-(k // 2) for k in sizes], self.axes)
        transform = torch.fft.fftn if like.is_complex() else torch.fft.rfftn
        transfer = transform(centred, dim=self.axes)
        return Spectrum(transfer, transfer.real**2 + transfer.imag**2, kernel, stamp)

    def kept_spectrum(self, kernel: Tensor, like: Tensor, kept: Spectrum | None) -> Spectrum:
        """``kept`` where it is that of ``kernel`` as it is now, in the precision of ``like``."""
        if kernel.requires_grad or kernel.is_inference():
            # a graph must not be kept, and inference tensors cannot say when they change
            return self.spectrum(kernel, like, ())
        # the kernel's version rises when load_state_dict or a caller writes into it
        stamp = (like.dtype, like.device, kernel._version)
        if kept is not None and kept.kernel is kernel and kept.stamp == stamp:
            return kept
        with torch.inference_mode(False):  # or it would be useless to autograd later
            return self.spectrum(kernel, like, stamp)

    def _transform(self, x: Tensor) -> Tensor:
        transform = torch.fft.fftn if x.is_complex() else torch.fft.rfftn
        spectrum: Tensor = transform(x, s=self.grid, dim=self.axes)
        return spectrum

    def _inverse(self, spectrum: Tensor, real: bool) -> Tensor:
        inverse = torch.fft.irfftn if real else torch.fft.ifftn
        x: Tensor = inverse(spectrum, s=self.grid, dim=self.axes)
        return x

    def _extend(self, x: Tensor, axis: int, left: int, right: int) -> Tensor:
        n, skip = x.shape[axis], self.boundary == "reflect"
        if self.boundary == "replicate":
            sizes = list(x.shape)
            sizes[axis] = left
            before = x.narrow(axis, 0, 1).expand(sizes)
            sizes[axis] = right
            after = x.narrow(axis, n - 1, 1).expand(sizes)
        else:
            before = x.narrow(axis, int(skip), left).flip(axis)
            after = x.narrow(axis, n - right - skip, right).flip(axis)
        return torch.cat([before, x, after], axis)

    def _fold(self, x: Tensor, axis: int, left: int, right: int) -> Tensor:
        n, skip = x.shape[axis] - left - right, self.boundary == "reflect"
        before, after = x.narrow(axis, 0, left), x.narrow(axis, left + n, right)
        x = x.narrow(axis, left, n).clone()
        if self.boundary == "replicate":
            x.narrow(axis, 0, 1).add_(before.sum(axis, keepdim=True))
            x.narrow(axis, n - 1, 1).add_(after.sum(axis, keepdim=True))
        else:
            x.narrow(axis, int(skip), left).add_(before.flip(axis))
            x.narrow(axis, n - right - skip, right).add_(after.flip(axis))
        return x


def _around(left: tuple[int, ...], right: tuple[int, ...]) -> list[int]:
    """As ``pad`` wants it: from the last axis to the first."""
    return [p for a, b in zip(left[::-1], right[::-1], strict=True) for p in (a, b)]


def _correlated(x: Tensor, kernel: Tensor) -> Tensor:
    """``y[i] = sum_m kernel[m] x[i + m]`` where nothing beyond the edge is needed."""
    # images are the channels of one, each with its own sum: so they share vector registers
    images = x.reshape(1, -1, *x.shape[-2:])
    weights = kernel.to(x.device, x.dtype).reshape(1, 1, *kernel.shape[-2:])
    y = conv2d(images, weights.expand(images.shape[1], -1, -1, -1), groups=images.shape[1])
    return y.view(*x.shape[:-2], *y.shape[-2:])


def kernel_tensor(call: str, kernel: Tensor) -> Tensor:
    """``kernel`` as a floating tensor, refused unless its weights are finite."""
    kernel = torch.as_tensor(kernel)
    if not (kernel.is_floating_point() or kernel.is_complex()):
        kernel = kernel.to(torch.get_default_dtype())
    if not bool(torch.isfinite(kernel).all()):
        bad = int((~torch.isfinite(kernel)).sum())
        raise ValueError(f"{call}: want finite kernel weights, got NaN or infinity in {bad} of "
                         f"{kernel.numel()}")
    return kernel


def refuse_kernel(call: str, kernel: Tensor, space: Space) -> None:
    """Raise unless the spatial dimensions of ``kernel`` fit the images of ``space``."""
    sizes = space.shape[1:]
    if not sizes:
        raise ValueError(f"{call}: want a space (channel, *spatial), got {space.shape}")
    if kernel.ndim < len(sizes):
        raise ValueError(f"{call}: want a kernel of {len(sizes)} spatial dimensions for an image "
                         f"{space.shape}, got {tuple(kernel.shape)}")
    kernel_sizes = tuple(kernel.shape[-len(sizes) :])
    if any(k > n or k < 1 for k, n in zip(kernel_sizes, sizes, strict=True)):
        raise ValueError(f"{call}: want a kernel no larger than the image {sizes}, "
                         f"got {kernel_sizes}: crop it, or pad the image")
    if kernel.is_complex() and not space.is_complex:
        raise TypeError(f"{call}: a complex kernel wants a complex space, got a real one")


def _fast_length(n: int) -> int:
    # the next length with no prime factor above 5, on which every FFT library is quick
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
