"""Every reader of a run compares what it reads with the checksums that were written with it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from sealing import seal
from sweeps import changed

from lowrank_bench.evals.base import EvalSettings
from lowrank_bench.foundation import checksums
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import sha256_file
from lowrank_bench.results.cells import checkpoint_folder, find_cell
from lowrank_bench.results.inspection.gather import inspect_bases, inspect_changes
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.samples.paired_scores import stage_scores
from lowrank_bench.results.samples.stored import compare_samples, rescore_run, sample_file
from lowrank_bench.results.speed.subject import find_subject
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners import doctor
from lowrank_bench.runners.collect import collect
from lowrank_bench.runners.evaluating import evaluate
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.files import DamagedStage, stage_around
from lowrank_bench.runners.store.folders import StageStore


@pytest.fixture
def copied(finished, tmp_path):
    """The folder of a run that a test may damage."""
    shutil.copytree(finished.execution.out, tmp_path / "runs")
    return next(path.parent for path in (tmp_path / "runs").glob("*/results.csv"))


def samples_of(run: Path, cell: str = "svd@2") -> Path:
    return find_cell(f"{run}:{cell}").stage / "samples.jsonl"


def weights_of(run: Path) -> Path:
    cell = find_cell(f"{run}:svd@2")
    return run.parent / "stages" / cell.store().read(cell.stage.name)["inputs"]["model"] / "model.safetensors"


def edited_verdicts(run: Path) -> None:
    file = samples_of(run)
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    for line in lines:
        line["verdicts"] = dict.fromkeys(line["verdicts"], "correct")
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def swapped_samples(run: Path) -> None:
    first, second = samples_of(run), samples_of(run, "svd@4")
    first.rename(first.with_suffix(".aside"))
    second.rename(first)
    first.with_suffix(".aside").rename(second)


def cut_samples(run: Path) -> None:
    os.truncate(samples_of(run), samples_of(run).stat().st_size - 100)


def flipped_sample(run: Path) -> None:
    raw = bytearray(samples_of(run).read_bytes())
    raw[len(raw) // 2] ^= 1
    samples_of(run).write_bytes(raw)


def overwritten_weights(run: Path) -> None:
    file = weights_of(run)
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\x11" * 4000)


def cut_weights(run: Path) -> None:
    os.truncate(weights_of(run), weights_of(run).stat().st_size - 1)


def swapped_weights(run: Path) -> None:
    other = next(
        f for f in run.parent.glob("stages/compress-*/ratio-2/model/model.safetensors") if f != weights_of(run)
    )
    shutil.copy(other, weights_of(run))


def added_weights(run: Path) -> None:
    shutil.copy(weights_of(run), weights_of(run).with_name("more.safetensors"))


SAMPLES = [edited_verdicts, swapped_samples, cut_samples, flipped_sample]
WEIGHTS = [overwritten_weights, cut_weights, swapped_weights, added_weights]
OF_SAMPLES = {
    "compare": lambda run: compare_samples(f"{run}:svd@2", f"{run}:svd@4", None, None, None),
    "compare by folder": lambda run: sample_file(str(samples_of(run).parent)),
    "compare by file": lambda run: sample_file(str(samples_of(run))),
    "rescore": lambda run: rescore_run(run, None, None),
}
OF_WEIGHTS = {
    "export": lambda run: checkpoint_folder(f"{run}:svd@2"),
    "export by folder": lambda run: checkpoint_folder(str(weights_of(run).parent)),
    "inspect": lambda run: inspect_bases(f"{run}:svd@2", "o", 1),
    "inspect by folder": lambda run: inspect_bases(str(weights_of(run).parent), "o", 1),
    "speed": lambda run: find_subject(f"{run}:svd@2"),
    "speed by folder": lambda run: find_subject(str(weights_of(run).parent)),
    "eval": lambda run: evaluate(str(weights_of(run).parent), ["toy-math"], EvalSettings()),
}


@pytest.mark.parametrize("damage", SAMPLES, ids=lambda damage: damage.__name__)
def test_readers_of_samples_refuse(copied, damage):
    damage(copied)
    for reader in OF_SAMPLES.values():
        with pytest.raises(DamagedStage, match=r"samples\.jsonl .* bench doctor --repair moves it aside"):
            reader(copied)
    key = samples_of(copied).parent.name
    scores = stage_scores(samples_of(copied).parent, {("accuracy", "strict"): 0.5})
    assert set(scores.values()) == {"the stage with the samples is damaged"}
    report = gather(copied)
    assert any(key in line and "samples.jsonl" in line for line in report.missing["stages"])
    check = doctor._stages(copied.parent)
    assert not check.fine
    assert f"{key}: samples.jsonl" in check.text


@pytest.mark.parametrize("damage", WEIGHTS, ids=lambda damage: damage.__name__)
def test_readers_of_weights_refuse(copied, damage):
    damage(copied)
    key = stage_around(weights_of(copied)).name
    for reader in OF_WEIGHTS.values():
        with pytest.raises(DamagedStage, match=rf"{key} is damaged .*\.safetensors .* bench doctor --repair"):
            reader(copied)
    assert any(key in line for line in gather(copied).missing["stages"])
    assert f"{key}: " in doctor._stages(copied.parent).text


@pytest.mark.parametrize("file", ["fit-*/factors*.safetensors", "compress-*/ratio-2/report.json"])
def test_the_account_of_a_compression_is_verified(copied, file):
    for path in copied.parent.glob(f"stages/{file}"):
        raw = bytearray(path.read_bytes())
        raw[-10] ^= 1
        path.write_bytes(raw)
    with pytest.raises(DamagedStage, match=path.name):
        inspect_changes(f"{copied}:svd@2")


def test_plain_doctor_says_that_all_is_well(copied):
    check = doctor._stages(copied.parent)
    assert check.fine
    assert "damaged" not in check.text


def test_what_is_copied_out_of_a_stage_is_the_users_own(copied, tmp_path):
    edited_verdicts(copied)
    shutil.copy(samples_of(copied), tmp_path / "samples.jsonl")
    assert sample_file(str(tmp_path / "samples.jsonl")) == tmp_path / "samples.jsonl"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": {}}, "has not one checksum in 'sha256' for each file"),
        ({"sha256": None}, "has no valid 'sha256'"),
        ({"files": None}, "has no valid 'files'"),
        ({"files": {}, "sha256": None}, "has no valid 'sha256'"),
        ({"files": {"../../x": 1}, "sha256": {"../../x": "0" * 64}}, "lists the file '../../x'"),
        ({"inputs": [None]}, "has no valid 'inputs'"),
        ({"inputs": {"model": None}}, "has no valid 'inputs'"),
        ({"result": None}, "has no valid 'result'"),
        ({"ended_at": "yesterday"}, "has no valid time in 'ended_at'"),
        ({"ended_at": None}, "has no valid time in 'ended_at'"),
        ({"started_at": 3}, "has no valid time in 'started_at'"),
    ],
)
def test_a_record_that_no_run_wrote_is_damage(copied, changes, words):
    """Checksummed again, so that nothing but its content says so; repairing it works."""
    stage = samples_of(copied).parent
    seal(stage, **changes)
    store = StageStore(stage.parent)
    for reader in (store.read, store.verify, store.is_done):
        with pytest.raises(DamagedStage) as error:
            reader(stage.name)
        assert words in str(error.value)
    assert doctor.repair(copied.parent)[1][0].key == stage.name


def test_a_record_without_its_own_checksum_is_damage(copied):
    file = samples_of(copied).with_name("stage.json")
    record = json.loads(file.read_text())
    del record["checksum"], record["sha256"]
    file.write_text(json.dumps(record))
    with pytest.raises(DamagedStage, match="has changed since it was written"):
        StageStore(file.parents[1]).read(file.parent.name)


@pytest.mark.parametrize("result", [{}, {"metrics": None}, {"metrics": [{"name": "accuracy", "value": "much"}]}])
def test_results_that_are_no_records_are_damage(finished, copied, result):
    stage = samples_of(copied).parent
    whole = json.loads((stage / "stage.json").read_text())["result"]
    seal(stage, result=(whole if result else {}) | result)
    with pytest.raises(DamagedStage, match=r"stage\.json holds no results of an evaluation"):
        collect(make_plan(changed(finished, out=copied.parent)))


def nested(folder: Path) -> None:
    (folder / "stage.json").write_text("[" * 10_000 + "]" * 10_000)


def deep_inside(folder: Path) -> None:
    text = (folder / "stage.json").read_text()
    (folder / "stage.json").write_text(
        text.replace('"config": {', '"config": {"a": ' + "[" * 10_000 + "]" * 10_000 + ",", 1)
    )


def pipe(name: str):
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def device(folder: Path) -> None:
    (folder / "stage.json").unlink()
    (folder / "stage.json").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "damage",
    [nested, deep_inside, device, *map(pipe, ("stage.json", "samples.jsonl", ".storage.json", "factors9.safetensors"))],
)
def test_pipes_devices_and_deep_nesting_are_reported_at_once(finished, copied, damage):
    stage = samples_of(copied).parent
    damage(stage)
    with pytest.raises(UserError, match=stage.name):
        run_sweep(changed(finished, out=copied.parent))
    assert any(stage.name in line for line in gather(copied).missing["stages"])
    assert not doctor._stages(copied.parent).fine
    assert [repair.key for repair in doctor.repair(copied.parent)[1]] == [stage.name]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file of a remembered size, old enough, and how often it was read."""
    monkeypatch.setenv(checksums.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", 0.0)
    file, reads = tmp_path / "weights", []
    file.write_bytes(os.urandom(checksums.LARGE_BYTES))
    monkeypatch.setattr(checksums, "sha256_file", lambda path: reads.append(path) or sha256_file(path))
    return file, reads


def test_a_large_file_is_read_once(large):
    file, reads = large
    assert checksums.remembered_sha256(file) == checksums.remembered_sha256(file) == sha256_file(file)
    assert len(reads) == 1


@pytest.mark.parametrize("change", ["overwritten", "mtime set back", "another file in its place"])
def test_a_change_is_seen_though_size_and_time_are_the_same(large, change):
    file, reads = large
    checksums.remembered_sha256(file)
    before = file.stat()
    if change == "another file in its place":
        file.with_name("other").write_bytes(bytes(before.st_size))
        os.utime(file.with_name("other"), ns=(before.st_atime_ns, before.st_mtime_ns))
        file.with_name("other").rename(file)
    else:
        with file.open("r+b") as opened:
            opened.write(b"\0" * 4000)
    if change == "mtime set back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checksums.remembered_sha256(file) == sha256_file(file)
    assert len(reads) == 2


def test_a_file_of_this_moment_is_not_remembered(large, monkeypatch):
    file, reads = large
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", 60.0)
    for _ in range(2):
        checksums.remembered_sha256(file)
    assert len(reads) == 2


@pytest.mark.parametrize("content", [b"no database", b"", None])
def test_a_cache_that_cannot_be_used_only_costs_time(large, tmp_path, content):
    file, _ = large
    (tmp_path / "cache").mkdir()
    database = tmp_path / "cache" / "checksums.sqlite"
    database.write_bytes(content) if content is not None else database.mkdir()
    assert checksums.remembered_sha256(file) == sha256_file(file)
