"""Engines in processes of their own: ends, crashes, limits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import crashing_engines
import pytest

from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting.host import EngineCrashed, HostedEngine, end_idle
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models import footprint
from lowrank_bench.models.presets import PRESETS

TINY = PRESETS["tiny"].source


def is_running(process_id: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(process_id: int) -> None:
    deadline = time.monotonic() + 120
    while is_running(process_id):
        assert time.monotonic() < deadline, f"process {process_id} is still there"
        time.sleep(0.1)


@pytest.fixture
def open_engine():
    opened = []

    def start(name="faulty", **options):
        opened.append(HostedEngine(name, TINY, "float32", threads=1, **options))
        return opened[-1]

    yield start
    for engine in opened:
        engine.close()
    end_idle()


def test_a_big_model_takes_its_process_along_and_a_small_one_leaves_it_to_the_next(open_engine):
    first = open_engine()
    process = first.process_id
    first.close()
    assert first.peak_memory_bytes > 10 << 20
    assert is_running(process)
    second = open_engine(keep=False)
    assert second.process_id == process
    assert second.generate([[0]], Sampling(2), 1)[0].text == "7"
    assert second.logprobs([], 1) == [[1.0]]
    second.close()
    assert not is_running(process)
    with pytest.raises(RuntimeError, match="closed"):
        second.generate([[0]], Sampling(2), 1)


def test_another_kind_of_engine_ends_the_waiting_process(open_engine):
    first = open_engine()
    first.close()
    other = open_engine("transformers", keep=False)
    assert other.generate([[0]], Sampling(2), 1)
    other.close()
    assert other.peak_memory_bytes > 100 << 20
    assert not is_running(other.process_id)
    assert not is_running(first.process_id)


def test_two_at_once_have_a_process_each(open_engine):
    first, second = open_engine(), open_engine()
    assert first.process_id != second.process_id
    assert first.generate([[0]], Sampling(3), 1) == second.generate([[0]], Sampling(3), 1)


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (0, r"'faulty' failed at 'generate':(?s:.*)ZeroDivisionError: no such thing as a half token"),
        (1, r"'faulty' died \(exit code 3\) at 'generate'(?s:.*)last words: the cache is full(?s:.*)same command"),
        (2, r"'faulty' died \(a segmentation fault\)(?s:.*)crashing_engines.py(?s:.*)same command"),
    ],
)
def test_a_crash_comes_with_its_last_words(open_engine, seed, words):
    engine = open_engine()
    with pytest.raises(EngineCrashed, match=words):
        engine.generate([[0]], Sampling(2, seed=seed), 1)
    assert not is_running(engine.process_id)
    engine.close()


def test_killed_in_the_middle_of_a_generation(open_engine):
    engine, news = open_engine(), []
    with pytest.raises(EngineCrashed, match=r"'faulty' died \(killed, most likely because memory ran out\)"):
        engine.generate([[0], [0]], Sampling(2, seed=3), 1, lambda done, total: news.append(done))
    assert news == [1]


def test_a_refusal_is_a_sentence_and_the_process_goes_on(open_engine):
    engine = open_engine()
    with pytest.raises(UserError, match="not to my taste"):
        engine.generate([[0]], Sampling(2, seed=4), 1)
    assert engine.logprobs([[0, 5]], 1)
    with pytest.raises(UserError, match="has no halves"):
        HostedEngine("faulty", TINY, "float16", threads=1)


def test_an_interrupt_ends_the_process(open_engine):
    engine = open_engine()

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([[0]], Sampling(2), 1, interrupt)
    assert not is_running(engine.process_id)


def test_a_folder_that_cannot_be_loaded_is_refused_by_name(tmp_path):
    import shutil

    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors.*cut short"):
        HostedEngine("transformers", tmp_path / "model", threads=1)
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        HostedEngine("transformer", TINY)


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_a_killed_parent(busy):
    script = (
        "import sys, time; from lowrank_bench.evals.hosting.host import HostedEngine\n"
        "from lowrank_bench.evals.engines.base import Sampling\n"
        f"sys.path.append({str(Path(crashing_engines.__file__).parent)!r}); import crashing_engines\n"
        f"engine = HostedEngine('faulty', {TINY!r}, threads=1)\n"
        "print(engine.process_id, flush=True)\n"
        "report = lambda *news: print(*news, flush=True)\n"
        f"engine.generate([[0]] * 2000, Sampling(1, seed=5), 1, report) if {busy} else time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    if busy:
        assert parent.stdout.readline() == "1 2000\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until_gone(child)


def test_a_batch_beyond_the_memory_is_refused_before_work(monkeypatch):
    with TransformersEngine(TINY, "float32") as engine:
        monkeypatch.setattr(footprint, "free_memory", lambda device: 10 << 20)
        with pytest.raises(UserError, match=r"batch of 64 sequences of up to 101 tokens.*smaller batch"):
            engine.generate([[0]] * 64, Sampling(100), 64)
        assert engine.generate([[0]] * 64, Sampling(2), 2)


def test_a_model_beyond_the_memory_is_refused_before_loading(monkeypatch):
    needs = footprint.footprint(TINY, dtype="float32")
    assert needs.token == 2 * 4 * 4 * 32 * 4  # keys and values, layers, heads, width, bytes
    assert needs.context == 1024
    monkeypatch.setattr(footprint, "free_memory", lambda device: needs.weights + 1000 * needs.token)
    with pytest.raises(UserError, match=r"keys and values of one sequence of 1024 tokens.*--workers"):
        footprint.check_model(needs, TINY, "cpu")


def test_listing_engines_imports_no_library():
    script = (
        "import sys; from lowrank_bench.evals.engines.base import engines; print(*engines.names());"
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["transformers", "vllm"]
