"""Autoencoders between images and the latents that a latent prior knows."""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as run_again

from recon.priors.base import _at_least_one, _check_per_item
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
    is rescaled instead. Rescaling both would count the unit twice. ``LatentPrior`` holds both and
    knows which.

    Parameters
    ----------
    encode, decode
        ``(n, *image.shape) -> (n, *latent.shape)`` and back.
    image, latent
        Their spaces. Complex images and a network of real channels meet inside the two functions.
    max_batch
        Largest number of items in one call of either; None for no limit.
    checkpoint
        Whether gradients run each call again rather than keep its activations: the same gradient
        and the memory of one call at a time, for one more run forward.

    Examples
    --------
    >>> image, latent = Space((1, 4, 4)), Space((4, 2, 2))
    >>> codec = Codec(lambda x: torch.nn.functional.pixel_unshuffle(x, 2),
    ...               lambda z: torch.nn.functional.pixel_shuffle(z, 2), image=image, latent=latent)
    >>> codec.encode(torch.ones(3, 5, 1, 4, 4)).shape
    torch.Size([3, 5, 4, 2, 2])
    """

    def __init__(self, encode: Half, decode: Half, *, image: Space, latent: Space,
                 max_batch: int | None = None, checkpoint: bool = False) -> None:
        self.image, self.latent, self.max_batch = image, latent, _at_least_one(max_batch)
        self._encode, self._decode = ((partial(checkpointed, half) if checkpoint else half)
                                      for half in (encode, decode))
        self._scale: Tensor | float = 1.0
        self._shift: Tensor | complex = 0.0

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

    def rescaled(self, scale: Tensor | float, shift: Tensor | complex = 0.0) -> "Codec":
        """The codec of images ``scale * x + shift``, of the same latents.

        Each is one number or one per item ``(*batch,)``. The codec of a network of images in
        [-1, 1] becomes one of images in [0, 1] by ``rescaled(0.5, 0.5)``.
        """
        other = copy(self)
        other._scale, other._shift = composed(self._scale, self._shift, scale, shift,
                                              self.image.is_complex)
        return other

    def encode(self, x: Tensor) -> Tensor:
        """``(*leading, *image.shape) -> (*leading, *latent.shape)``."""
        self.image.check(x, "Codec.encode")
        x = (x - self._given("shift", self._shift, x)) / self._given("scale", self._scale, x)
        return self._called(self._encode, x, self.image, self.latent)

    def decode(self, z: Tensor) -> Tensor:
        """``(*leading, *latent.shape) -> (*leading, *image.shape)``."""
        self.latent.check(z, "Codec.decode")
        x = self._called(self._decode, z, self.latent, self.image)
        return x * self._given("scale", self._scale, x) + self._given("shift", self._shift, x)

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

    def _given(self, name: str, value: Tensor | complex, x: Tensor) -> Tensor | complex:
        """Scale or shift, shaped to act on the images ``x``."""
        if not isinstance(value, Tensor):
            return value
        value = value.to(x.device, x.dtype if value.is_complex() else x.dtype.to_real())
        _check_per_item(f"Codec: {name}", value, torch.Size(self.image.batch_of(x)))
        return value.reshape(*value.shape, *(1,) * len(self.image.shape))

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


def checkpointed(half: Half, x: Tensor) -> Tensor:
    """``half(x)``, run again where a gradient asks for its activations."""
    out: Tensor = run_again(half, x, use_reentrant=False, preserve_rng_state=False)
    return out


def composed(scale: Tensor | float, shift: Tensor | complex, by: Tensor | float,
             to: Tensor | complex, is_complex: bool) -> tuple[Tensor | float, Tensor | complex]:
    """Scale and shift of ``by * (scale * x + shift) + to``, checked."""
    given, added = torch.as_tensor(by), torch.as_tensor(to)
    if given.is_complex() or not bool((torch.isfinite(given) & (given > 0)).all()):
        raise ValueError(f"rescaled wants finite scale > 0, got {given.tolist()}")
    if not bool(torch.isfinite(added).all()):
        raise ValueError(f"rescaled wants finite shift, got {added.tolist()}")
    if added.is_complex() and not is_complex:
        raise TypeError("rescaled: a codec of real images wants a real shift, got complex")
    return scale * by, shift * by + to


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
