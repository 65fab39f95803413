"""Autoencoders between images and the latents that a latent prior knows."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from recon.priors.base import _check_per_item
from recon.space import Space

Half = Callable[[Tensor], Tensor]
Pullback = Callable[[Tensor], Tensor]


class Codec:
    """The two halves of an autoencoder: ``z = encode(x)``, ``x = decode(z)``.

    Inputs are ``(*leading, *space.shape)`` with any leading dimensions; the two functions see one
    flat batch, ``(n, *space.shape)``, and must be differentiable. Both are deterministic: encode to
    the mean, never to a draw.

    Latents have the unit of the latent prior and keep it: a network decoder is not homogeneous, so
    that measurements in other units rescale the images of the codec, ``codec.rescaled(c)``, and
    not the prior of its latents. Where images are their own latents (``Codec.identity``) the prior
    is rescaled instead. Rescaling both would count the unit twice.

    Parameters
    ----------
    encode, decode
        ``(n, *image.shape) -> (n, *latent.shape)`` and back.
    image, latent
        Their spaces. Complex images and a network of real channels meet inside the two functions.
    max_batch
        Largest number of items in one call of either; None for no limit.

    Examples
    --------
    >>> image, latent = Space((1, 4, 4)), Space((4, 2, 2))
    >>> codec = Codec(lambda x: torch.nn.functional.pixel_unshuffle(x, 2),
    ...               lambda z: torch.nn.functional.pixel_shuffle(z, 2), image=image, latent=latent)
    >>> codec.encode(torch.ones(3, 5, 1, 4, 4)).shape
    torch.Size([3, 5, 4, 2, 2])
    """

    def __init__(self, encode: Half, decode: Half, *, image: Space, latent: Space,
                 max_batch: int | None = None) -> None:
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch wants at least 1, or None for no limit, got {max_batch}")
        self.image, self.latent, self.max_batch = image, latent, max_batch
        self._encode, self._decode = encode, decode
        self._scale: Tensor | float = 1.0

    def __repr__(self) -> str:
        return f"Codec({self.image.shape} to {self.latent.shape})"

    @classmethod
    def identity(cls, space: Space) -> Self:
        """Images are their own latents."""
        return cls(_same, _same, image=space, latent=space)

    @property
    def scale(self) -> Tensor | float:
        """The codec's own unit of images in the units of ``x``: one number or one per item."""
        return self._scale

    def rescaled(self, scale: Tensor | float) -> "Codec":
        """The codec of images ``scale * x``, of the same latents; one number or ``(*batch,)``."""
        given = torch.as_tensor(scale)
        if given.is_complex() or not bool((torch.isfinite(given) & (given > 0)).all()):
            raise ValueError(f"rescaled wants finite scale > 0, got {given.tolist()}")
        other = Codec(self._encode, self._decode, image=self.image, latent=self.latent,
                      max_batch=self.max_batch)
        other._scale = self._scale * scale
        return other

    def encode(self, x: Tensor) -> Tensor:
        """``(*leading, *image.shape) -> (*leading, *latent.shape)``."""
        self.image.check(x, "Codec.encode")
        return self._called(self._encode, x / self._spread(x, self.image), self.image, self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """``(*leading, *latent.shape) -> (*leading, *image.shape)``."""
        self.latent.check(z, "Codec.decode")
        x = self._called(self._decode, z, self.latent, self.image)
        return x * self._spread(x, self.image)

    def encode_with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """``encode(x)`` and ``v -> J^T v``; real and imaginary parts count as one vector."""
        return _with_pullback(self.encode, x)

    def decode_with_pullback(self, z: Tensor) -> tuple[Tensor, Pullback]:
        """``decode(z)`` and ``v -> J^T v``; real and imaginary parts count as one vector."""
        return _with_pullback(self.decode, z)

    def refuse_draws(self, x: Tensor) -> None:
        """Raise ValueError if two encodings of ``x`` differ by more than rounding."""
        first, again = self.encode(x), self.encode(x)
        if not bool((first - again).abs().amax() <= 1e-2 * first.abs().amax()):
            raise ValueError("the codec encodes one image to different latents: encode to the "
                             "mean, not to a draw, and put the autoencoder in eval mode")

    def _spread(self, x: Tensor, space: Space) -> Tensor | float:
        if not isinstance(self._scale, Tensor):
            return self._scale
        scale = self._scale.to(x.device, x.dtype.to_real())
        _check_per_item("Codec: scale", scale, torch.Size(space.batch_of(x)))
        return scale.reshape(*scale.shape, *(1,) * len(space.shape))

    def _called(self, half: Half, x: Tensor, given: Space, wanted: Space) -> Tensor:
        leading = torch.Size(given.batch_of(x))
        flat = x.reshape(leading.numel(), *given.shape)
        size = self.max_batch or max(len(flat), 1)
        pieces = [half(flat[i : i + size]) for i in range(0, len(flat), size)]
        if not pieces:
            return x.new_zeros((*leading, *wanted.shape), dtype=_kind(x, wanted))
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if tuple(whole.shape) != (len(flat), *wanted.shape):
            raise ValueError(f"Codec: want {(len(flat), *wanted.shape)} from the autoencoder, got "
                             f"{tuple(whole.shape)}: check its functions, image and latent")
        wanted.check(whole, "Codec: from the autoencoder")
        return whole.to(_kind(x, wanted)).reshape(*leading, *wanted.shape)


def _kind(x: Tensor, space: Space) -> torch.dtype:
    """What ``space`` holds, in the precision of ``x``."""
    return x.dtype.to_complex() if space.is_complex else x.dtype.to_real()


def _same(x: Tensor) -> Tensor:
    return x


def _with_pullback(half: Half, x: Tensor) -> tuple[Tensor, Pullback]:
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x).detach().requires_grad_()
        out = half(x)

    def pull(v: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(out, x, v, retain_graph=True)
        return pulled

    return out.detach(), pull
