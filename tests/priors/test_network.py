"""The network prior: any size, EDM's preconditioning, files that come back and files refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recon.priors import CheckpointError, DenoisingUNet, EDMPrior, UNetSettings, card, load, save

SMALL = UNetSettings(2, (8, 8, 16, 16), 1)
LEVELS: dict[str, Any] = {"sigma_data": 0.25, "sigma_min": 0.01, "sigma_max": 20.0}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seed: int = 0, settings: UNetSettings = SMALL) -> DenoisingUNet:
    network = DenoisingUNet(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    return network.requires_grad_(False)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (17, 40), (33, 9)])
def test_any_size(size: tuple[int, int]) -> None:
    prior = EDMPrior(small(), 2, **LEVELS)
    x = noise(3, 2, *size)
    out = prior(x, torch.tensor([0.01, 0.3, 10.0]))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert relative(out[1], prior(x[1], 0.3)) < 1e-5  # one set of weights, no batch statistics


def test_edges_are_padded_by_their_own_values() -> None:
    network, level = small(), torch.zeros(1)
    x = noise(1, 2, 13, 6)
    padded = torch.nn.functional.pad(x, [0, 2, 0, 3], mode="replicate")
    assert relative(network(x, level), network(padded, level)[..., :13, :6]) < 1e-6
    zeros = torch.nn.functional.pad(x, [0, 2, 0, 3])
    assert relative(network(x, level), network(zeros, level)[..., :13, :6]) > 1e-3


def test_shifts_by_the_coarsest_cell_pass_through() -> None:
    network, level = small(), torch.zeros(1)
    x = noise(1, 2, 160, 160)
    still, moved = network(x, level), network(x.roll((8, -16), (2, 3)), level)
    inner = (..., slice(72, 88), slice(72, 88))  # clear of the borders' influence
    assert relative(moved.roll((-8, 16), (2, 3))[inner], still[inner]) < 1e-5
    off = network(x.roll(3, 2), level).roll(-3, 2)
    assert relative(off[inner], still[inner]) > 1e-3  # strides are not shift invariant below 8


def test_the_level_reaches_the_network() -> None:
    network, x = small(), noise(1, 2, 8, 8)
    assert relative(network(x, torch.ones(1)), network(x, torch.zeros(1))) > 1e-2


class Fixed(nn.Module):
    """Returns what it is told and remembers what it saw."""

    def __init__(self, out: float) -> None:
        super().__init__()
        self.out = out
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        self.seen.append((x, level))
        return torch.full_like(x, self.out)


def check_preconditioning(prior: Callable[[Tensor, Tensor], Tensor], network: Fixed) -> None:
    """Fails unless it is Karras et al. 2022, Table 1, for ``sigma_data`` 0.25."""
    sigma = torch.tensor([0.02, 0.1, 1.0, 15.0], dtype=torch.float64)
    x = noise(4, 2, 5, 7, dtype=torch.float64)
    network.seen.clear()
    got = prior(x, sigma)
    (seen, level), = network.seen
    for i, s in enumerate(sigma.tolist()):
        total = s**2 + 0.25**2
        want = 0.25**2 / total * x[i] + s * 0.25 / total**0.5 * network.out
        assert relative(got[i], want) < 1e-14
        assert relative(seen[i], x[i] / total**0.5) < 1e-6
        assert level[i] == pytest.approx(torch.tensor(s).log().item() / 4, rel=1e-5)


@pytest.mark.parametrize("out", [0.0, 1.0, -3.0])
def test_preconditioning(out: float) -> None:
    network = Fixed(out)
    check_preconditioning(EDMPrior(network, 2, **LEVELS), network)


@pytest.mark.parametrize("wrong", [
    lambda p: EDMPrior(p.network, 2, sigma_data=0.5),
    lambda p: lambda x, s: p(x, s.square()),
    lambda p: lambda x, s: p(x, s) + s.view(-1, 1, 1, 1),
    lambda p: lambda x, s: p(2 * x, s) / 2,
    lambda p: EDMPrior(p.network, 2, sigma_data=0.25, sigma_min=0.1),
])
def test_wrong_preconditioning_is_told(wrong: Callable[[EDMPrior], Any]) -> None:
    network = Fixed(1.0)
    with pytest.raises(AssertionError):
        check_preconditioning(wrong(EDMPrior(network, 2, **LEVELS)), network)


def test_levels_outside_the_trained_range() -> None:
    network, x = Fixed(1.0), noise(3, 2, 5, 7)
    prior = EDMPrior(network, 2, **LEVELS)
    out = prior(x, torch.tensor([0.0, 1e-9, 1e5]))
    assert torch.equal(out[0], x[0])
    assert torch.allclose(out[1], x[1])
    level = network.seen[0][1]
    assert torch.allclose(level.mul(4).exp(), torch.tensor([0.01, 0.01, 20.0]))


def test_bfloat16_is_close_and_float64_is_kept() -> None:
    network, x = small(), noise(2, 2, 24, 24)
    exact = EDMPrior(network, 2, **LEVELS)
    rough = EDMPrior(network, 2, precision=torch.bfloat16, **LEVELS)
    for sigma in (0.02, 0.3, 5.0):
        got, want = rough(x, sigma), exact(x, sigma)
        assert got.dtype == torch.float32
        scale = (want - x).abs().max()
        assert 0 < float((got - want).abs().max()) < 0.03 * float(scale)
    out = exact(x.double(), 0.3)
    assert out.dtype == torch.float64
    assert relative(out, exact(x, 0.3)) < 1e-5
    double = EDMPrior(small(), 2, **LEVELS).double()
    assert relative(double(x.double(), 0.3), out) < 1e-5


def test_gradients_reach_the_image() -> None:
    prior = EDMPrior(small(), 2, **LEVELS)
    x = noise(1, 2, 9, 9).requires_grad_()
    prior(x, 0.3).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0


def write(path: Path, network: DenoisingUNet | None = None, **settings: Any) -> Path:
    given = {"is_complex": True, "card": {"licence": "CC0"}, **LEVELS, **settings}
    save(path, network or small(), **given)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "p.safetensors")


def test_round_trip(saved: Path) -> None:
    x = torch.complex(noise(3, 1, 9, 13), noise(3, 1, 9, 13, seed=1))
    half = DenoisingUNet(SMALL)
    half.load_state_dict({k: v.half().float() for k, v in small().state_dict().items()})
    want = EDMPrior(half.requires_grad_(False).to(memory_format=torch.channels_last), 2,
                    **LEVELS).as_complex("channels")
    got = load(saved)
    assert got.is_complex
    assert got.channels == 1
    assert torch.equal(got(x, 0.3), want(x, 0.3))
    unrounded = EDMPrior(small(), 2, **LEVELS).as_complex("channels")
    assert not torch.equal(got(x, 0.3), unrounded(x, 0.3))
    assert (got.sigma_min, got.sigma_max) == (0.01, 20.0)
    assert not got.training
    assert not any(p.requires_grad for p in got.parameters())
    assert load(saved, max_batch=2).max_batch == 2
    assert torch.allclose(load(saved, max_batch=2)(x, 0.3), want(x, 0.3), atol=1e-5)
    assert relative(load(saved, precision=torch.bfloat16)(x, 0.3).real, want(x, 0.3).real) < 0.03
    assert card(saved) == {"licence": "CC0"}


def test_any_ending(saved: Path, tmp_path: Path) -> None:
    """As of a blob in a cache, or where no ending was said to ``save``."""
    x = noise(1, 1, 12, 10, dtype=torch.complex64)
    for name in ("noext", "x.pt"):
        path = tmp_path / name
        path.write_bytes(saved.read_bytes())
        assert torch.equal(load(path)(x, 0.3), load(saved)(x, 0.3))
        assert card(path) == card(saved)
    path.write_bytes(saved.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged"):
        load(path)


def test_real_images(tmp_path: Path) -> None:
    path = write(tmp_path / "real.safetensors", is_complex=False)
    prior = load(str(path))
    assert not prior.is_complex
    assert prior(noise(2, 8, 8), 0.1).shape == (2, 8, 8)


def test_nothing_is_overwritten_or_left_half_written(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match=r"p\.safetensors exists: choose another name or"):
        write(saved, small(1))
    assert saved.read_bytes() == before
    path = write(tmp_path / "a.safetensors")
    write(path, small(1), overwrite=True)
    assert path.read_bytes() != before
    huge = small()
    next(huge.parameters()).mul_(1e9)
    with pytest.raises(ValueError, match=r"unet\.m_head\.weight is not finite in half"):
        write(tmp_path / "b.safetensors", huge)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(tmp_path / "c.safetensors", card={"set": {1}})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


class Payload:
    """Touches a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_pickled_files_are_refused_unread(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    zipped, plain, old = (tmp_path / n for n in ("a.pt", "b.pkl", "c.safetensors"))
    torch.save({"model": Payload(trap)}, zipped)
    plain.write_bytes(pickle.dumps(Payload(trap)))
    old.write_bytes(pickle.dumps(Payload(trap), protocol=0))
    for path in (zipped, plain):
        with pytest.raises(CheckpointError, match=f"{path.name} is a pickled checkpoint, which "
                                                  "can run code.* convert its weights"):
            load(path)
        with pytest.raises(CheckpointError, match=f"{path.name} has no card"):
            card(path)
    with pytest.raises(CheckpointError, match=r"c\.safetensors is damaged or no safetensors"):
        load(old)
    assert not trap.exists()
    pickle.loads(plain.read_bytes())
    assert trap.exists()  # the trap is live


def edited(change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Callable[..., None]:
    """Rewrite the file with its settings and tensors changed."""
    def rewrite(source: Path, target: Path) -> None:
        described = json.loads(json.dumps(settings_of(source)))
        tensors = load_file(source)
        change(described, tensors)
        save_file(tensors, target, metadata={"recon": json.dumps(described)})
    return rewrite


def settings_of(path: Path) -> dict[str, Any]:
    header = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + header])["__metadata__"]
    found: dict[str, Any] = json.loads(metadata["recon"])
    return found


HEAD = "unet.m_head.weight"
SPOILT: dict[str, tuple[Callable[..., object], str]] = {
    "truncated": (lambda s, t: t.write_bytes(s.read_bytes()[:-100]), "damaged or no safetensors"),
    "header only": (lambda s, t: t.write_bytes(s.read_bytes()[:40]), "damaged or no safetensors"),
    "empty": (lambda _, t: t.touch(), r"bad\.safetensors is damaged or no safetensors file"),
    "web page": (lambda _, t: t.write_text("<!DOCTYPE html><html>Log in"), "damaged or no safet"),
    "pointer": (lambda _, t: t.write_text("version https://git-lfs.github.com/spec/v1\n"),
                "damaged or no safetensors file .*: copy it again"),
    "no metadata": (lambda s, t: save_file(load_file(s), t), "what they mean .no 'recon' entry"),
    "no JSON": (lambda s, t: save_file(load_file(s), t, {"recon": "{"}), "settings are no JSON"),
    "nested JSON": (lambda s, t: save_file(load_file(s), t, {"recon": "[" * 100_000}),
                    "settings are no JSON"),
    "no names": (lambda s, t: save_file(load_file(s), t, {"recon": "[1]"}), "names and values"),
    "newer": (edited(lambda d, _: d.update(format=2)), "format 2 of network 'drunet' .* upgrade"),
    "no format": (edited(lambda d, _: d.pop("format")), "format None of network 'drunet'"),
    "other kind": (edited(lambda d, _: d.update(network="uvit")), "network 'uvit' is not known"),
    "no widths": (edited(lambda d, _: d.pop("widths")), "settings lack or spoil 'widths'"),
    "no widths at all": (edited(lambda d, _: d.update(widths=None)), "settings lack or spoil"),
    "three widths": (edited(lambda d, _: d.update(widths=[8, 8, 16])), "settings are out of range"),
    "other widths": (edited(lambda d, _: d.update(widths=[8, 8, 16, 24])), "do not fit the netw"),
    "more blocks": (edited(lambda d, _: d.update(blocks=2)), "do not fit the network its settings"),
    "many blocks": (edited(lambda d, _: d.update(blocks=10**9)), "settings are out of range"),
    "word for blocks": (edited(lambda d, _: d.update(blocks="one")), "settings are out of range"),
    "vast widths": (edited(lambda d, _: d.update(widths=[4096] * 4)), "do not fit the network"),
    "sigma word": (edited(lambda d, _: d.update(sigma_data="big")), "settings lack or spoil"),
    "sigma zero": (edited(lambda d, _: d.update(sigma_min=0)), "settings are out of range"),
    "sigma NaN": (edited(lambda d, _: d.update(sigma_data=float("nan"))), "out of range"),
    "odd complex": (edited(lambda d, _: d.update(image_channels=3)), "out of range"),
    "is_complex word": (edited(lambda d, _: d.update(is_complex="no")), "out of range"),
    "missing tensor": (edited(lambda _, w: w.pop(HEAD)), f"1 tensors do not fit .* first {HEAD}"),
    "extra tensor": (edited(lambda _, w: w.update(more=w[HEAD] + 0)), "1 tensors .* first more"),
    "wrong shape": (edited(lambda _, w: w.update({HEAD: w[HEAD][:4].clone()})), f"first {HEAD}"),
    "integers": (edited(lambda _, w: w.update({HEAD: w[HEAD].int()})), f"first {HEAD}"),
    "not finite": (edited(lambda _, w: w[HEAD].view(-1)[3:4].fill_(float("nan"))),
                   f"{HEAD} holds NaN or infinity"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_files_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    spoil, message = SPOILT[name]
    path = tmp_path / "bad.safetensors"
    spoil(saved, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(tmp_path) not in str(caught.value)


def test_the_editor_itself_spoils_nothing(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.safetensors"
    edited(lambda *_: None)(saved, path)
    x = torch.complex(noise(1, 9, 13), noise(1, 9, 13, seed=1))
    assert torch.equal(load(path)(x, 0.3), load(saved)(x, 0.3))


@pytest.mark.parametrize("name", ["brain", "no/such.safetensors", "."])
def test_unknown_names(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no prior .* brain-mri, chest-ct or the path"):
        load(name)
    assert issubclass(CheckpointError, ValueError)


def test_a_shipped_prior_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.priors.weights.SHIPPED", ("gone",))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing from this install"):
        load("gone")


@pytest.mark.parametrize(("settings", "message"), [
    ({"precision": torch.float64}, "precision wants float32, bfloat16 or float16, got"),
    ({"sigma_data": 0.0}, "finite sigma_data > 0 and 0 < sigma_min < sigma_max"),
    ({"sigma_min": 0.0}, "0 < sigma_min < sigma_max, got 0.25, 0.0, 20.0"),
    ({"sigma_max": 0.001}, "0 < sigma_min < sigma_max, got"),
])
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMPrior(Fixed(0.0), 2, **{**LEVELS, **settings})
