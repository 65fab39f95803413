"""The Triton kernels of CT: their numbers by triton's interpreter, and that they compile for GPUs.

No GPU is wanted. ``interpreted_*.py`` hold what runs interpreted, in processes of their own.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None,
                       reason="triton is not installed: it comes with torch's wheels for CUDA"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1",
                       reason="TRITON_INTERPRET is set, so that nothing can be compiled"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["planar", "cone"])
def test_numbers_by_the_interpreter(part: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider",
         f"tests/operators/interpreted_{part}.py"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


class Kernel(NamedTuple):
    """One kernel with the types of its arguments, the others being constants."""

    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    fused: bool = True  # products with sums


def compiled(kernel: Kernel, arch: int) -> dict[str, Any]:
    """Its forms from Triton's own to the machine's, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: kernel.types.get(name, "constexpr") for name in kernel.function.arg_names}
    done = triton.compile(ASTSource(kernel.function, types, kernel.constants),
                          target=GPUTarget("cuda", arch, 32),
                          options={"enable_fp_fusion": kernel.fused})
    found: dict[str, Any] = dict(done.asm)
    return found


def planar_kernels(real: str) -> list[Kernel]:
    import triton.language as tl

    from recon.operators.ct import gather_triton

    types = dict.fromkeys(("at", "slope", "length", "seen", "arc"), "*fp64")
    types |= {"steep": "*i8", "kinds": "*i8", "x": f"*{real}", "y": f"*{real}"}
    types |= dict.fromkeys(("rays", "rows", "columns", "views", "bins", "items"), "i32")
    weight = tl.float64 if real == "fp64" else tl.float32
    return [Kernel(gather_triton._project, types,
                   {"WEIGHT": weight, "RAYS": 32, "STEPS": 4, "ITEMS": 4}),
            *(Kernel(gather_triton._backproject, types,
                     {"FORM": form, "STEEP_TAPS": 2, "FLAT_TAPS": 3, "WEIGHT": weight,
                      "PIXELS": 128, "ITEMS": 4}) for form in (0, 1, 2))]


def cone_kernels(real: str) -> list[Kernel]:
    from recon.operators.ct import cone_triton

    types = {"views": "*fp64", "sides": "*fp64", "kinds": "*i32", "x": f"*{real}", "y": f"*{real}"}
    types |= dict.fromkeys(("rays", "rows", "columns", "depth", "height", "width", "items",
                            "count"), "i32")
    return [Kernel(cone_triton._project, types, {"RAYS": 128, "ITEMS": 4}, fused=False),
            Kernel(cone_triton._backproject, types, {"VOXELS": 128, "ITEMS": 4}, fused=False)]


def check_offsets(triton_code: str) -> None:
    """No tensor of addresses is reached by a 32-bit offset, or by one multiplied in 32 bits."""
    offsets = re.findall(r"tt\.addptr .*: tensor<\S*!tt\.ptr<\w+>>, tensor<\S*?x?(i\d+)>",
                         triton_code)
    assert offsets
    assert set(offsets) == {"i64"}, f"offsets of {set(offsets)}"
    products = re.findall(r"(%\S+) = arith\.muli .*: tensor<\S*xi32>", triton_code)
    widened = re.findall(r"arith\.extsi (%\S+) : tensor", triton_code)
    assert not set(products) & set(widened), "a 32-bit product made an offset"


@pytest.mark.parametrize(("arch", "real"), [(80, "fp32"), (90, "fp32"), (90, "fp64")])
def test_kernels_compile_for_gpus(arch: int, real: str, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in planar_kernels(real) + cone_kernels(real):
        forms = compiled(kernel, arch)
        assert len(forms["cubin"]) > 1000
        assert f".target sm_{arch}" in forms["ptx"]
        # nothing is added to what another thread may have written
        assert not re.search(r"\b(atom|red)\.", forms["ptx"])
        check_offsets(forms["ttir"])
        # where the axis of a ray is chosen twice, products must be rounded alike
        assert kernel.fused or "fma.rn" not in forms["ptx"]


def test_fused_products_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert "fma.rn.f64" in compiled(cone_kernels("fp32")[0]._replace(fused=True), 90)["ptx"]


def test_offsets_of_32_bits_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    source = tmp_path / "narrow.py"
    source.write_text("import triton\nimport triton.language as tl\n" + "".join(
        f"@triton.jit\ndef {name}(x, items, SIZE: tl.constexpr):\n"
        f"    at = {offset}\n" + "    tl.store(x + at, tl.load(x + at))\n"
        for name, offset in (("narrow", "tl.arange(0, SIZE) * items"),
                             ("late", "(tl.arange(0, SIZE) * items).to(tl.int64)"),
                             ("wide", "tl.arange(0, SIZE).to(tl.int64) * items"))))
    spec = importlib.util.spec_from_file_location("narrow", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def check(name: str) -> None:
        kernel = Kernel(getattr(module, name), {"x": "*fp32", "items": "i32"}, {"SIZE": 128})
        check_offsets(compiled(kernel, 80)["ttir"])

    check("wide")
    with pytest.raises(AssertionError, match="offsets of"):
        check("narrow")
    with pytest.raises(AssertionError, match="a 32-bit product"):
        check("late")
