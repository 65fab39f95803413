"""What samplers of latents share: their inputs, and the data misfit seen from a latent."""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.guidance import denoise_with_pullback
from recon.guidance.gradient import Pullback
from recon.operators.base import Operator
from recon.priors import Codec, LatentPrior, Prior
from recon.priors.latent_prior import refuse_other_latents
from recon.samplers.problem import check_problem
from recon.space import Space


def check_latent(y: Tensor, operator: Operator, prior: Prior, codec: Codec | None,
                 noise_std: Tensor | float, *, samples: int = 1, linear: bool = True,
                 noisy: bool = False) -> tuple[Codec, Tensor]:
    """``check_problem`` where a codec, given or the prior's own, stands between prior and images.

    With neither, images are their own latents. Raises besides ValueError or
    TypeError for a codec of other images than the operator's, or of other latents than the prior's.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, linear=linear,
                              noisy=noisy,
                              latent=codec is not None or isinstance(prior, LatentPrior))
    if isinstance(prior, LatentPrior):
        if codec is not None:
            raise TypeError("this prior brings its codec: leave codec= away, or pass prior.of")
        codec = prior.codec_of(operator.domain)
    if codec is None:
        return Codec.identity(operator.domain), noise_std
    if not isinstance(codec, Codec):
        raise TypeError(f"codec wants a priors.Codec, got {type(codec).__name__}: wrap the "
                        "autoencoder, priors.Codec(encode, decode, image=..., latent=...)")
    image, domain = codec.image, operator.domain
    if (image.shape, image.is_complex) != (domain.shape, domain.is_complex):
        raise ValueError(f"the operator acts on {_described(domain)} images, the codec is of "
                         f"{_described(image)} ones: pass a codec of the operator's images")
    refuse_other_latents(prior, codec)
    return codec, noise_std


class Seen(NamedTuple):
    """A latent's prediction and how far its image is from the measurements."""

    z0: Tensor
    x0: Tensor
    misfit: Tensor  # (samples, *batch), ||A x0 - y||
    rise: Tensor  # gradient of the misfit in x0; zero where nothing is left to fit
    through_prior: Pullback
    through_decoder: Pullback


def seen(y: Tensor, operator: Operator, prior: Prior, codec: Codec, z: Tensor,
         sigma: Tensor) -> Seen:
    """One run forward of network and decoder; the pullbacks hold their graphs."""
    z0, through_prior = denoise_with_pullback(prior, z, sigma)
    x0, through_decoder = codec.decode_with_pullback(z0)
    left = operator(x0) - y
    misfit = item_norm(left, operator.range)
    unit = left / spread(torch.where(misfit > 0, misfit, 1), operator.range)
    return Seen(z0, x0, misfit, operator.vjp(x0, unit), through_prior, through_decoder)


def item_norm(x: Tensor, space: Space) -> Tensor:
    """Euclidean norm of each item, ``(*leading,)``."""
    return torch.linalg.vector_norm(x, dim=tuple(range(-len(space.shape), 0)))


def spread(value: Tensor, space: Space) -> Tensor:
    """``value``, one or one per item, shaped to multiply items of ``space``."""
    return value.reshape(*value.shape, *(1,) * len(space.shape)) if value.ndim else value


def unit_of(scale: Tensor | float, like: Tensor) -> Tensor:
    """A prior's or codec's ``scale`` in the precision and on the device of ``like``."""
    return torch.as_tensor(scale, dtype=like.dtype.to_real(), device=like.device)


def vp_step(sigma: Tensor, sigma_next: Tensor, prior: Prior, z: Tensor) -> Tensor:
    """A step of one on ``z sqrt(abar)`` against a gradient in it, on ``z`` and its gradient."""
    scale = unit_of(prior.scale, z)
    scale = scale.reshape(*scale.shape, *(1,) * prior.item_ndim) if scale.ndim else scale
    return scale * ((1 + (sigma / scale).square()) * (1 + (sigma_next / scale).square())).sqrt()


def _described(space: Space) -> str:
    return f"{'complex' if space.is_complex else 'real'} {space.shape}"
