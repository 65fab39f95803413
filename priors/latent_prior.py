"""A prior of latents with the autoencoder whose latents they are."""

from typing import Literal, Self

import torch
from torch import Tensor

from recon.priors.base import Prior, _Wrapped
from recon.priors.latent import Codec
from recon.priors.latent_autoencoder import Autoencoder
from recon.space import Space


class LatentPrior(_Wrapped):
    """The denoiser ``D(z; sigma)`` of latents, and the codec that makes images of them.

    Samplers of latents (``samplers.stsl``, ``psld``, ``latent_dps``) take it as their prior, with
    no ``codec=``; others refuse it. Levels of noise, ``sigma_min``, ``sigma_max`` and ``scale`` are
    those of the latents. ``rescaled`` and ``as_complex`` speak of the images, and so act on the
    codec: ``rescaled(c)`` is the prior of images ``c`` times as large, with the same latents.

    Parameters
    ----------
    prior
        Of the latents: as the codec's ``encode`` gives them, scaling factor included.
    codec
        An ``Autoencoder``, for images of any size, or a ``Codec`` of one size.
    normalised
        Whether images of the codec's own unit have a 99.5 % quantile of their magnitude of about
        one; ``reconstruct`` then finds the scale of the measurements.

    Raises ValueError or TypeError for a prior of other channels or dimensions than the latents.

    Examples
    --------
    >>> from recon.priors import Gaussian
    >>> pixels = Autoencoder(lambda x: x, lambda z: z, channels=1, latent_channels=1, factor=1)
    >>> latent = LatentPrior(Gaussian(torch.zeros(1, 8, 8), variance=1.0), pixels)
    >>> float(latent.rescaled(5.0).codec.decode(torch.ones(1, 8, 8)).mean())
    5.0
    """

    def __init__(self, prior: Prior, codec: Codec | Autoencoder, *,
                 normalised: bool = False) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(f"LatentPrior wants a Prior of latents, got {type(prior).__name__}")
        if isinstance(prior, LatentPrior):
            raise TypeError("LatentPrior wants the prior of the latents alone, got a LatentPrior: "
                            "pass its .of")
        if not isinstance(codec, Codec | Autoencoder):
            raise TypeError("LatentPrior wants a priors.Codec or priors.Autoencoder, got "
                            f"{type(codec).__name__}: wrap the autoencoder, priors.Autoencoder("
                            "encode, decode, channels=..., latent_channels=..., factor=...)")
        refuse_other_latents(prior, codec)
        super().__init__(prior, prior.channels, prior.is_complex, normalised)
        self.is_latent = True
        self.codec = codec
        # a child, so that .to and .eval reach its weights
        self.autoencoder = codec.module if isinstance(codec, Autoencoder) else None

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        return self.of(x, sigma)

    def check(self, x: Tensor) -> None:
        """Raise ValueError or TypeError unless ``x`` are latents it can denoise."""
        if x.ndim >= self.item_ndim and x.shape[-self.item_ndim] != self.channels:
            raise ValueError(f"this prior is of latents (*batch, {self.channels}, ...), got "
                             f"{tuple(x.shape)}: pass prior.codec.encode(image)")
        super().check(x)

    def codec_of(self, image: Space) -> Codec:
        """Its codec for images of one space, which an operator's domain is.

        Raises ValueError or TypeError for images it is not of, and sizes that it cannot code.
        """
        if isinstance(self.codec, Autoencoder):
            return self.codec.codec(image)
        return self.codec

    def rescaled(self, scale: Tensor | float, shift: Tensor | complex = 0.0) -> "LatentPrior":
        """The prior of images ``scale * x + shift``, of the same latents."""
        return LatentPrior(self.of, self.codec.rescaled(scale, shift))

    def as_complex(self, how: Literal["channels", "parts"]) -> "LatentPrior":
        """This prior of real images for complex ones; see ``Autoencoder.as_complex``."""
        if not isinstance(self.codec, Autoencoder):
            raise TypeError("as_complex wants a prior with a priors.Autoencoder: pack real and "
                            "imaginary parts inside the functions of the Codec")
        codec = self.codec.as_complex(how)
        latents = _LatentParts(self.of) if how == "parts" else self.of
        return LatentPrior(latents, codec, normalised=self.normalised)

    def tiled(self, side: int, *, halo: int, blend: int = 0) -> "LatentPrior":
        """The same, large images coded in tiles; see ``Autoencoder.tiled``."""
        return self._with(self._any_size("tiled").tiled(side, halo=halo, blend=blend))

    def checkpointed(self) -> "LatentPrior":
        """The same, gradients running the codec again instead of keeping its activations."""
        return self._with(self._any_size("checkpointed").checkpointed())

    def _any_size(self, what: str) -> Autoencoder:
        if not isinstance(self.codec, Autoencoder):
            raise TypeError(f"{what} wants a prior with a priors.Autoencoder, this one has a "
                            "Codec of one size")
        return self.codec

    def _with(self, codec: Autoencoder) -> Self:
        return type(self)(self.of, codec, normalised=self.normalised)


class _LatentParts(_Wrapped):
    """Latents of two parts, one after the other in the channels: independent draws."""

    def __init__(self, of: Prior) -> None:
        super().__init__(of, of.channels, is_complex=False, normalised=False)
        self.channels = 2 * of.channels
        if self.space is not None:
            self.space = Space((self.channels, *self.space.shape[1:]), self.space.dtype)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.check(x)
        dim = x.ndim - self.item_ndim
        return torch.cat(list(self.of(torch.stack(x.chunk(2, dim)), sigma)), dim)


def refuse_other_latents(prior: Prior, codec: Codec | Autoencoder) -> None:
    """Raise ValueError unless ``prior`` is of the latents of ``codec``."""
    latent: tuple[int | str, ...]
    if isinstance(codec, Codec):
        latent, is_complex = codec.latent.shape, codec.latent.is_complex
        known = prior.space is None or prior.space.shape == latent
    else:
        latent = (codec.latent_channels, *("any",) * codec.spatial_ndim)
        is_complex, known = False, True
    fits = (prior.item_ndim, prior.channels) == (len(latent), latent[0]) and known
    if not fits or prior.is_complex != is_complex:
        shape: tuple[int | str, ...] = (prior.channels, *("any",) * prior.spatial_ndim)
        if prior.space is not None:
            shape = prior.space.shape
        raise ValueError(f"the codec's latents are {_described(latent, is_complex)}, the prior is "
                         f"of {_described(shape, prior.is_complex)}: pass the prior trained on "
                         "this codec's latents")


def _described(shape: tuple[int | str, ...], is_complex: bool) -> str:
    return f"{'complex' if is_complex else 'real'} {shape}"
