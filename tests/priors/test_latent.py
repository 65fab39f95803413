"""Codecs: shapes, units, gradients and complex images, against dense matrices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.priors import Codec
from recon.space import Space

F64, C128 = torch.float64, torch.complex128
IMAGE, LATENT = Space((1, 4, 4)), Space((2, 2, 2))
Half = Callable[[Tensor], Tensor]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


W = noise(16, 8, seed=9)


def decode(z: Tensor) -> Tensor:
    assert z.ndim == 4  # one flat batch, as an autoencoder wants it
    return (z.flatten(1) @ W.to(z.dtype).mT).view(-1, 1, 4, 4)


def encode(x: Tensor) -> Tensor:
    assert x.ndim == 4
    return (x.flatten(1) @ torch.linalg.pinv(W).to(x.dtype).mT).view(-1, 2, 2, 2)


def codec(encode: Half = encode, decode: Half = decode) -> Codec:
    return Codec(encode, decode, image=IMAGE, latent=LATENT)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("max_batch", [None, 1, 4])
def test_any_leading_dimensions(leading: tuple[int, ...], max_batch: int | None) -> None:
    z = noise(*leading, 2, 2, 2)
    one = Codec(encode, decode, image=IMAGE, latent=LATENT, max_batch=max_batch)
    x = one.decode(z)
    torch.testing.assert_close(x, (z.flatten(-3) @ W.mT).view(*leading, 1, 4, 4))
    torch.testing.assert_close(one.encode(x), z)
    assert one.decode(z.float()).dtype == torch.float32


def test_gradients_are_transposes() -> None:
    z, v, u = noise(3, 2, 2, 2), noise(3, 1, 4, 4, seed=1), noise(3, 2, 2, 2, seed=2)

    def check(one: Codec) -> None:
        x, pull = one.decode_with_pullback(z)
        assert not x.requires_grad
        torch.testing.assert_close(pull(v), (v.flatten(1) @ W).view(3, 2, 2, 2))
        torch.testing.assert_close(pull(2 * v), 2 * pull(v))  # more than once
        _, back = one.encode_with_pullback(x)
        torch.testing.assert_close(back(u), (u.flatten(1) @ torch.linalg.pinv(W)).view(x.shape))

    check(codec())
    with torch.inference_mode():
        check(codec())
    with pytest.raises(AssertionError):
        check(codec(decode=lambda z: decode(z) + 0.01 * decode(z).square()))


@pytest.mark.parametrize("scale", [1e-6, 3.0, torch.tensor([1e-6, 1.0, 1e6], dtype=F64)])
def test_rescaled_images_keep_their_latents(scale: Tensor | float) -> None:
    z, v = noise(2, 3, 2, 2, 2), noise(2, 3, 1, 4, 4, seed=1)
    c = scale.view(3, 1, 1, 1) if isinstance(scale, Tensor) else scale

    def check(one: Codec) -> None:
        torch.testing.assert_close(one.decode(z) / c, codec().decode(z))
        torch.testing.assert_close(one.encode(c * codec().decode(z)), z)
        torch.testing.assert_close(one.decode_with_pullback(z)[1](v / c),
                                   codec().decode_with_pullback(z)[1](v))
        assert torch.equal(torch.as_tensor(one.scale, dtype=F64),
                           torch.as_tensor(scale, dtype=F64))

    check(codec().rescaled(scale))
    check(codec().rescaled(2.0).rescaled(scale / 2))
    for wrong in (codec(), codec().rescaled(2.0).rescaled(scale),
                  codec(lambda x: encode(x) * 2).rescaled(scale)):
        with pytest.raises(AssertionError):
            check(wrong)


def test_identity() -> None:
    for space in (Space((1, 3)), Space((1, 4, 4), torch.complex64)):
        x = space.randn(2, 3, dtype=C128 if space.is_complex else F64)
        same = Codec.identity(space)
        assert torch.equal(same.encode(x), x)
        assert torch.equal(same.decode(x), x)
        assert torch.equal(same.decode_with_pullback(x)[1](x), x)
        assert torch.equal(same.rescaled(2.0).decode(x), 2 * x)


def test_complex_images_and_a_network_of_two_channels() -> None:
    """Real and imaginary part become channels inside the two functions."""
    image, latent = Space((1, 2, 4), torch.complex64), Space((2, 2, 2))

    def packed(x: Tensor) -> Tensor:
        return torch.view_as_real(x.squeeze(1)).movedim(-1, 1)  # (n, 2, 2, 4)

    def unpacked(x: Tensor) -> Tensor:
        return torch.view_as_complex(x.movedim(1, -1).contiguous()).unsqueeze(1)

    def check(unpack: Half) -> None:
        one = Codec(lambda x: (packed(x).flatten(1) @ torch.linalg.pinv(W).mT).view(-1, 2, 2, 2),
                    lambda z: unpack((z.flatten(1) @ W.mT.to(z.dtype)).view(-1, 2, 2, 4)),
                    image=image, latent=latent)
        z = noise(3, 5, 2, 2, 2)
        v = torch.view_as_complex(noise(3, 5, 1, 2, 4, 2))
        x, pull = one.decode_with_pullback(z)
        assert x.dtype == C128
        torch.testing.assert_close(one.encode(x), z)
        direct = torch.view_as_real(v.squeeze(2)).movedim(-1, 2).flatten(2) @ W
        torch.testing.assert_close(pull(v), direct.view(z.shape))
        inner = (v.conj() * x).real.sum()
        torch.testing.assert_close((pull(v) * z).sum(), inner)
        assert one.decode(z.float()).dtype == torch.complex64

    check(unpacked)
    with pytest.raises(AssertionError):
        check(lambda x: unpacked(x).conj())


def test_refuses_draws() -> None:
    x = noise(3, 1, 4, 4)
    codec().refuse_draws(x)
    codec().refuse_draws(0 * x)
    drawn = codec(lambda x: encode(x) + 0.1 * torch.randn(len(x), 2, 2, 2, dtype=x.dtype))
    with pytest.raises(ValueError, match="encode to the mean, not to a draw"):
        drawn.refuse_draws(x)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"Codec.encode: want \(\*batch, 1, 4, 4\)"):
        codec().encode(noise(2, 1, 4, 5))
    with pytest.raises(ValueError, match=r"Codec.decode: want \(\*batch, 2, 2, 2\)"):
        codec().decode(noise(2, 1, 4, 4))
    with pytest.raises(TypeError, match="real floating tensor"):
        codec().encode(noise(2, 1, 4, 4).to(C128))
    with pytest.raises(ValueError, match=r"want \(6, 2, 2, 2\) from the autoencoder, got"):
        codec(encode=lambda x: x).encode(noise(2, 3, 1, 4, 4))
    with pytest.raises(TypeError, match="from the autoencoder: want a real"):
        codec(decode=lambda z: decode(z).to(C128)).decode(noise(2, 2, 2, 2))
    for scale in (0.0, -1.0, torch.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="finite scale > 0"):
            codec().rescaled(scale)
    with pytest.raises(ValueError, match="scale wants one number, or one per item"):
        codec().rescaled(torch.ones(4)).decode(noise(3, 2, 2, 2))
    with pytest.raises(ValueError, match="max_batch wants at least 1"):
        Codec(encode, decode, image=IMAGE, latent=LATENT, max_batch=0)
