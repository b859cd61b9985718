"""The script for GPUs: every part in its small form, in an environment as bare as the machine that it is for."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bare import bare_environment

SCRIPT = Path(__file__).parents[2] / "perf" / "gpu.py"
ABSENT = ("lowrank_bench", "datasets", "math_verify", "sentencepiece", "vllm", "ray", "scipy")


def script(*words: str, python: str | Path = sys.executable, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    return subprocess.run([str(python), str(SCRIPT), *words], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return bare_environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def ran(bare: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The rows of all parts."""
    out = tmp_path_factory.mktemp("gpu")
    words = ("--device", "cpu", "--small", "--together", "--out", str(out))
    done = script(*words, python=bare[0], PYTHONPATH=str(bare[1]))
    assert done.returncode == 0, (done.stdout.partition("rows failed or missed")[2], done.stderr[-20000:])
    again = script("--table", "--small", "--out", str(out), python=bare[0], PYTHONPATH=str(bare[1]))
    assert again.returncode == 0
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    tables = again.stdout.split("\npart ")[1:]
    assert len(tables) == len(results) == 8
    for result in results.values():
        assert all(row["title"] in done.stdout and row["title"] in again.stdout for row in result["rows"])
        assert f"--parts {result['part']} --small" in result["facts"]["command"]
    return {name: result["rows"] for name, result in results.items()}


def test_the_environment_has_nothing_but_what_is_listed(bare: tuple[Path, Path]) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {(*ABSENT, 'pydantic')} if find_spec(n)])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for path, expected in ({}, "[]"), ({"PYTHONPATH": str(bare[1])}, "['pydantic']"):
        done = subprocess.run([bare[0], "-c", code], capture_output=True, text=True, env=environment | path, check=True)
        assert done.stdout.strip() == expected


def test_no_row_of_the_small_form_fails_or_is_left_out(ran: dict[str, list[dict[str, str]]]) -> None:
    absent = {"two updates, 8-bit"}  # torchao is not among what the machine needs
    for name, all_rows in ran.items():
        rows = [row for row in all_rows if row["title"] not in absent]
        bad = [row for row in rows if row["met"] is False or row["figure"] in ("failed", "not measured")]
        assert rows
        assert not bad, (name, bad)


def test_each_part_has_the_rows_that_its_name_promises(ran: dict[str, list[dict[str, str]]]) -> None:
    texts = {name: [f"{row['title']}: {row['figure']} {row['against']}" for row in rows] for name, rows in ran.items()}

    def count(part: str, *words: str) -> int:
        return sum(all(word in text for word in words) for text in texts[part])

    assert count("correctness", "factors at 2x", "largest difference") == 2
    assert count("correctness", "killed after", "were not run again") == 1
    assert count("correctness", "FSDP2", "by 2 processes") == 1
    assert count("memory", "two updates, device", "estimated") == 1
    assert count("ranks", "us, ", "x as fast") >= 3
    assert count("decomposition", "residual", "torch.linalg.svd") == 4  # q, gate and down, and q in float64
    assert count("decomposition", "float64") == 2
    assert count("training", "batch 2 x 8") == 6
    assert count("decode", "weights 0.50 x", "kernel by kernel") == 2  # batch 1 and 8
    assert count("decode", "weights 0.50 x", "cache of fixed size") == 2
    assert count("decode", "GENERATION_SHARE", "0.05 assumed") == 2
    assert count("calibration", "Gram matrices of 14 inputs", "x the time of the forward pass") == 2
    assert count("fisher", "Fisher pass, batch", "tokens/s") == 1


@pytest.fixture
def slow_script(tmp_path: Path) -> Path:
    """A script with a part that cannot be imported and one that never ends; it leaves its process id behind."""
    (tmp_path / "slow.py").write_text(
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from gpu_sections import frame\n"
        "frame.LIMIT = float(sys.argv.pop(1)) if sys.argv[1].isdigit() else 12.0\n"
        "parts = {'broken': frame.Part('no_such_module', 5.0), 'slow': frame.Part('sleeping', 6.0)}\n"
        f"sys.modules['gpu_sections'].__path__.append({str(tmp_path)!r})\n"
        "sys.exit(frame.main(Path(__file__).resolve(), '', parts, 'none'))\n"
    )
    (tmp_path / "sleeping.py").write_text(
        "import os, pathlib, time\nfrom gpu_sections.table import Row\n"
        "def run(context):\n"
        "    yield Row('first', '1 s')\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "    yield Row('second', '2 s')\n"
    )
    return tmp_path / "slow.py"


def test_a_part_that_fails_or_takes_too_long_is_a_row(slow_script: Path, tmp_path: Path) -> None:
    words = ["--device", "cpu", "--small", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, slow_script, "20", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stdout
    slow = json.loads((tmp_path / "out" / "slow.json").read_text())["rows"]
    assert [row["title"] for row in slow] == ["first", "slow"]
    assert "killed after" in slow[1]["note"]
    assert not slow[1]["met"]


def test_a_part_ends_with_the_script(slow_script: Path, tmp_path: Path) -> None:
    words = ["--device", "cpu", "--small", "--parts", "slow", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, slow_script, "300", *words], stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "pid").exists)
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists())


def wait_for(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))


@pytest.mark.usefixtures("sections")
def test_all_parts_end_by_their_own_clock_before_nine_minutes() -> None:
    import gpu
    from gpu_sections.frame import LIMIT

    assert LIMIT <= 540
    assert all(part.seconds < LIMIT for part in gpu.PARTS.values())


@pytest.mark.usefixtures("sections")
def test_a_line_through_two_stacks_is_the_models_own_size() -> None:
    from bs_step import llama
    from gpu_sections.fitting import Stack
    from gpu_sections.training import SMALL

    counts = [sum(p.numel() for p in llama(replace(SMALL, layers=n)).parameters()) for n in (1, 2, 5)]
    assert Stack((1, counts[0]), (2, counts[1])).at(5) == counts[2]
    assert Stack((1, 2.0), (2, 2.0)).at(5) is None


@pytest.mark.usefixtures("sections")
def test_greedy_decoding_with_either_cache_is_the_decoding_without_one() -> None:
    from gpu_sections.decode import FixedDecoder, greedy
    from random_models import TINY, random_llama

    for ratio in (1.0, 2.0):
        model = random_llama(TINY, ratio, torch.float64, "cpu")
        ids = prompts = torch.arange(3, 11)[None].repeat(2, 1) + torch.tensor([[0], [5]])
        with torch.no_grad():
            decoded = greedy(model, model(input_ids=ids, use_cache=True), 4)
            for _ in range(4):
                ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            assert torch.equal(decoded, ids[:, 8:])
            decoder = FixedDecoder(model, prompts, 4)
            first = decoder.last.clone()
            for _ in range(2):  # as each round does
                decoder.rewind(8)
                decoder.last.copy_(first)
                for position in range(1, 4):
                    decoder.decode(1)
                    assert torch.equal(decoder.last, ids[:, 8 + position : 9 + position])


@pytest.mark.usefixtures("sections")
def test_factors_that_differ_are_seen() -> None:
    from gpu_sections.correctness import largest_difference

    here = {"a": torch.eye(3), "b": torch.eye(2)}
    assert largest_difference(here, here)[0] == 0
    assert largest_difference(here, here | {"b": 1.01 * torch.eye(2)}) == (pytest.approx(0.01, rel=1e-3), "b")
    with pytest.raises(ValueError, match="only one side has b"):
        largest_difference(here, {"a": torch.eye(3)})


@pytest.mark.usefixtures("sections")
def test_what_is_estimated_has_to_be_near_what_is_measured() -> None:
    from gpu_sections.memory import judged

    for planned, met in ((100, True), (119, True), (81, True), (130, False), (70, False)):
        assert judged("device", "", "", 100, planned, True).met is met
    assert judged("device", "", "", 100, 300, False).met is None


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
    from gpu_sections import decode, ranks, training
    from gpu_sections.table import Context

    for part in (decode, ranks, training):
        assert {row.figure for row in part.run(Context("cpu", True, 0.0))} == {"not measured"}


def test_words_that_cannot_be_meant_are_refused() -> None:
    for words, answer in (
        (["--device", "cpu"], "add --small"),
        (["--device", "cpu", "--small", "--parts", "decoding"], "there are: correctness"),
    ):
        done = script(*words)
        assert done.returncode == 2
        assert answer in done.stderr


@pytest.mark.usefixtures("sections")
def test_the_real_sweep_says_that_it_goes_on_and_gives_headline_values_at_the_end(
    finished: Any, tmp_path: Path
) -> None:
    from gpu_sections.real_sweep import results, run
    from gpu_sections.table import Context

    given = {"model": "tiny", "task": "toy-math", "data": "", "steps": "2", "limit": "4"}
    (row,) = run(Context("cpu", True, 1.0, folder=tmp_path, options=given))
    assert (row.figure, row.met) == ("0 stages are done", False)
    (file,) = finished.execution.out.glob("*/results.csv")
    rows = list(results(file))
    assert all(row.figure.startswith("pass@1 ") and row.figure.endswith("n = 4") for row in rows)
    assert sum(" at 4.0" in row.title and "recovered" in row.title for row in rows) == 3


@pytest.mark.usefixtures("sections")
def test_the_training_free_part_names_the_metric_and_goes_on_when_it_is_run_again(
    finished: Any, tmp_path: Path
) -> None:
    from gpu_sections.real_training_free import results, run, words
    from gpu_sections.table import Context

    given = {"model": "tiny", "task": "toy-math", "data": "", "steps": "2", "limit": "4"}
    (row,) = run(Context("cpu", True, 1.0, folder=tmp_path, options=given))
    assert (row.figure, row.target, row.met) == ("0 stages are done", "complete", False)
    (file,) = finished.execution.out.glob("*/results.csv")
    figures = [row.figure for row in results(file)]
    assert len(figures) > 3
    assert all(re.fullmatch(r"\w+ [\d.]+ \[[\d.]+, [\d.]+\], n = 4", text) for text in figures)
    for name in ("embeddings", "others", "searches"):
        chosen = words(Context("cuda", False, 1.0, folder=tmp_path, options=given), name)
        assert ("2" in chosen[-1].split(",")) == (name == "embeddings")  # others leave the embedding: 1.59x is the most


@pytest.mark.usefixtures("sections")
def test_a_stage_that_was_killed_before_its_rename_is_not_complete(tmp_path: Path) -> None:
    from gpu_sections.sweeps import stages

    for name in ("fit-1", ".part-fit-2", "failed"):
        (tmp_path / "stages" / name).mkdir(parents=True)
        if name != "failed":
            (tmp_path / "stages" / name / "stage.json").write_text('{"kind": "fit"}')
    assert stages(tmp_path) == stages(tmp_path, "fit") == {"fit-1": {"kind": "fit"}}
