"""The benchmark of a Basis Selection step compares like with like, and runs."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "perf" / "bs_step.py"
TINY = {"width": 64, "inner": 176, "layers": 1, "heads": 2, "vocabulary": 128, "batch": 2, "length": 16, "rounds": 1}


@pytest.fixture(scope="module")
def bs_step() -> Any:
    spec = importlib.util.spec_from_file_location("bs_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bs_step"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bs_step"]


def test_the_script_prints_a_table_last() -> None:
    options = [f"--{name}={value}" for name, value in TINY.items() if name != "inner"]
    command = [sys.executable, str(SCRIPT), *options, "--variants", "bs 12 %"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    *_, heads, ours = done.stdout.splitlines()
    assert heads.split()[:3] == ["step", "seconds", "tokens/s"]
    assert ours.split()[:3] == ["bs", "12", "%"]
    assert ours.split()[-2:] == ["1.00", "1.00"]


def test_every_variant_trains_what_it_says(bs_step: Any) -> None:
    setup = bs_step.Setup(**TINY, extra=4)
    measured = {variant: bs_step.measure(setup, variant) for variant in bs_step.VARIANTS}
    assert all(entry.seconds > 0 and entry.tokens > 0 for entry in measured.values())
    assert len(bs_step.table(list(measured.values())).splitlines()) == 1 + len(bs_step.VARIANTS)
    bases = [64] * 8  # seven matrices of a layer, and the head; min(m, n) is 64 for each
    gone = sum(k - round(0.12 * k) for k in bases)
    assert measured["bs 100 %"].trained - measured["bs 12 %"].trained == gone
    assert measured["rebuild"].trained == measured["bs 100 %"].trained
    assert measured["full"].trained == sum(p.numel() for p in bs_step.llama(setup).parameters())
    assert measured["lora"].trained == 32 * (4 * (64 + 64) + 3 * (64 + 176))


def test_rebuilding_is_the_same_function_with_the_same_gradients(bs_step: Any) -> None:
    torch.manual_seed(0)
    layer = bs_step.random_bases(torch.nn.Linear(24, 20).double(), 3)
    with torch.no_grad():
        layer.extra_left.normal_()
    twin = bs_step.RebuildingLinear(layer)
    x = torch.randn(7, 24, dtype=torch.float64)
    gradients = []
    for module in (layer, twin):
        y = module(x)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
