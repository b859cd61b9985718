"""What must not cost a result: two runs on one folder, a disk that fills up, another clock."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from commands import bench, start
from sweeps import small_sweep, write_config

from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.plan import make_plan

PART = {"methods": ["svd"], "ratios": [2]}


@pytest.fixture(scope="module")
def expected(finished, tmp_path_factory):
    """The records of a part of the finished sweep, whose stages are all complete."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    shutil.copytree(finished.execution.out, folder)
    result = run_sweep(small_sweep(folder, **PART))
    assert result.stages_run == 0
    return read_records(result.folder)


def command(config, file):
    """Write a configuration to a file and return the words for bench that run it."""
    return ["run", "--config", str(write_config(config, file))]


def records_of(config):
    return read_records(config.execution.out / make_plan(config).name)


def test_two_runs_share_one_folder(expected, tmp_path):
    """The same command twice at once: each stage is done by one while the other waits, and both end well."""
    config = small_sweep(tmp_path / "out", **PART)
    words = command(config, tmp_path / "sweep.yaml")
    runs = [start(*words) for _ in range(2)]
    assert [run.wait(timeout=1200) for run in runs] == [0, 0], [run.output() + run.errors() for run in runs]
    assert same_results(expected, records_of(config)) == []
    assert not list((config.execution.out / "stages").glob(".part-*"))
    assert not (config.execution.out / "stages" / "failed").exists()


def test_another_clock_and_time_zone_change_nothing(finished, tmp_path):
    """Files from the future, a zone fourteen hours ahead: all is complete, and the table is the same to the byte."""
    config = small_sweep(tmp_path / "out")
    shutil.copytree(finished.execution.out, config.execution.out)
    for path in config.execution.out.rglob("*"):
        os.utime(path, (4e9, 4e9))
    table = config.execution.out / make_plan(config).name / "results.csv"
    before = table.read_bytes()
    table.unlink()
    words = command(config, tmp_path / "sweep.yaml")
    done = bench(*words, TZ="Pacific/Kiritimati")
    assert done.returncode == 0, done.stderr
    assert "stages are complete already; nothing to do" in done.stdout
    assert table.read_bytes() == before


SMALL_DISK = """
import json, pathlib, shutil, subprocess, sys, time
from commands import start
disk, copy, megabytes, words = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk], check=True)
endings = []

def note_ending(process):
    code = process.wait()
    endings.append([code, " ".join(process.errors().split()), [path.name for path in disk.glob("out/stages/.part-*")]])

process = start(*words)
if megabytes > 64:
    while process.poll() is None and not list(disk.glob("out/stages/.part-*")):
        time.sleep(0.02)
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            pass
    note_ending(process)
    filler.unlink()
    process = start(*words)
note_ending(process)
if (disk / "out").exists():
    shutil.copytree(disk / "out", copy)
print(json.dumps(endings))
"""


def on_a_small_disk(tmp_path, megabytes):
    """Run bench on a disk of its own; above 64 MB, fill it once work begins, then free it and run again."""
    spaces = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*spaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let its users mount a disk of their own")
    (disk := tmp_path / "disk").mkdir()
    words = command(small_sweep(disk / "out", **PART), tmp_path / "sweep.yaml")
    done = subprocess.run(
        [*spaces, sys.executable, "-c", SMALL_DISK, str(disk), str(tmp_path / "kept"), str(megabytes), *words],
        env=os.environ | {"PYTHONPATH": str(Path(commands.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_disk_that_is_too_small_is_refused_before_work_starts(tmp_path):
    ((code, errors, parts),) = on_a_small_disk(tmp_path, 8)
    assert code == 2
    assert re.search(r"the sweep writes up to .* GB but .* has .* GB free; free some space .* --out", errors)
    assert parts == []
    assert not (tmp_path / "kept").exists()


def test_a_disk_that_fills_up_ends_with_a_sentence_and_the_run_goes_on_later(expected, tmp_path):
    (code, errors, parts), again = on_a_small_disk(tmp_path, 80)
    assert code == 2, errors
    assert "Traceback" not in errors
    assert re.search("no space is left on the device of .* then run the same command again", errors)
    assert parts == []
    assert again[0] == 0
    assert same_results(expected, records_of(small_sweep(tmp_path / "kept", **PART))) == []
