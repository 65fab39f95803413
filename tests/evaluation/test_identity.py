"""What an evaluation is of besides settings and files: another prior or program is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import recon
from recon import datasets, operators, priors
from recon.evaluation import Settings, evaluate, identity
from recon.evaluation.compute import Worker
from recon.evaluation.identity import hash_of, prior_hash, prior_of, source_hash
from recon.priors import Prior
from recon.priors.loaders import ncsnv2
from recon.simulate import multicoil_kspace


def hash_of_weights(prior: Prior) -> str:
    """A careless twin: that of the weights alone."""
    told = hashlib.sha256()
    for name, value in sorted(prior.state_dict().items()):
        told.update(name.encode() + value.contiguous().float().numpy().tobytes())
    return told.hexdigest()


def network(seed: int = 0) -> priors.DenoisingUNet:
    torch.manual_seed(seed)
    return priors.DenoisingUNet(priors.UNetSettings(2, (4, 4, 4, 4), 1))


def write_prior(path: Path, **changed: Any) -> Path:
    said = {"sigma_data": 0.25, "sigma_min": 0.003, "sigma_max": 40.0, "is_complex": True}
    priors.save(path, network(), **said | changed, card={}, overwrite=True)
    return path


OBJECTS: dict[str, Callable[[], tuple[Prior, Prior]]] = {
    "the data's deviation": lambda: (
        priors.EDMPrior(network(), 2, sigma_data=0.25, sigma_min=0.01, sigma_max=40.0),
        priors.EDMPrior(network(), 2, sigma_data=0.5, sigma_min=0.01, sigma_max=40.0)),
    "levels": lambda: (
        priors.EDMPrior(network(), 2, sigma_data=0.5, sigma_min=0.01, sigma_max=40.0),
        priors.EDMPrior(network(), 2, sigma_data=0.5, sigma_min=0.01, sigma_max=10.0)),
    "packing": lambda: (
        priors.EDMPrior(network(), 2, sigma_data=0.5, sigma_min=0.01, sigma_max=40.0),
        priors.EDMPrior(network(), 2, sigma_data=0.5, sigma_min=0.01, sigma_max=40.0)
        .as_complex("channels")),
    "schedule": lambda: (
        priors.EpsilonPrior(nn.Identity(), priors.VarianceExploding(0.01, 50.0), channels=1),
        priors.EpsilonPrior(nn.Identity(), priors.VarianceExploding(0.02, 50.0), channels=1)),
    "what the network is told": lambda: (
        priors.EpsilonPrior(nn.Identity(), priors.VarianceExploding(0.01, 50.0), channels=1),
        priors.EpsilonPrior(nn.Identity(), priors.VarianceExploding(0.01, 50.0, torch.log),
                            channels=1)),
    "what it predicts": lambda: (
        priors.EpsilonPrior(nn.Identity(), priors.VariancePreserving.linear(), channels=1),
        priors.VelocityPrior(nn.Identity(), priors.VariancePreserving.linear(), channels=1)),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_equal_weights_are_not_one_prior(name: str) -> None:
    one, other = OBJECTS[name]()
    again, _ = OBJECTS[name]()
    assert hash_of(one) == hash_of(again) != hash_of(other)
    if name != "packing":  # which renames the weights
        assert hash_of_weights(one) == hash_of_weights(other)


def test_weights_count_to_the_last_bit() -> None:
    one, other = (priors.Gaussian(torch.zeros(1, 4, 4, dtype=torch.float64),
                                  variance=torch.tensor(v, dtype=torch.float64))
                  for v in (1.0, 1 + 1e-15))
    assert hash_of(one) != hash_of(other)
    assert hash_of_weights(one) == hash_of_weights(other)
    turned = [priors.Gaussian(torch.full((1, 4, 4), value), variance=1.0) for value in (1j, 2j)]
    assert hash_of(turned[0]) != hash_of(turned[1])


def test_words_beside_a_checkpoint_count(tmp_path: Path) -> None:
    """Another range of values or another prediction is another denoiser, by the same weights."""
    with torch.device("meta"):
        bare = ncsnv2.NCSNv2(1, 4, ("1", "2", "3", "31", "4", "5"), True)
    state = {k: torch.ones(v.shape) for k, v in bare.state_dict().items()}
    path = tmp_path / "x.pt"
    torch.save(state, path)
    settings = Settings({"dps": {}}, prior=str(path))
    found, weights = [], []
    for values in ([0, 1], [-1, 1], "normalised"):
        words = {"value_range": values, "schedule": [0.01, 50]}
        (tmp_path / "x.pt.json").write_text(json.dumps(words))
        found.append(prior_hash(settings, prior_of(settings)))
        weights.append(hash_of_weights(priors.load(path)))
        assert prior_hash(settings, prior_of(settings)) == found[-1]
    assert len(set(found)) == 3
    assert len(set(weights)) < 3
    assert prior_of(settings._replace(samplers={"tv": {}})) is None


def test_files_count_that_no_object_shows(tmp_path: Path) -> None:
    """As the weights that lie beside an ONNX network."""
    for name in ("net.onnx", "net.onnx.json", "net.onnx_data", "other.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    read_from = identity._files(str(tmp_path / "net.onnx"))
    assert [path.name for path in read_from] == ["net.onnx", "net.onnx.json", "net.onnx_data"]
    prior = priors.Gaussian(torch.zeros(1, 4, 4), variance=1.0)
    before = hash_of(prior, read_from)
    assert before != hash_of(prior)
    (tmp_path / "net.onnx_data").write_bytes(b"net.onnx_dato")
    assert hash_of(prior, read_from) != before


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[], None]:
    """Goes on with an evaluation, of two slices, that ended after the first."""
    folder, out = tmp_path / "set", tmp_path / "out"
    folder.mkdir()
    image = torch.zeros(40, 36)
    image[8:-8, 6:-6] = 0.6
    generator = torch.Generator().manual_seed(0)
    datasets.write_fastmri(folder / "file.h5", torch.stack(
        [multicoil_kspace(image, coils=4, generator=generator)] * 2))
    settings = Settings({"dds": {"steps": 2}}, accelerations=(2,), center_fractions=(0.2,),
                        samples=1, prior=str(write_prior(tmp_path / "prior.safetensors")))

    def go_on() -> None:
        evaluate(folder, out, settings, progress=False, say=lambda _: None)

    real = Worker.compute

    def first_only(worker: Worker, cell: Any, numbers: Any) -> Any:
        if numbers[0]:
            raise KeyboardInterrupt
        return real(worker, cell, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "compute", first_only)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    assert len((out / "records.jsonl").read_text().splitlines()) == 1
    return go_on


def test_a_prior_of_other_meaning_is_refused(begun: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    shutil.copy(path, tmp_path / "kept")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no mapping
    said = json.loads(metadata["recon"])
    save_file(weights, path, {"recon": json.dumps(said | {"sigma_data": 0.5})})
    with pytest.raises(ValueError, match=r"prior .* is not what it was when out was begun: "):
        begun()
    shutil.copy(tmp_path / "kept", path)
    begun()
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 2


def test_another_program_is_refused(begun: Callable[[], None], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["environment"]["source code"] == source_hash()[:16]
    assert plan["environment"]["scikit-image"]
    with monkeypatch.context() as patch:
        patch.setattr(identity, "source_hash", lambda: "0" * 64)
        with pytest.raises(ValueError, match=r"source code was \w{16}, is 0{16}: choose another"):
            begun()
    begun()


def test_records_of_the_version_before_are_refused(begun: Callable[[], None],
                                                   tmp_path: Path) -> None:
    """Their plan lacks what tells one prior or program from another."""
    path = tmp_path / "out" / "plan.json"
    plan = json.loads(path.read_text())
    del plan["environment"]["source code"], plan["environment"]["scikit-image"]
    path.write_text(json.dumps(plan | {"format": 1}))
    with pytest.raises(ValueError, match=r"of an earlier version of recon, which kept too"):
        begun()
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 1


def test_any_line_of_the_program_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout, where rooms lie beside each other, as where they are installed."""
    rooms = {"": recon, "operators": operators, "priors": priors, "datasets": datasets}
    inside, beside = tmp_path / "site" / "recon", tmp_path / "checkout"
    for name in rooms:
        for folder in (inside / name, beside / (name or "recon")):
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "a.py").write_text(f"x = '{name}'")
            (folder / "notes.md").write_text(str(folder))

    def found(place: Callable[[str], Path]) -> str:
        for name, package in rooms.items():
            monkeypatch.setattr(package, "__path__", [str(place(name))])
        told = source_hash.__wrapped__()
        monkeypatch.undo()
        return told

    before = found(lambda name: inside / name)
    assert found(lambda name: beside / (name or "recon")) == before
    (inside / "priors" / "deep" / "a.py").write_text("x = 'prior'")
    changed = found(lambda name: inside / name)
    assert changed != before
    (inside / "priors" / "deep" / "a.py").rename(inside / "priors" / "deep" / "b.py")
    assert found(lambda name: inside / name) not in (before, changed)


def test_what_no_loader_reads_of_a_folder_does_not_count(tmp_path: Path) -> None:
    """Such as the results of the evaluation itself."""
    pytest.importorskip("diffusers", reason="the extra `diffusers` is not installed")
    from diffusers import DDPMScheduler, UNet2DModel

    UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                norm_num_groups=4, layers_per_block=1).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "recon.json").write_text('{"value_range": [-1, 1]}')
    settings = Settings({"dds": {}}, prior=str(tmp_path))

    def found() -> str:
        return prior_hash(settings, prior_of(settings))

    before = found()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("{}")
    (tmp_path / "training_log.json").write_text("{}")
    assert found() == before
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    told = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(told | {"beta_end": 0.03}))
    assert found() != before
