"""Servers under load: real servers and vLLM's own client on the built-in model; measured times are never asserted."""

import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from commands import Running, bench

from lowrank_bench.evals.speed.online import serving
from lowrank_bench.evals.speed.online_spec import Load, LoadTiming, OnlineSpec
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.matrices import Size
from lowrank_bench.records.files import read_records
from lowrank_bench.results.speed.online import OnlineSeries, read_objectives
from lowrank_bench.results.speed.online_figure import draw_online
from lowrank_bench.results.speed.online_records import online_records
from lowrank_bench.results.speed.subject import dense_twin, find_subject
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import parse_method

RATES = tuple(map(Load, (1.0, 4.0, math.inf)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, factorised."""
    folder = tmp_path_factory.mktemp("online") / "small"
    compress(CompressRequest("tiny", parse_method("svd"), 3.0, folder))
    return folder


@pytest.fixture
def series(small: Path) -> list[OnlineSeries]:
    """Two rounds of given times: the second is slower, the factorised model twice as fast."""
    subject = find_subject(str(small))
    spec = OnlineSpec(str(small), "float32", "cpu", 1, (*RATES, Load(concurrency=2)), 8, 16, 4, {"ttft": 200.0})

    def rounds(factor: float) -> tuple[tuple[LoadTiming, ...], ...]:
        return tuple(
            tuple(LoadTiming(*[factor * (slow + number + 1)] * 12) for number in range(4)) for slow in (0.0, 0.5)
        )

    dense = OnlineSeries(dense_twin(subject, small), spec, rounds(1.0), Size(100, 400), None, "0.32.0")
    return [dense, OnlineSeries(subject, spec, rounds(0.5), Size(50, 200), 0, "0.32.0")]


def test_dense_and_factorised_are_served_asked_and_recorded(small, tmp_path):
    load = ("--rates", "8", "--requests", "6", "--prompt-tokens", "8", "--new-tokens", "6", "--repeats", "1")
    done = bench(
        *("speed", "--online", small, *load, "--goodput", "ttft:60000,e2el:90000", "--threads", "1"),
        *("--out", tmp_path / "speed"),
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    frame = read_records(tmp_path / "speed")
    assert set(frame.label) == {"pretrained", "svd"}
    assert set(frame.benchmark) == {"online"}
    assert set(frame.variant) == {"online-vllm-rate8-requests6-prompt8-new6-bfloat16-cpu-1thread"}
    assert len(frame) == 2 * 11
    values = {label: part.set_index("metric").value for label, part in frame.groupby("label")}
    for value in values.values():
        assert (value > 0).all()
        assert value["request_latency_seconds"] > value["time_to_first_token_seconds"]
        assert value["output_tokens_per_second"] == pytest.approx(6 * value["requests_per_second"])
        assert value["goodput_requests_per_second"] == pytest.approx(value["requests_per_second"])
    assert set(frame.scorer) == {"", "e2el:90000,ttft:60000"}
    assert "×" in done.stdout
    assert "loads" in done.stderr or "servers" in done.stderr


def test_a_server_that_ends_is_reported_with_its_last_words(small, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["FancyForCausalLM"]}))
    spec = OnlineSpec(str(broken), "float32", "cpu", 1, (Load(),), 2, 8, 4, {})
    words = r"the server of broken ended with exit code 1: \w*Error: .*FancyForCausalLM"
    with pytest.raises(UserError, match=words), serving(spec, tmp_path / "log"):
        raise AssertionError("it serves an architecture that nobody has")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_server_outlives_the_command(small, tmp_path, number, code):
    running = Running(["speed", "--online", str(small), "--out", str(tmp_path / "speed")], None, {})
    process = psutil.Process(running.pid)
    deadline = time.monotonic() + 300

    def servers() -> list[psutil.Process]:
        return [child for child in process.children(recursive=True) if "--max-num-seqs" in child.cmdline()]

    while not (started := servers()):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.1)
    family = process.children(recursive=True)
    running.send_signal(number)
    while running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.returncode == code
    _, left = psutil.wait_procs([*started, *family], timeout=60)
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]
    assert not os.path.exists(tmp_path / "speed")


def test_records_hold_the_median_of_the_rounds_and_their_ends(series):
    records = {(r.label, r.variant, r.metric): r for r in online_records(series)}
    assert len(records) == 2 * 4 * 11
    variant = "online-vllm-rate4-requests8-prompt16-new4-float32-cpu-1thread"
    row = records["svd", variant, "request_latency_seconds"]
    assert (row.value, row.low, row.high, row.confidence) == (1.125, 1.0, 1.25, 0.5)
    assert (row.headline, row.higher_is_better, row.n) == (True, False, 8)
    assert records["pretrained", variant, "request_latency_seconds"].value == 2.25
    assert records["svd", variant, "goodput_requests_per_second"].scorer == "ttft:200"
    names = {record.variant.split("-")[2] for record in records.values()}
    assert names == {"rate1", "rate4", "rateinf", "concurrency2"}


def test_the_figure_has_the_loads_that_have_a_rate(series, tmp_path):
    paths = draw_online(series, tmp_path / "new")
    assert [path.suffix for path in paths] == [".png", ".svg"]  # one concurrency is no line
    assert "online-vllm-rate-requests8" in paths[0].name
    text = paths[1].read_text()
    for word in ("requests/s that met ttft:200", "first token [ms]", "tiny dense", "small"):
        assert word in text
    assert draw_online([replace(entry, spec=replace(entry.spec, loads=RATES[:1])) for entry in series], tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ttft:200,tpot:50", (("tpot", 50.0), ("ttft", 200.0))), (None, ()), (" e2el:1.5 ", (("e2el", 1.5),))],
)
def test_objectives_are_read(text, expected):
    assert read_objectives(text) == expected


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--online", "--batch-sizes", "1"), "--batch-sizes has no meaning with --online"),
        (("--online", "--engine", "transformers"), "--engine has no meaning with --online"),
        (("--rates", "1"), "--rates is for servers; add --online"),
        (("--goodput", "ttft:1"), "--goodput is for servers; add --online"),
        (("--online", "--goodput", "tttf:1"), "did you mean 'ttft'"),
        (("--online", "--goodput", "ttft:0"), "ttft:200,tpot:50"),
        (("--online", "--goodput", "ttft"), "ttft:200,tpot:50"),
        (("--online", "--rates", "0"), "--rates takes different positive numbers"),
        (("--online", "--rates", "nan"), "--rates takes different positive numbers"),
        (("--online", "--rates", "1,1"), "--rates takes different positive numbers"),
        (("--online", "--rates", "fast"), "the rate 'fast' is not a number"),
        (("--online", "--concurrency", "0"), "--concurrency takes different whole numbers"),
        (("--online", "--requests", "0"), "--requests is 0"),
        (("--online", "--prompt-tokens", "9999"), "do not fit the context"),
        (("--online", "--requests", "4", "--repeats", "0"), "--repeats is 0"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(small, tmp_path, words, sentence):
    done = bench("speed", small, *words, "--out", tmp_path / "speed")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "speed").exists()


def hide_vllm() -> None:
    """As where vLLM is not installed."""
    import importlib.util

    from lowrank_bench.evals.speed import process

    find = importlib.util.find_spec
    process.find_spec = lambda name, *rest: None if name == "vllm" else find(name, *rest)


def test_without_vllm_the_command_that_installs_it_is_named(small):
    done = bench("speed", "--online", small, prepare=hide_vllm)
    assert done.returncode == 2
    assert "pip install 'lowrank-bench[vllm" in done.stderr
    assert "--engine transformers" not in done.stderr
