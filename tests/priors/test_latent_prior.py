"""Latent priors: any image size, tiles, checkpoints, packings and units, and what is refused."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import recon
from recon.operators import Identity
from recon.priors import Autoencoder, Codec, EpsilonPrior, Gaussian, LatentPrior, VariancePreserving
from recon.priors.latent_network import AutoencoderSettings, ConvAutoencoder
from recon.reconstruct import data_scale
from recon.samplers import dds, latent_dps, psld, stsl
from recon.space import Space

F64, C128 = torch.float64, torch.complex128


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(**settings: Any) -> ConvAutoencoder:
    """A random one whose every layer matters."""
    torch.manual_seed(0)
    chosen = AutoencoderSettings(**{"widths": (4, 4), "blocks": (1, 1), **settings})
    one = ConvAutoencoder(chosen).to(F64)
    for p in one.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return one.requires_grad_(False)


def autoencoder(of: ConvAutoencoder | None = None) -> Autoencoder:
    of = network() if of is None else of
    return Autoencoder(of.encode, of.decode, channels=of.settings.image_channels,
                       latent_channels=of.settings.latent_channels, factor=of.factor, module=of)


def gaussian(channels: int = 4, size: int = 2) -> Gaussian:
    return Gaussian(noise(channels, size, size, seed=7), variance=0.5)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def test_codec_of_any_size() -> None:
    net = network()
    one = autoencoder(net)
    for height, width in ((8, 8), (12, 20)):
        codec = one.codec(Space((1, height, width)))
        assert (codec.image.shape, codec.latent.shape) == ((1, height, width),
                                                           (4, height // 4, width // 4))
        x = noise(2, 3, 1, height, width)
        z = codec.encode(x)
        assert torch.equal(z, one.encode(x))
        assert torch.equal(z.flatten(0, 1), net.encode(x.flatten(0, 1)))
        assert torch.equal(codec.decode(z), one.decode(z))
        assert one.decode(z.float()).dtype == torch.float32
    prior = LatentPrior(gaussian(), one)
    assert prior.codec_of(Space((1, 8, 8))).latent.shape == (4, 2, 2)
    z = noise(3, 4, 2, 2)
    assert torch.equal(prior(z, 0.7), gaussian()(z, 0.7))


def test_what_is_seen() -> None:
    """``radius`` is where the receptive field ends: no less, and no more than a latent pixel."""
    for blocks in ((1, 2), (2, 0), (0, 3)):
        net = network(blocks=blocks)
        n, middle = 2 * net.radius + 9, net.radius + 4
        z = torch.zeros(1, 4, n, n, dtype=F64).requires_grad_()
        pixels = slice(4 * middle, 4 * middle + 4)
        (decoded,) = torch.autograd.grad(net.decode(z)[..., pixels, pixels].sum(), z)
        x = torch.zeros(1, 1, 4 * n, 4 * n, dtype=F64).requires_grad_()
        (encoded,) = torch.autograd.grad(net.encode(x)[..., middle, middle].sum(), x)
        reach = [int((at.nonzero()[:, -1] - middle).abs().max()) for at in
                 (decoded, encoded.reshape(1, n, 4, n, 4).abs().sum((2, 4)))]
        assert max(reach) <= net.radius <= max(reach) + 1


@pytest.mark.parametrize(("side", "blend"), [(7, 0), (6, 2), (9, 5)])
def test_tiles_are_the_whole_where_the_halo_covers(side: int, blend: int) -> None:
    net = network()
    whole = autoencoder(net)
    z, v = noise(1, 4, 13, 15, seed=1), noise(1, 1, 52, 60, seed=2)
    x = whole.decode(z)

    def check(one: Autoencoder) -> None:
        assert relative(one.decode(z), x) < 1e-12
        assert relative(one.encode(x), whole.encode(x)) < 1e-12
        codec, other = (a.codec(Space((1, 52, 60), F64)) for a in (one, whole))
        assert relative(codec.decode_with_pullback(z)[1](v),
                        other.decode_with_pullback(z)[1](v)) < 1e-12
        assert relative(codec.encode_with_pullback(x)[1](z),
                        other.encode_with_pullback(x)[1](z)) < 1e-12

    check(whole.tiled(side, halo=net.radius, blend=blend))
    check(whole.tiled(40, halo=0))  # in one piece
    with pytest.raises(AssertionError):
        check(whole.tiled(side, halo=1, blend=blend))


def test_seams_blend() -> None:
    """Where the halo does not cover, a longer blend leaves a smaller step at the seams."""
    net = network()

    def hidden(x: Tensor) -> Tensor:  # as normalisation does, it looks at all of what it is given
        return net.decode(x) * (1 + x.square().mean((1, 2, 3), keepdim=True))

    one = Autoencoder(net.encode, hidden, channels=1, latent_channels=4, factor=4)
    z = noise(1, 4, 6, 40, seed=1) * torch.linspace(0.2, 2, 40, dtype=F64)
    whole = one.decode(z)

    def step(blend: int) -> float:
        gain = (one.tiled(16, halo=net.radius, blend=blend).decode(z) / whole)[..., 0, :]
        return float(gain.diff().abs().max())

    steps = [step(blend) for blend in (0, 2, 4, 8)]
    assert all(b < 0.8 * a for a, b in pairwise(steps))


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Largest number of bytes of tensors alive at once that operations made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: Any = WeakIdKeyDictionary()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.alive[one.untyped_storage()] = one.untyped_storage().nbytes()
        self.largest = max(self.largest, sum(self.alive.values()))
        return out


def test_checkpoints_save_memory_and_keep_the_gradient() -> None:
    """The same bits; the memory of one tile, or of one item, rather than of all."""
    net = network()
    plain = autoencoder(net)
    z, v = noise(4, 4, 18, 18, seed=1), noise(4, 1, 72, 72, seed=2)

    def run(one: Codec) -> tuple[int, Tensor, Tensor]:
        with Peak() as peak:
            x, pull = one.decode_with_pullback(z)
            pulled = pull(v)
            again = pull(v)  # another run of the graph
        assert torch.equal(pulled, again)
        return peak.largest, x, pulled

    def at(one: Autoencoder, max_batch: int | None = None) -> Codec:
        found = one.codec(Space((1, 72, 72), F64))
        found.max_batch = max_batch
        return found

    whole, tiles = run(at(plain)), plain.tiled(6, halo=net.radius)
    for base, one in ((at(plain, 1), at(plain.checkpointed(), 1)),
                      (at(tiles), at(tiles.checkpointed()))):
        kept, x, pulled = run(base)
        less, same_x, same = run(one)
        assert torch.equal(x, same_x)
        assert torch.equal(pulled, same)
        assert less < 0.5 * kept
        assert relative(same, whole[2]) < 1e-12
    with pytest.raises(AssertionError):
        assert kept < 0.5 * whole[0]  # tiles that keep their activations save nothing
    given = {"image": Space((1, 72, 72), F64), "latent": Space((4, 18, 18), F64), "max_batch": 1}
    kept, x, pulled = run(Codec(net.encode, net.decode, **given))  # type: ignore[arg-type]
    less, same_x, same = run(Codec(net.encode, net.decode, checkpoint=True,
                                   **given))  # type: ignore[arg-type]
    assert torch.equal(pulled, same)
    assert less < 0.5 * kept


def test_shifted_images_keep_their_latents() -> None:
    """``rescaled`` of a network of [-1, 1] is of [0, 1], also twice, and item by item."""
    one = autoencoder()
    x = noise(3, 1, 8, 8, seed=1)
    z, shift = one.encode(x), torch.tensor([0.0, 0.5, -2.0], dtype=F64)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    spread = (-1, 1, 1, 1)

    def check(rescaled: Callable[..., Any]) -> None:
        for given in (rescaled(0.5, 0.5), rescaled(0.25, 1.0).rescaled(2.0, -1.5)):
            torch.testing.assert_close(given.encode(0.5 * x + 0.5), z)
            torch.testing.assert_close(given.decode(z), 0.5 * one.decode(z) + 0.5)
        items = rescaled(scale, shift)
        moved = scale.view(spread) * x + shift.view(spread)
        torch.testing.assert_close(items.encode(moved), z)

    check(one.rescaled)
    check(one.codec(Space((1, 8, 8))).rescaled)
    with pytest.raises(AssertionError):
        check(lambda scale, shift: one.rescaled(scale, shift / 2))
    prior = LatentPrior(gaussian(), one, normalised=True).rescaled(0.5, 0.5)
    torch.testing.assert_close(prior.codec_of(Space((1, 8, 8))).encode(0.5 * x + 0.5), z)
    assert prior.scale == 1.0  # of latents
    assert not prior.normalised
    assert prior.is_latent


@pytest.mark.parametrize("how", ["channels", "parts"])
def test_complex_images(how: Any) -> None:
    net = network(image_channels=2 if how == "channels" else 1)
    one = autoencoder(net).rescaled(2.0, 0.25)
    prior = LatentPrior(gaussian(), one).as_complex(how)
    codec = prior.codec_of(Space((1, 8, 8), torch.complex64))
    x = torch.complex(noise(5, 1, 8, 8), noise(5, 1, 8, 8, seed=1))

    def check(codec: Codec) -> None:
        z = codec.encode(x)
        if how == "channels":
            want = one.encode(torch.cat([x.real, x.imag], 1))
            parts = one.decode(want).chunk(2, 1)
        else:
            want = torch.cat([one.encode(x.real), one.encode(x.imag)], 1)
            parts = tuple(one.decode(half) for half in want.chunk(2, 1))
        torch.testing.assert_close(z, want)
        torch.testing.assert_close(codec.decode(z), torch.complex(*parts))

    check(codec)
    with pytest.raises(AssertionError):
        check(codec.rescaled(1.0, 0.1j))
    z = codec.encode(x)
    sigma = torch.linspace(0.1, 1, 5, dtype=F64)
    halves = z.chunk(2, 1) if how == "parts" else (z,)
    torch.testing.assert_close(prior(z, sigma),
                               torch.cat([gaussian()(half, sigma) for half in halves], 1))
    assert prior.channels == len(halves) * 4


def test_grey_images_of_a_network_of_colours() -> None:
    net = network(image_channels=3)
    one = autoencoder(net)
    x = noise(2, 1, 8, 8)
    grey = one.grey()
    torch.testing.assert_close(grey.encode(x), one.encode(x.expand(2, 3, 8, 8)))
    torch.testing.assert_close(grey.decode(grey.encode(x)),
                               one.decode(grey.encode(x)).mean(1, keepdim=True))
    assert grey.as_complex("parts").encode(x + 1j * x).shape == (2, 8, 2, 2)


def test_moves_and_copies_with_its_weights() -> None:
    prior = LatentPrior(gaussian(), autoencoder())
    x = noise(1, 8, 8)
    want = prior.codec_of(Space((1, 8, 8))).encode(x)
    other = deepcopy(prior)
    for p in other.parameters():
        torch.nn.init.zeros_(p)
    assert len(list(other.parameters())) > 10
    assert float(other.codec_of(Space((1, 8, 8))).encode(x).abs().max()) == 0
    assert torch.equal(prior.codec_of(Space((1, 8, 8))).encode(x), want)
    single = prior.float()
    assert next(single.parameters()).dtype == torch.float32
    torch.testing.assert_close(single.codec_of(Space((1, 8, 8))).encode(x), want, atol=1e-4,
                               rtol=1e-3)


@pytest.mark.parametrize("method", [stsl, psld, latent_dps])
@pytest.mark.filterwarnings("ignore:the residual y - A x")
def test_samplers_take_it(method: Callable[..., Tensor]) -> None:
    """As prior and codec given apart; its units are those of the codec."""
    one, A, y = autoencoder(), Identity(Space((1, 8, 8))), noise(2, 1, 8, 8, seed=1)
    seeded = partial(torch.Generator().manual_seed, 3)
    settings: dict[str, Any] = {"noise_std": 0.1, "steps": 3, "samples": 2}
    want = method(y, A, gaussian(), codec=one.codec(A.domain), generator=seeded(), **settings)
    prior = LatentPrior(gaussian(), one, normalised=True)

    def check(prior: LatentPrior, c: float) -> None:
        got = method(c * y, A, prior, generator=seeded(), **settings | {"noise_std": 0.1 * c})
        assert relative(got / c, want) < 1e-8

    check(prior, 1.0)
    check(LatentPrior(gaussian(), one.codec(A.domain)), 1.0)
    check(prior.tiled(1, halo=prior.codec.module.radius), 1.0)  # type: ignore[union-attr, arg-type]
    check(prior.checkpointed(), 1.0)
    for c in (1e-6, 1e6):
        check(prior.rescaled(c), c)
        with pytest.raises(AssertionError):
            check(LatentPrior(gaussian().rescaled(c), one), c)


@pytest.mark.filterwarnings("ignore:the residual y - A x")
def test_reconstruct_scales_its_codec() -> None:
    """By the data, and no noise level of the latents."""
    one, A = autoencoder(), Identity(Space((1, 8, 8)))
    y = one.decode(gaussian().sample(2, torch.Generator().manual_seed(0)))
    prior = LatentPrior(gaussian(), one, normalised=True)
    found = [recon.reconstruct(c * y, A, prior, "latent_dps", steps=5, noise_std=0.1 * c)
             for c in (1.0, 1e-5)]
    assert relative(found[1].samples / 1e-5, found[0].samples) < 1e-6
    scale = torch.tensor(found[0].settings["scale"], dtype=F64)
    torch.testing.assert_close(scale, data_scale(y, A))
    assert found[0].settings["steps"] == 5
    by_hand = recon.reconstruct(y, A, gaussian(), "latent_dps", steps=5, noise_std=0.1,
                                codec=one.codec(A.domain), scale=scale)
    assert relative(by_hand.samples, found[0].samples) < 1e-12


def test_refusals() -> None:
    one, A, y = autoencoder(), Identity(Space((1, 8, 8))), noise(1, 8, 8)
    prior = LatentPrior(gaussian(), one)
    with pytest.raises(TypeError, match="the prior is of latents, not of images"):
        dds(y, A, prior, steps=2)
    with pytest.raises(TypeError, match="the prior is of latents, not of images"):
        recon.reconstruct(y, A, prior, "dds", noise_std=0.1)
    with pytest.raises(TypeError, match="brings its codec: leave codec= away"):
        stsl(y, A, prior, codec=one.codec(A.domain))
    with pytest.raises(ValueError, match=r"pass prior.codec.encode\(image\)"):
        prior(y, 0.5)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(10, 8\): crop the images to "
                                         r"\(8, 8\) or pad them to \(12, 8\)"):
        psld(noise(1, 10, 8), Identity(Space((1, 10, 8))), prior)
    with pytest.raises(TypeError, match='use as_complex'):
        psld(noise(1, 8, 8).to(C128), Identity(Space((1, 8, 8), C128)), prior)
    with pytest.raises(TypeError, match="take it before as_complex"):
        psld(y, A, prior.as_complex("parts"))
    with pytest.raises(ValueError, match="images of 1 channel"):
        psld(noise(2, 8, 8), Identity(Space((2, 8, 8))), prior)
    with pytest.raises(ValueError, match=r"images of 3 channel.*use grey\(\)"):
        autoencoder(network(image_channels=3)).codec(Space((1, 8, 8)))
    for channels, of in ((3, one), (3, one.codec(A.domain))):
        with pytest.raises(ValueError, match="pass the prior trained on this codec's latents"):
            LatentPrior(gaussian(channels), of)
    with pytest.raises(ValueError, match="pass the prior trained on this codec's latents"):
        LatentPrior(gaussian(4, 3), one.codec(A.domain))
    with pytest.raises(ValueError, match=r"codec's latents are real \(4, 3, 3\)"):
        stsl(noise(1, 12, 12), Identity(Space((1, 12, 12))), prior)  # the exact prior has one size
    with pytest.raises(TypeError, match=r"wants a priors\.Codec or priors.Autoencoder, got int"):
        LatentPrior(gaussian(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="wants a Prior of latents, got function"):
        LatentPrior(noise, one)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pass its \.of"):
        LatentPrior(prior, one)
    for side, halo, blend in ((0, 1, 0), (4, -1, 0), (4, 1, 4), (4, 1, -1)):
        with pytest.raises(ValueError, match="tiled wants side >= 1"):
            one.tiled(side, halo=halo, blend=blend)
    fixed = LatentPrior(gaussian(), one.codec(A.domain))
    with pytest.raises(TypeError, match=r"wants a prior with a priors\.Autoencoder"):
        fixed.tiled(4, halo=1)
    with pytest.raises(TypeError, match=r"wants a prior with a priors\.Autoencoder"):
        fixed.as_complex("parts")
    with pytest.raises(ValueError, match="even number of channels"):
        prior.as_complex("channels")
    with pytest.raises(ValueError, match='wants "channels" or "parts"'):
        prior.as_complex("polar")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="complex images already"):
        prior.as_complex("parts").as_complex("parts")
    with pytest.raises(ValueError, match="finite shift"):
        one.rescaled(1.0, torch.inf)
    with pytest.raises(TypeError, match="a real shift"):
        one.rescaled(1.0, 1j)
    with pytest.raises(ValueError, match="of at least 1"):
        Autoencoder(torch.clone, torch.clone, channels=1, latent_channels=0, factor=4)
    with pytest.raises(ValueError, match="max_batch wants at least 1"):
        Autoencoder(torch.clone, torch.clone, channels=1, latent_channels=1, factor=4,
                    max_batch=0)
    eps = EpsilonPrior(torch.nn.Identity(), VariancePreserving.linear(), 4)
    assert LatentPrior(eps, one).sigma_max == eps.sigma_max
