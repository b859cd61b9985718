import errno
import json
import logging
import multiprocessing as mp
import pickle
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed_stages import (
    RESULTS,
    compress_stage,
    evaluate_stage,
    finetune_stage,
    fit_stage,
    quantise_stage,
    recover_stage,
)

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.specs import parse_stage
from lowrank_bench.runners.stage_results import (
    FitResult,
    RecordedEngine,
    RecordedProcesses,
    RecordedTraining,
    TrainingResult,
)
from lowrank_bench.runners.store import locks
from lowrank_bench.runners.store.folders import StageStore, input_digests
from lowrank_bench.runners.store.locks import hold_lock
from lowrank_bench.runners.training.settings import TrainSettings

STAGE = fit_stage("a fit", fit={"a": 1})
KINDS = {
    "finetune": finetune_stage,
    "fit": fit_stage,
    "compress": compress_stage,
    "recover": recover_stage,
    "quantise": quantise_stage,
    "evaluate": evaluate_stage,
}


def fill(folder: Path) -> FitResult:
    (folder / "out.txt").write_text("result")
    return FitResult(matrices=7)


def test_key_depends_on_config_and_inputs_only():
    assert fit_stage("other", fit={"a": 1}, device="cuda", location="elsewhere").key == STAGE.key
    assert fit_stage(fit={"a": 2}).key != STAGE.key
    assert fit_stage(fit={"a": 1}, model="n").key != STAGE.key
    assert len({stage().key for stage in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_travels_as_text_and_by_pickle(kind):
    stage = KINDS[kind]("a title")
    for other in (parse_stage(stage.model_dump_json()), pickle.loads(pickle.dumps(stage))):
        assert (type(other), other, other.key) == (type(stage), stage, stage.key)
    assert stage.kind == kind


def test_options_at_their_default_and_where_a_training_keeps_its_moments_are_no_part_of_the_key():
    assert compress_stage(rank_multiple=1).key == compress_stage().key != compress_stage(rank_multiple=8).key
    host, here = (finetune_stage(train=TrainSettings(placement=placement)) for placement in ("host-moments", "device"))
    assert host.key == here.key != finetune_stage(train=TrainSettings(placement="8-bit")).key
    assert host.spec == here.spec


def test_a_stage_is_done_once_and_says_what_ran(tmp_path):
    store, calls = StageStore(tmp_path), []

    def work(folder):
        calls.append(folder)
        return fill(folder)

    first, second = store.run(STAGE, work), store.run(STAGE, work)
    assert len(calls) == 1
    assert first == second
    assert first.result.matrices == 7
    record = json.loads((store.path(STAGE.key) / "stage.json").read_text())
    assert record["status"] == "done"
    assert record["result"] == {"matrices": 7}
    assert record["config"] == {"fit": {"a": 1}}
    assert record["files"] == {"out.txt": 6}
    assert record["seconds"] >= 0
    assert record["peak_memory_bytes"] > 1 << 20
    assert record["provenance"]["versions"]["torch"]
    assert record["provenance"]["hardware"]["cpu"]


def test_what_a_stage_reads_is_known_by_its_content(tmp_path):
    after = compress_stage(model=f"{STAGE.key}/ratio-2/model", fit=STAGE.key)
    digests = []
    for name, text in (("one", "result"), ("again", "result"), ("other", "another result")):
        store = StageStore(tmp_path / name)

        def work(folder, text=text):
            (folder / "out.txt").write_text(text)
            return FitResult()

        store.run(STAGE, work)
        digests.append(input_digests(store.ready(after)))
    assert digests[0].keys() == {"model", "fit"}
    assert digests[0] == digests[1]
    assert digests[0]["fit"] != digests[2]["fit"]


def test_a_resumed_stage_took_what_both_attempts_took(tmp_path):
    used = RecordedTraining(steps=1, tokens=9, resumed_seconds=1e6, resumed_peak_memory_bytes=1 << 50)
    record = StageStore(tmp_path).run(finetune_stage(), lambda folder: TrainingResult(training=used))
    assert record.seconds > 1e6
    assert record.peak_memory_bytes == 1 << 50


def test_memory_and_cpu_seconds_of_other_processes_count(tmp_path):
    engine = RecordedEngine(name="vllm", version="1", peak_memory_bytes=1 << 50, cpu_seconds=1e6)
    record = StageStore(tmp_path).run(
        evaluate_stage(), lambda folder: RESULTS["evaluate"].model_copy(update={"engine": engine})
    )
    assert (record.peak_memory_bytes, record.cpu_seconds > 1e6) == (1 << 50, True)
    together = RecordedProcesses(count=2, strategy="ddp", accelerate="1", peak_memory_bytes=1 << 51)
    result = RESULTS["finetune"].model_copy(update={"processes": together})
    assert StageStore(tmp_path).run(finetune_stage(), lambda folder: result).peak_memory_bytes == 1 << 51


def test_failure_leaves_no_stage_but_a_record(tmp_path):
    store = StageStore(tmp_path)

    def work(folder):
        fill(folder)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        store.run(STAGE, work)
    assert not store.is_done(STAGE.key)
    assert not list(tmp_path.glob(".part-*"))
    (failed,) = (tmp_path / "failed").glob("*.json")
    assert json.loads(failed.read_text())["error"] == "RuntimeError: broken"
    assert store.run(STAGE, fill).key == STAGE.key


def test_no_space_is_a_sentence(tmp_path):
    def work(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"no space is left.*--out"):
        StageStore(tmp_path).run(STAGE, work)


def test_rest_of_a_killed_stage_is_replaced(tmp_path):
    store = StageStore(tmp_path)
    part = tmp_path / f".part-{STAGE.key}"
    part.mkdir(parents=True)
    (part / "half.bin").write_text("half")
    store.run(STAGE, fill)
    assert not part.exists()
    assert not (store.path(STAGE.key) / "half.bin").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "stage.json").unlink(), "stage.json"),
        (lambda f: (f / "stage.json").write_text("{"), "stage.json"),
        (lambda f: (f / "out.txt").unlink(), "out.txt is missing"),
        (lambda f: (f / "out.txt").write_text("cut"), "out.txt has another size"),
    ],
)
def test_damaged_folder_is_named_with_the_remedy(tmp_path, damage, words):
    store = StageStore(tmp_path)
    store.run(STAGE, fill)
    damage(store.path(STAGE.key))
    with pytest.raises(UserError, match=words) as error:
        store.is_done(STAGE.key)
    assert f"{store.path(STAGE.key)} is damaged" in str(error.value)
    assert "bench doctor --repair" in str(error.value)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_flipped_bit_is_found(data):
    with tempfile.TemporaryDirectory() as root:
        store = StageStore(Path(root))
        store.run(STAGE, fill)
        store.verify(STAGE.key)
        file = store.path(STAGE.key) / data.draw(st.sampled_from(["out.txt", "stage.json"]))
        raw = bytearray(file.read_bytes())
        # The record's length differs from run to run, so the place is drawn as a share of it.
        raw[int(data.draw(st.floats(0, 1, exclude_max=True)) * len(raw))] ^= 1 << data.draw(st.integers(0, 7))
        before = json.loads(file.read_bytes()) if file.name == "stage.json" else None
        file.write_bytes(raw)
        try:
            same = before is not None and json.loads(bytes(raw)) == before  # white space, or 1e+0 for 1e-0
        except ValueError:
            same = False
        if not same:
            with pytest.raises(UserError, match="damaged"):
                store.verify(STAGE.key)


def test_a_flipped_bit_in_the_name_of_the_checksum_is_found(tmp_path):
    store = StageStore(tmp_path)
    store.run(STAGE, fill)
    file = store.path(STAGE.key) / "stage.json"
    file.write_text(file.read_text().replace('"checksum"', '"checksul"'))
    with pytest.raises(UserError, match="damaged"):
        store.verify(STAGE.key)


def test_a_damaged_stage_is_set_aside_and_done_again(tmp_path):
    store = StageStore(tmp_path)
    for number in (1, 2):
        store.run(STAGE, fill)
        folder = store.set_aside(STAGE.key)
        assert (folder / "out.txt").read_text() == "result"
        assert folder.name == STAGE.key + ("" if number == 1 else ".2")
        assert not store.is_done(STAGE.key)
        assert store.keys() == []


def _hold(root: str, started: str) -> None:
    def work(folder: Path) -> FitResult:
        Path(started).touch()
        time.sleep(600)
        return FitResult()

    StageStore(Path(root)).run(STAGE, work)


def test_only_what_nobody_works_on_is_cut_off(tmp_path):
    store, started = StageStore(tmp_path / "stages"), tmp_path / "started"
    process = mp.get_context("spawn").Process(target=_hold, args=(str(store.root), str(started)))
    process.start()
    try:
        while not started.exists():
            assert process.is_alive()
            time.sleep(0.05)
        assert store.cut_off() == []
    finally:
        process.kill()
        process.join()
    assert [path.name for path in store.cut_off()] == [f".part-{STAGE.key}"]


def _slow(root: str, log: str) -> None:
    def work(folder: Path) -> FitResult:
        with open(log, "a") as file:
            file.write("x")
        time.sleep(0.5)
        return fill(folder)

    StageStore(Path(root)).run(STAGE, work)


def test_two_processes_never_do_the_same_stage(tmp_path):
    log = tmp_path / "log"
    context = mp.get_context("spawn")
    processes = [context.Process(target=_slow, args=(str(tmp_path / "stages"), str(log))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "x"


def _hold_lock(root, taken, done):
    with hold_lock(Path(root), STAGE.key):
        taken.set()
        done.wait(300)


@pytest.mark.parametrize("note", ["as written", "lost", "damaged"])
def test_who_waits_for_a_lock_says_so(tmp_path, monkeypatch, note):
    """Again and again, with the lock's file, the process that holds it, and since when."""
    monkeypatch.setattr(locks, "FIRST_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(locks, "NOTICE_SECONDS", 0.1)
    context = mp.get_context("fork")
    taken, done = context.Event(), context.Event()
    process = context.Process(target=_hold_lock, args=(str(tmp_path), taken, done))
    process.start()
    assert taken.wait(300)
    holder = tmp_path / f".holder-{STAGE.key}"
    if note == "lost":
        holder.unlink()
    elif note == "damaged":
        holder.write_text("[[[")
    seen = []

    class Watch(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())
            if len(seen) == 2:
                done.set()

    logger, watch = logging.getLogger(locks.__name__), Watch()
    logger.addHandler(watch)
    try:
        StageStore(tmp_path).run(STAGE, fill)
    finally:
        logger.removeHandler(watch)
        process.join()
    assert len(seen) >= 2
    who = f"process {process.pid} on '{socket.gethostname()}', since " if note == "as written" else "another process"
    assert all(f"the lock {tmp_path}/.lock-{STAGE.key}" in line and who in line for line in seen[:2])
    assert not holder.exists()
