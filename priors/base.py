"""What a prior is: a denoiser ``D(x; sigma) = E[x0 | x0 + sigma n = x]``, in any units."""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn

from recon.space import Space


class Prior(nn.Module):
    """The denoiser ``D(x; sigma) = E[x0 | x0 + sigma n = x]`` of a distribution of images.

    ``x`` is ``(*leading, channels, *spatial)`` with any leading dimensions; ``sigma`` is the
    standard deviation of each real number (of the real and of the imaginary part each), one number
    or one per item, broadcast over the leading dimensions. A subclass writes ``denoise`` for one
    flat batch; ``forward`` flattens, splits into chunks of ``max_batch`` and puts back together.

    Parameters
    ----------
    channels, is_complex
        The images it knows; anything else is refused.
    space
        The one space it is defined on, or None for any image size.
    spatial_ndim
        Number of image dimensions.
    sigma_min, sigma_max
        The range of noise levels it is meant for, in units of ``scale``.
    max_batch
        Largest number of items in one call of ``denoise``; None for no limit.
    normalised
        Whether its images are scaled so that the 99.5 % quantile of their magnitude is about one;
        measurements then need ``rescaled``. Otherwise its units are the images' own.
    is_latent
        Whether it is of an autoencoder's latents, not of images.

    Examples
    --------
    >>> class Shrink(Prior):
    ...     def denoise(self, x, sigma):
    ...         return x / (1 + sigma.view(-1, 1, 1, 1).square())
    >>> Shrink(channels=1, is_complex=False)(torch.ones(2, 3, 1, 8, 8), 1.0).shape
    torch.Size([2, 3, 1, 8, 8])
    """

    def __init__(self, *, channels: int, is_complex: bool, space: Space | None = None,
                 spatial_ndim: int = 2, sigma_min: float = 0.0, sigma_max: float = float("inf"),
                 max_batch: int | None = None, normalised: bool = False,
                 is_latent: bool = False) -> None:
        super().__init__()
        self.is_latent = is_latent
        self._max_batch = _at_least_one(max_batch)
        self.channels, self.is_complex, self.space = channels, is_complex, space
        self.spatial_ndim = spatial_ndim
        self.sigma_min, self.sigma_max, self.normalised = sigma_min, sigma_max, normalised

    @property
    def scale(self) -> Tensor | float:
        """The prior's own unit in the units of ``x``; noise schedules are multiples of it.

        1 as it comes; one number or one per item, ``(*batch,)``, after ``rescaled``.
        """
        return 1.0

    @property
    def max_batch(self) -> int | None:
        """Largest number of items in one call of ``denoise``; may be set at any time."""
        return self._max_batch

    @max_batch.setter
    def max_batch(self, value: int | None) -> None:
        self._max_batch = _at_least_one(value)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:  # noqa: ARG002 the contract's arguments
        """``D(x; sigma)`` for ``x`` ``(n, channels, *spatial)`` and ``sigma`` ``(n,)``."""
        raise TypeError(f"{type(self).__name__} has no denoise: write denoise(self, x, sigma)")

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        result: Tensor = super().__call__(x, sigma)
        return result

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        leading = x.shape[: x.ndim - self.item_ndim]
        sigma = torch.as_tensor(sigma, dtype=x.dtype.to_real(), device=x.device)
        _check_per_item("sigma", sigma, leading)
        flat_sigma = sigma.expand(leading).reshape(-1)
        flat = x.reshape(leading.numel(), *x.shape[len(leading) :])
        if not len(flat):
            return x.clone()
        size = self.max_batch or len(flat)
        pieces = [self.denoise(flat[i : i + size], flat_sigma[i : i + size])
                  for i in range(0, len(flat), size)]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.view(x.shape)

    @property
    def item_ndim(self) -> int:
        """Number of dimensions of one item: its channels and its image."""
        return 1 + self.spatial_ndim

    def check(self, x: Tensor) -> None:
        """Raise ValueError or TypeError unless this prior can denoise ``x``."""
        kind, got = ("complex", "real") if self.is_complex else ("real", "complex")
        if x.is_complex() != self.is_complex:
            advice = (
                "pass a complex tensor" if self.is_complex
                else 'use prior.as_complex("channels") or prior.as_complex("parts")'
            )
            raise TypeError(f"this prior is of {kind} images, got {got} ones: {advice}")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"this prior wants floating images, got {x.dtype}: use x.float()")
        if x.ndim < self.item_ndim or x.shape[-self.item_ndim] != self.channels:
            raise ValueError(
                f"this prior wants (*batch, {self.channels}, {self.spatial_ndim} image sizes), "
                f"got {tuple(x.shape)}: pass images of {self.channels} channel(s)"
            )
        if self.space is not None:
            self.space.check(x, type(self).__name__)

    def rescaled(self, scale: Tensor | float, shift: Tensor | complex = 0.0) -> "Prior":
        """The prior of ``scale * x + shift``; each one number, or one per item ``(*batch,)``.

        ``D'(x; sigma) = scale D((x - shift) / scale; sigma / scale) + shift``.
        """
        return _Rescaled(self, scale, shift)

    def as_complex(self, how: Literal["channels", "parts"]) -> "Prior":
        """This real prior for complex images.

        ``"channels"``: its ``2 c`` channels are ``c`` real parts, then ``c`` imaginary parts.
        ``"parts"``: real and imaginary part are independent draws of it.
        """
        if self.is_complex:
            raise TypeError("as_complex: this prior is complex already")
        if how == "channels":
            return _ComplexChannels(self)
        if how == "parts":
            return _ComplexParts(self)
        raise ValueError(f'as_complex wants "channels" or "parts", got {how!r}')

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # as in Operator: .to(float64) must not drop the imaginary part of complex buffers
        def through_real(t: Tensor) -> Tensor:
            if not t.is_complex():
                moved = fn(t)
                if moved.is_complex():
                    raise TypeError(f"{type(self).__name__}.to: want a real dtype, got "
                                    f"{moved.dtype}: complex buffers follow a real one")
                return moved
            return torch.view_as_complex(fn(torch.view_as_real(t.resolve_conj())).contiguous())

        moved: Self = super()._apply(through_real, recurse)  # type: ignore[no-untyped-call]
        return moved


def _at_least_one(max_batch: int | None) -> int | None:
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch wants at least 1, or None for no limit, got {max_batch}")
    return max_batch


def _check_per_item(name: str, value: Tensor, leading: torch.Size) -> None:
    pairs = zip(value.shape[::-1], leading[::-1], strict=False)
    if value.ndim > len(leading) or any(v not in (1, n) for v, n in pairs):
        raise ValueError(f"{name} wants one number, or one per item of {tuple(leading)}, "
                         f"got {tuple(value.shape)}")


def _number(value: Tensor | complex) -> Tensor:
    # Python's numbers in their own precision, so that float64 images are not rounded to float32
    if isinstance(value, Tensor):
        return value
    kind = torch.complex128 if isinstance(value, complex) else torch.float64
    return torch.as_tensor(value, dtype=kind)


class _Wrapped(Prior):
    """A prior seen in other units or another packing; the inner one splits into chunks."""

    def __init__(self, of: Prior, channels: int, is_complex: bool, normalised: bool) -> None:
        space = None
        if of.space is not None:
            kind = of.space.dtype.to_complex() if is_complex else of.space.dtype
            space = Space((channels, *of.space.shape[1:]), kind)
        super().__init__(channels=channels, is_complex=is_complex, space=space,
                         spatial_ndim=of.spatial_ndim, sigma_min=of.sigma_min,
                         sigma_max=of.sigma_max, normalised=normalised, is_latent=of.is_latent)
        self.of = of

    @property
    def scale(self) -> Tensor | float:
        return self.of.scale

    @property
    def max_batch(self) -> int | None:
        return self.of.max_batch

    @max_batch.setter
    def max_batch(self, value: int | None) -> None:
        self.of.max_batch = value


class _Rescaled(_Wrapped):
    factor: Tensor
    shift: Tensor

    def __init__(self, of: Prior, scale: Tensor | float, shift: Tensor | complex) -> None:
        scale, shift = _number(scale), _number(shift)
        if scale.is_complex() or not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"rescaled wants finite scale > 0, got {scale.tolist()}")
        if not bool(torch.isfinite(shift).all()):
            raise ValueError(f"rescaled wants finite shift, got {shift.tolist()}")
        if shift.is_complex() and not of.is_complex:
            raise TypeError("rescaled: a prior of real images wants a real shift, got complex")
        super().__init__(of, of.channels, of.is_complex, normalised=False)
        self.register_buffer("factor", scale)
        self.register_buffer("shift", shift)

    @property
    def scale(self) -> Tensor | float:
        return self.of.scale * self.factor

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        real, leading = x.dtype.to_real(), x.shape[: x.ndim - self.item_ndim]
        scale = self.factor.to(x.device, real)
        shift = self.shift.to(x.device, x.dtype if self.shift.is_complex() else real)
        sigma = torch.as_tensor(sigma, dtype=real, device=x.device)
        for name, value in [("scale", scale), ("shift", shift), ("sigma", sigma)]:
            _check_per_item(name, value, leading)  # else x itself would grow
        ones = (1,) * self.item_ndim
        spread, shift = scale.reshape(*scale.shape, *ones), shift.reshape(*shift.shape, *ones)
        return self.of((x - shift) / spread, sigma / scale) * spread + shift


class _ComplexChannels(_Wrapped):
    def __init__(self, of: Prior) -> None:
        if of.channels % 2:
            raise ValueError(
                f'as_complex("channels") wants an even number of channels (re, im), got '
                f'{of.channels}: use as_complex("parts")'
            )
        super().__init__(of, of.channels // 2, is_complex=True, normalised=of.normalised)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        dim = x.ndim - self.item_ndim
        out = self.of(torch.cat([x.real, x.imag], dim), sigma)
        return torch.complex(*out.chunk(2, dim))


class _ComplexParts(_Wrapped):
    def __init__(self, of: Prior) -> None:
        super().__init__(of, of.channels, is_complex=True, normalised=of.normalised)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        return torch.complex(*self.of(torch.stack([x.real, x.imag]), sigma))
