"""What is installed: the packages, their data, what importing costs, and what README promises."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"recon": "recon", "recon.operators": "operators", "recon.priors": "priors",
           "recon.datasets": "datasets"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = SETTINGS["tool"]["setuptools"]["packages"]
README = (ROOT / "README.md").read_text()


def modules() -> dict[str, Path]:
    """Every Python file of the package, by its path in a wheel; links are not followed."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder)
            found[f"{package.replace('.', '/')}/{inside.as_posix()}"] = path
    return found


def fresh(code: str, folder: Path) -> str:
    """The output of code in a new interpreter that does not look into its working directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True,
                          capture_output=True, text=True).stdout


def test_every_folder_with_python_files_is_listed() -> None:
    on_disk = {str(Path(name).parent).replace("/", ".") for name in modules()}
    assert sorted(PACKAGES) == sorted(on_disk)
    assert SETTINGS["tool"]["setuptools"]["package-dir"] == FOLDERS


def test_every_package_and_module_can_be_imported(tmp_path: Path) -> None:
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
             for name in modules() if not name.endswith("__main__.py")]
    assert set(PACKAGES) <= set(names)
    fresh(f"import importlib\nfor name in {names}: importlib.import_module(name)", tmp_path)


def test_importing_recon_is_light(tmp_path: Path) -> None:
    there = json.loads(fresh("import json, sys, recon; print(json.dumps(sorted(sys.modules)))",
                             tmp_path))
    assert {"torch", "numpy", "recon.samplers", "recon.operators.mri"} <= set(there)
    for heavy in ("deepinv", "odl", "matplotlib", "h5py", "skimage", "pydicom", "typer", "rich"):
        assert heavy not in there


@pytest.mark.parametrize("name", ["datasets", "operators", "priors"])
def test_the_checkout_hides_no_other_library(name: str) -> None:
    code = f"import importlib.util as i; s = i.find_spec({name!r}); print(s and s.origin)"
    found = fresh(f"import sys; sys.path.remove({str(ROOT)!r}); {code}", ROOT).strip()
    assert not found.startswith(str(ROOT))


def test_links_lead_to_the_folders() -> None:
    for package, folder in FOLDERS.items():
        if package != "recon":
            link = ROOT / "recon" / package.removeprefix("recon.")
            assert link.is_symlink()
            assert link.resolve() == (ROOT / folder).resolve()


def test_no_python_file_outside_the_tests_is_long() -> None:
    others = [path for folder in ("examples", "scripts") for path in (ROOT / folder).glob("*.py")]
    for path in (*modules().values(), *others):
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist, and the wheel built from it; of a copy, so that the checkout stays clean."""
    for tool in ("build", "setuptools"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed, and without a network it cannot be fetched")
    folder = tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs")
    shutil.copytree(ROOT, folder / "copy", symlinks=True, ignore=unwanted)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check",
                    "--outdir", str(folder), str(folder / "copy")],
                   cwd=folder, check=True, capture_output=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_recon_alone_and_all_of_it(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        about = next(name for name in names if name.endswith("/top_level.txt"))
        assert wheel.read(about).decode().split() == ["recon"]
        scripts = wheel.read(about.replace("top_level", "entry_points")).decode()
        weights = wheel.getinfo("recon/priors/pretrained/brain-mri.safetensors").file_size
    assert {name.partition("/")[0] for name in names} == {"recon", about.partition("/")[0]}
    assert {name for name in names if name.endswith(".py")} == set(modules())
    assert {"recon/py.typed", "recon/assets/demo_slice.npz", "recon/assets/NOTICE.md",
            "recon/priors/pretrained/NOTICE.md"} <= names
    assert weights == (ROOT / "priors/pretrained/brain-mri.safetensors").stat().st_size
    assert "recon = recon.cli:main" in scripts
    assert sum(name.endswith("/licenses/LICENSE") for name in names) == 1


def test_the_sdist_holds_what_the_wheel_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist}
    wanted = {path.relative_to(ROOT).as_posix() for path in modules().values()}
    assert wanted <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "recon/py.typed"} <= names


def test_the_wheel_works_without_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path)
    code = ("import recon, recon.demo; assert recon.__file__.startswith({0!r}); "
            "recon.priors.load('brain-mri'); print(tuple(recon.demo.shipped_slice().shape))")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    out = subprocess.run([sys.executable, "-c", code.format(str(tmp_path))], cwd=tmp_path,
                         env=environment, check=True, capture_output=True, text=True).stdout
    assert out.strip() == "(112, 96)"


def test_python_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert blocks
    together: dict[str, object] = {}  # as a reader runs them
    for block in blocks:
        short = block.replace("samples=4,", "samples=2,").replace("steps=20", "steps=3").replace(
            "progress=True", "steps=2")
        exec(compile(short, "README.md", "exec"), together)


def test_commands_in_the_readme_exist(monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    from recon.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    lines = re.findall(r"\brecon (demo|info|reconstruct|yardstick)\b([^\n#`&]*)", README)
    assert lines
    for command, rest in lines:
        monkeypatch.setattr(sys, "argv", ["recon", command, "--help"])
        with pytest.raises(SystemExit, match="0"):
            main()
        told = capsys.readouterr().out
        assert all(option in told for option in re.findall(r"--[a-z-]+", rest)), (command, rest)


def test_links_in_the_readme_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
