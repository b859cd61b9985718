"""Processes that are started import nothing from the current folder."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typed_stages import fit_stage, recover_stage

import lowrank_bench
from lowrank_bench.evals.grading.math.pool import Request, Worker
from lowrank_bench.evals.speed.process import measure_apart
from lowrank_bench.evals.speed.spec import SpeedSpec
from lowrank_bench.foundation import fork_server
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.process import python_command, python_environment
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners.executors import local
from lowrank_bench.runners.executors import ray as ray_executor
from lowrank_bench.runners.executors.parallel.launch import ProcessesCrashed, train_together
from lowrank_bench.runners.process_setup import ProcessSetup
from lowrank_bench.runners.store.folders import StageStore

PACKAGE = Path(lowrank_bench.__file__).parent
HOSTILE = ("torch", "sympy", "json", "ray", "multiprocessing", "transformers", "accelerate", "lowrank_bench")


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """Make the current folder one whose modules write a file, in another folder, when they are imported."""
    folder, marks = tmp_path / "hostile", tmp_path / "marks"
    folder.mkdir()
    marks.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(marks / name)!r}, 'w').close()\nraise ImportError('hostile')\n")
    monkeypatch.chdir(folder)
    yield marks
    assert not list(marks.iterdir())


def test_the_marks_are_written_without_the_flag(marks):
    code = "import sympy"
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 1
    assert (marks / "sympy").exists()
    (marks / "sympy").unlink()
    assert subprocess.run(python_command("-c", code)).returncode == 0
    again = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}]))"
    assert subprocess.run(python_command("-c", again), env=python_environment()).returncode == 0


def test_what_the_user_puts_on_the_path_counts(marks, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("print('own')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run(python_command("-m", "own"), env=python_environment(), capture_output=True, text=True)
    assert done.stdout == "own\n"


def test_math_worker(marks):
    worker = Worker()
    try:
        assert worker.ask(Request("math-verify", "5", "\\boxed{5}"), 60).verdict == "correct"
    finally:
        worker.close()


def test_speed(marks, tmp_path):
    spec = SpeedSpec(resolve_model("tiny").location, "transformers", "float32", "cpu", 1, (1,), 8, 2)
    assert measure_apart(spec).timings


@pytest.mark.parametrize("forks", [True, False])
def test_a_function_apart(marks, monkeypatch, forks):
    if not forks:
        monkeypatch.setattr(fork_server.ForkServer, "available", lambda: False)
    assert fork_server.run_apart(print, "apart") == (0, "apart\n")


@pytest.mark.parametrize("forks", [True, False])
def test_worker(marks, tmp_path, forks):
    worker = local._Worker(StageStore(tmp_path / "stages"), 1, forks)
    try:
        worker.pipe.send(fit_stage("a stage that cannot be done"))
        event = worker.pipe.recv()
        assert event.kind == "failed"
        assert "hostile" not in event.text
    finally:
        worker.process.kill()
        worker.process.join()
    assert "PYTHONSAFEPATH" not in os.environ


def test_ray_probe(marks):
    with pytest.raises(UserError, match="no Ray cluster can be used at auto") as refused:
        ray_executor._probe("auto")
    assert "hostile" not in str(refused.value)


def test_processes_that_train_together(marks, tmp_path):
    setup = tmp_path / "one.yaml"
    setup.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    execution = {"accelerate": ProcessSetup(setup, 2, "ddp"), "device": "cpu"}
    (tmp_path / "part").mkdir()
    with pytest.raises(ProcessesCrashed) as crash:
        train_together(recover_stage("a stage that cannot be done", **execution), tmp_path / "part", None)
    assert "hostile" not in str(crash.value)
    assert "rank.py" in str(crash.value)


def test_all_starts_go_through_one_function():
    """Nobody else names the interpreter, except the sandbox, which has flags and a view of its own."""
    own = {"foundation/process.py", "evals/grading/sandbox/view.py"}
    folders = ("cli", "evals", "foundation", "methods", "models", "papers", "records", "results", "runners")
    naming = {
        file.relative_to(PACKAGE).as_posix()
        for folder in folders
        for file in (PACKAGE / folder).rglob("*.py")
        if re.search(r"sys\.executable", file.read_text(encoding="utf-8"))
    }
    assert naming == own


OWNER = """
import os, subprocess, sys, time
from lowrank_bench.foundation.process import python_command
command = python_command("-c", sys.argv[1], str(os.getpid()))
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
time.sleep(600)
"""
CHILD = """
import os, subprocess, sys
from lowrank_bench.foundation.process import end_with
end_with(int(sys.argv[1]), group={group})
other = subprocess.Popen(["sleep", "{mark}"]).pid if {group} else 0
print(os.getpid(), other, flush=True)
{busy}
"""


@pytest.mark.parametrize(
    "busy", ["9 ** 9 ** 9", "import time; time.sleep(600)", "import ctypes; ctypes.PyDLL(None).sleep(600)"]
)
@pytest.mark.parametrize("group", [True, False])
def test_a_child_ends_with_its_owner_whatever_it_does(busy, group):
    """C code that holds the interpreter's lock included, in which no thread of the child runs."""
    code = CHILD.format(group=group, busy=busy, mark=600)
    owner = subprocess.Popen(python_command("-c", OWNER, code), stdout=subprocess.PIPE, text=True)
    child, other = (int(word) for word in owner.stdout.readline().split())
    family = [psutil.Process(child), *([psutil.Process(other)] if group else [])]
    time.sleep(0.3)
    assert all(process.is_running() for process in family)
    owner.kill()
    owner.wait()
    _, left = psutil.wait_procs(family, timeout=120)
    assert not left


def test_a_child_whose_owner_is_gone_leaves_at_once():
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = (
        "import sys; from lowrank_bench.foundation.process import end_with; end_with(int(sys.argv[1])); print('here')"
    )
    done = subprocess.run(python_command("-c", code, str(gone.pid)), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_child_that_ends_by_itself_leaves_no_watcher():
    code = "import os; from lowrank_bench.foundation.process import end_with; end_with(os.getppid()); print('here')"
    # Waits for the end of the pipe, which a watcher would hold open.
    assert subprocess.run(python_command("-c", code), capture_output=True, text=True, timeout=300).stdout == "here\n"
    assert not [
        p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE and "end_with" in str(p.cmdline())
    ]
