"""The script for GPUs, in its small form in a process of its own."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "perf" / "gpu.py"


def script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=os.environ)


def test_the_small_form_ends_with_a_table_whose_targets_are_met() -> None:
    done = script("--device", "cpu", "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("section ") :].splitlines()
    assert table[-1]
    assert not any(" NO " in line or "failed" in line or "not measured" in line for line in table)
    decomposition = [line for line in table if line.startswith("decomposition")]
    assert sum("residual <" in line and " yes" in line for line in decomposition) == 6
    of = {name: [line for line in table if line.startswith(name)] for name in ("fisher", "training", "decode")}
    assert all("tokens/s" in lines[0] for lines in of.values())
    assert sum("line through 1 and 2 layers" in line for line in of["training"]) == 6
    assert sum("weights 0.50 x" in line for line in of["decode"]) == 2  # factorised at 2x, batch 1 and 8
    assert any("GENERATION_SHARE" in line and "0.05 assumed" in line for line in of["decode"])


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


@pytest.mark.usefixtures("sections")
def test_a_line_through_two_stacks_is_the_models_own_size() -> None:
    from bs_step import llama
    from gpu_sections.fitting import Stack
    from gpu_sections.training import SMALL

    counts = [sum(p.numel() for p in llama(replace(SMALL, layers=n)).parameters()) for n in (1, 2, 5)]
    assert Stack((1, counts[0]), (2, counts[1])).at(5) == counts[2]
    assert Stack((1, 2.0), (2, 2.0)).at(5) is None


@pytest.mark.usefixtures("sections")
def test_greedy_decoding_with_the_cache_is_the_decoding_without_it() -> None:
    from gpu_sections.decode import greedy
    from random_models import TINY, random_llama

    for ratio in (1.0, 2.0):
        model = random_llama(TINY, ratio, torch.float64, "cpu")
        ids = torch.arange(3, 11)[None].repeat(2, 1) + torch.tensor([[0], [5]])
        with torch.inference_mode():
            found = greedy(model, model(input_ids=ids, use_cache=True), 4)
            for _ in range(4):
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(found, ids[:, 8:])


@pytest.mark.usefixtures("sections")
def test_a_batch_is_halved_until_it_fits() -> None:
    from gpu_sections.fitting import largest_that_fits

    def work(batch: int) -> int:
        if batch > 3:
            raise torch.cuda.OutOfMemoryError
        return 10 * batch

    assert largest_that_fits(8, work) == (2, 20)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        largest_that_fits(8, lambda batch: work(batch + 8))


@pytest.mark.usefixtures("sections")
def test_where_the_time_is_up_rows_say_so() -> None:
    from gpu_sections import decode, training
    from gpu_sections.table import Where

    assert {row.figure for row in decode.run(Where("cpu", True, 0.0))} == {"not measured"}
    assert {row.figure for row in training.run(Where("cpu", True, 0.0))} == {"not measured"}


def test_words_that_cannot_be_meant_are_refused() -> None:
    for words, answer in (
        (["--device", "cpu"], "add --small"),
        (["--device", "cpu", "--small", "--sections", "decoding"], "there are: decomposition"),
    ):
        done = script(*words)
        assert done.returncode == 2
        assert answer in done.stderr
