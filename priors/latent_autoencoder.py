"""Autoencoders of images of any size: the codec of each, tiles, packing, and public ones."""

from copy import copy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recon.priors.base import _at_least_one
from recon.priors.latent import Codec, Half, checkpointed, composed
from recon.priors.latent_tiles import Tiles, by_tiles
from recon.space import Space


class Autoencoder:
    """``z = encode(x)``, ``x = decode(z)`` for images of any size that ``factor`` divides.

    ``codec(space)`` is the ``Codec`` of one size. The two functions see ``(n, channels, *spatial)``
    and ``(n, latent_channels, *spatial / factor)``, must be differentiable and deterministic, and
    stay as they are: each method returns another Autoencoder.

    Parameters
    ----------
    encode, decode
        Images to latents and back.
    channels, latent_channels
        Of images and latents.
    factor
        Image pixels along one side of a latent pixel.
    is_complex
        Of the images; latents are real.
    spatial_ndim
        Number of image dimensions.
    module
        Where the weights of both are, so that ``LatentPrior.to`` moves them.
    max_batch
        Largest number of items in one call of either; None for no limit.

    Examples
    --------
    >>> pairs = Autoencoder(lambda x: torch.nn.functional.pixel_unshuffle(x, 2),
    ...                     lambda z: torch.nn.functional.pixel_shuffle(z, 2),
    ...                     channels=1, latent_channels=4, factor=2)
    >>> pairs.codec(Space((1, 6, 8)))
    Codec((1, 6, 8) to (4, 3, 4))
    """

    def __init__(self, encode: Half, decode: Half, *, channels: int, latent_channels: int,
                 factor: int, is_complex: bool = False, spatial_ndim: int = 2,
                 module: nn.Module | None = None, max_batch: int | None = None) -> None:
        if min(channels, latent_channels, factor, spatial_ndim) < 1:
            raise ValueError("Autoencoder wants channels, latent_channels, factor and spatial_ndim "
                             f"of at least 1, got {channels}, {latent_channels}, {factor} and "
                             f"{spatial_ndim}")
        self.channels, self.latent_channels, self.factor = channels, latent_channels, factor
        self.is_complex, self.spatial_ndim, self.module = is_complex, spatial_ndim, module
        self.max_batch = _at_least_one(max_batch)
        self._encode, self._decode = encode, decode
        self._scale: Tensor | float = 1.0
        self._shift: Tensor | complex = 0.0
        self._tiles: Tiles | None = None
        self._checkpoint = False

    def __repr__(self) -> str:
        kind = "complex" if self.is_complex else "real"
        return (f"Autoencoder({self.channels} {kind} channels to {self.latent_channels} of "
                f"1/{self.factor} the size)")

    @property
    def scale(self) -> Tensor | float:
        """Its own unit of images in the units of ``x``: one number or one per item."""
        return self._scale

    def codec(self, image: Space) -> Codec:
        """The codec of images of one space.

        Raises ValueError or TypeError for images of other channels or kind, or of a size that
        ``factor`` does not divide.
        """
        if image.is_complex != self.is_complex:
            want, got = ("complex", "real") if self.is_complex else ("real", "complex")
            advice = ("take it before as_complex" if self.is_complex else
                      'use as_complex("channels") or as_complex("parts")')
            raise TypeError(f"the autoencoder is of {want} images, got {got} ones: {advice}")
        if len(image.shape) != 1 + self.spatial_ndim or image.shape[0] != self.channels:
            advice = ": use grey()" if image.shape[0] == 1 and self.channels > 1 else ""
            raise ValueError(f"the autoencoder is of images of {self.channels} channel(s) and "
                             f"{self.spatial_ndim} dimensions, got {image.shape}{advice}")
        sizes = image.shape[1:]
        if any(n % self.factor for n in sizes):
            lower, upper = (tuple(-(-n // self.factor) * self.factor if up else
                                  n // self.factor * self.factor for n in sizes)
                            for up in (False, True))
            raise ValueError(f"the autoencoder wants image sizes that are multiples of "
                             f"{self.factor}, got {sizes}: crop the images to {lower} or pad them "
                             f"to {upper}, and build the operator for that size")
        latent = Space((self.latent_channels, *(n // self.factor for n in sizes)))
        return Codec(self._half(self._encode, self.factor, 1),
                     self._half(self._decode, 1, self.factor), image=image, latent=latent,
                     max_batch=self.max_batch).rescaled(self._scale, self._shift)

    def encode(self, x: Tensor) -> Tensor:
        """``(*leading, channels, *spatial) -> (*leading, latent_channels, *spatial / factor)``."""
        return self.codec(Space(x.shape[-1 - self.spatial_ndim :], x.dtype)).encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """``(*leading, latent_channels, *spatial / factor) -> (*leading, channels, *spatial)``."""
        sizes = (n * self.factor for n in z.shape[-self.spatial_ndim :])
        kind = z.dtype.to_complex() if self.is_complex else z.dtype.to_real()
        return self.codec(Space((self.channels, *sizes), kind)).decode(z)

    def rescaled(self, scale: Tensor | float, shift: Tensor | complex = 0.0) -> "Autoencoder":
        """That of images ``scale * x + shift``, of the same latents; see ``Codec.rescaled``."""
        other = copy(self)
        other._scale, other._shift = composed(self._scale, self._shift, scale, shift,
                                              self.is_complex)
        return other

    def tiled(self, side: int, *, halo: int, blend: int = 0) -> "Autoencoder":
        """The same, large images cut into tiles, all lengths in latent pixels.

        Tiles of ``side`` see ``halo`` more on every side and fade into their neighbours over
        ``blend``. Where ``halo`` covers the receptive field of both functions the result is that
        of the whole image, to rounding; with normalisation or attention over the whole image, as
        in Stable Diffusion's autoencoder, it is not, and ``blend`` keeps the seams from showing.
        """
        other = copy(self)
        other._tiles = Tiles(side, halo, blend).checked()
        return other

    def checkpointed(self) -> "Autoencoder":
        """The same, gradients running each tile again instead of keeping its activations."""
        other = copy(self)
        other._checkpoint = True
        return other

    def as_complex(self, how: Literal["channels", "parts"]) -> "Autoencoder":
        """That of complex images.

        ``"channels"``: its ``2 c`` channels are ``c`` real parts, then ``c`` imaginary parts.
        ``"parts"``: each part has latents of its own, those of the imaginary part behind.
        """
        if self.is_complex:
            raise TypeError("as_complex: this autoencoder is of complex images already")
        other = copy(self)
        if how == "channels":
            if self.channels % 2:
                raise ValueError('as_complex("channels") wants an even number of channels (re, '
                                 f'im), got {self.channels}: use as_complex("parts")')
            other.channels = self.channels // 2
            other._encode = partial(_of_channels, self._encode)
            other._decode = partial(_to_channels, self._decode)
        elif how == "parts":
            other.latent_channels = 2 * self.latent_channels
            other._encode = partial(_of_parts, self._encode)
            other._decode = partial(_to_parts, self._decode)
        else:
            raise ValueError(f'as_complex wants "channels" or "parts", got {how!r}')
        other.is_complex = True
        other._shift = self._shift * (1 + 1j)  # that of each part
        return other

    def grey(self) -> "Autoencoder":
        """That of images of one channel: repeated to encode, the mean of the decoded channels."""
        other = copy(self)
        other.channels = 1
        other._encode = partial(_repeated, self._encode, self.channels)
        other._decode = partial(_averaged, self._decode)
        return other

    @classmethod
    def from_diffusers(cls, model: Any, *, max_batch: int | None = None) -> "Autoencoder":
        """A diffusers ``AutoencoderKL`` or ``VQModel``, or a folder of one, in eval mode.

        Images are the network's own, mostly in [-1, 1]: for [0, 1] add ``.rescaled(0.5, 0.5)``.
        Latents are ``(mean - shift_factor) * scaling_factor`` with what the model's config says,
        as the pipelines of diffusers give them to the diffusion network. Encoding is to the mean;
        a VQModel encodes to latents before the codebook and decodes through it, with the gradient
        passed straight on. Needs the extra ``diffusers``; pickled weights are refused.
        """
        from recon.priors.latent_diffusers import opened

        found = opened(model)
        return cls(found.encode, found.decode, channels=found.channels,
                   latent_channels=found.latent_channels, factor=found.factor,
                   module=found, max_batch=max_batch)

    def _half(self, half: Half, before: int, behind: int) -> Half:
        if self._checkpoint:
            half = partial(checkpointed, half)
        if self._tiles is not None:
            half = partial(by_tiles, half, self._tiles, self.spatial_ndim, before, behind)
        return half


def _of_channels(encode: Half, x: Tensor) -> Tensor:
    return encode(torch.cat([x.real, x.imag], 1))


def _to_channels(decode: Half, z: Tensor) -> Tensor:
    return torch.complex(*decode(z).chunk(2, 1))


def _of_parts(encode: Half, x: Tensor) -> Tensor:
    return torch.cat(encode(torch.cat([x.real, x.imag])).chunk(2), 1)


def _to_parts(decode: Half, z: Tensor) -> Tensor:
    return torch.complex(*decode(torch.cat(z.chunk(2, 1))).chunk(2))


def _repeated(encode: Half, channels: int, x: Tensor) -> Tensor:
    return encode(x.expand(-1, channels, *x.shape[2:]))


def _averaged(decode: Half, z: Tensor) -> Tensor:
    return decode(z).mean(1, keepdim=True)
