"""The formulas of peak memory against measured peaks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.memory import Calibration, compress_peak, fit_peak

BENCHMARK = Path(__file__).parents[2] / "perf" / "peak_memory.py"
GIB = 2**30


def llama(width: int, layers: int, heads: int, inner: int) -> Any:
    """Return a Llama-2 on the meta device."""
    config = tf.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        return tf.AutoModelForCausalLM.from_config(config)


def read(method: Any) -> Calibration | None:
    """Return what a method reads of texts of 512 tokens."""
    return Calibration(method.samples, method.batch_size, 512) if method.requirements.data_in_fit else None


MEASURE = """
import json, torch
from lowrank_bench.foundation.memory import peak_resident_bytes, reset_peak_memory
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.moments import Moments
from lowrank_bench.methods.estimates import decompose_bytes

def statistic(name, n):
    if name == "fwsvd":
        return torch.rand(n)
    x = torch.randn(n, n, dtype=torch.float64)
    moments = Moments(x @ x.T, x.sum(1), x.abs().sum(1), n, 3)
    return (moments, None) if name == "svd-llm" else moments if name in ("afm", "asvd") else None

found = {}
for name in ("svd", "fwsvd", "svd-llm", "afm", "asvd", "magnitude", "random"):
    method = create_method(name)
    method.decompose(torch.randn(256, 256), statistic(name, 256))
    for shape, regular in ((s, r) for s in ((768, 768), (512, 1280), (1280, 512)) for r in (False, True)):
        weight, given = torch.randn(shape), statistic(name, shape[1])
        if not regular:  # so that what goes through a Gram matrix falls back to the SVD
            weight[-1] = weight[0]
            weight[:, -1] = weight[:, 0]
        if hasattr(method, "_last"):
            method._last = None  # the root of the matrices before
        reset_peak_memory()
        before = peak_resident_bytes()
        factors = method.decompose(weight, given)
        found[f"{name} {shape} {regular}"] = peak_resident_bytes() - before, decompose_bytes(method, *shape), regular
        del factors, weight, given
print(json.dumps(found))
"""


def test_no_decomposition_takes_more_than_its_formula() -> None:
    """The resident set's peak beside weight and statistic, in a process that gives freed memory back at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for case, (taken, formula, regular) in json.loads(done.stdout).items():
        assert taken <= formula + (2 << 20), case
        assert regular or formula <= 2.5 * taken, case


COMPRESS = """
import json, sys, torch
from pathlib import Path
from lowrank_bench.foundation.memory import peak_resident_bytes, reset_peak_memory, usual_bytes
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.memory import compress_peak
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.dtypes import save_dtypes
from lowrank_bench.models.loading import load_skeleton
from lowrank_bench.models.shards import save_streamed
from lowrank_bench.models.streamed import open_streamed

method, folder, out = create_method("magnitude"), sys.argv[1], Path(sys.argv[2])
out.mkdir()
def compress(saved):
    reset_peak_memory()
    before = peak_resident_bytes()
    model = open_streamed(folder)
    estimated = compress_peak(method, load_skeleton(folder), True, "cpu").usual - usual_bytes()
    fitted = method.fit(model, None)
    method.compress(model, fitted, Budget(1.02))
    del fitted
    save_streamed(model, None, saved, save_dtypes("own", folder, ""))
    return peak_resident_bytes() - before, estimated
compress(out / "first")  # what libraries take once
print(json.dumps(compress(out / "second")))
"""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_large_embedding_is_written_in_what_was_estimated(dtype: torch.dtype, tmp_path: Path) -> None:
    """As stored, widened and as written: 8 bytes a parameter for bfloat16, and for float32 the file's pages alone."""
    config = tf.LlamaConfig(
        **{"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
        vocab_size=131072,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    tf.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(tmp_path / "dense")
    command = [sys.executable, "-c", COMPRESS, str(tmp_path / "dense"), str(tmp_path / "out")]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    taken, formula = json.loads(done.stdout)
    assert 0.8 <= formula / taken <= 1.2, (formula, taken)


@pytest.mark.parametrize("name", ["svd", "fwsvd", "svd-llm"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_llama2_13b_fits_into_24_gib_only_layer_by_layer(name: str, device: str) -> None:
    """Both fit and compress, on the host and on the GPU; loaded whole it fits nowhere near."""
    model, method = llama(5120, 40, 40, 13824), create_method(name)
    for peak in (fit_peak(method, model, True, device, read(method)), compress_peak(method, model, True, device)):  # type: ignore[arg-type]
        assert max(peak.host, peak.device) < 24 * GIB
        assert peak.least <= peak.total
    whole = fit_peak(method, model, False, device, read(method))  # type: ignore[arg-type]
    assert whole.least > 48 * GIB


@pytest.mark.parametrize("name", ["svd", "fwsvd", "svd-llm"])
def test_memory_of_sequential_calibration_does_not_grow_with_the_number_of_layers(name: str) -> None:
    """Twice the layers take the same memory when streamed, and more when loaded whole."""
    method = create_method(name)
    small, large = (llama(512, layers, 8, 1376) for layers in (4, 8))
    for peak in (fit_peak, compress_peak):
        more = (read(method),) if peak is fit_peak else ()
        streamed, whole = (
            [peak(method, m, by_layer, "cpu", *more) for m in (small, large)] for by_layer in (True, False)
        )  # type: ignore[operator]
        assert streamed[0].host == streamed[1].host
        assert whole[0].host < whole[1].host


def test_a_sharded_model_is_compressed_in_the_memory_of_its_largest_layer() -> None:
    """Below 1.5 times its working set and a constant, measured in processes of their own; loading whole takes more."""
    command = [sys.executable, str(BENCHMARK), "--gb", "0.2", "--methods", "magnitude"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    streamed, whole = (line.split() for line in done.stdout.splitlines() if line.startswith("magnitude"))
    peak, target, loaded = (float(text.replace(",", "")) for text in (streamed[4], streamed[5], whole[4]))
    assert peak <= target
    assert peak < loaded
