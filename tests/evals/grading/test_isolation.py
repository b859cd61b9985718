"""Which isolation is chosen, on machines with and without bubblewrap or namespaces, and for a user without rights."""

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank_bench
from lowrank_bench.evals.grading.sandbox.isolation import failed_checks, isolation_level
from lowrank_bench.evals.grading.sandbox.sandboxed_process import ISOLATING, bwrap_version

from .ordinary_user import UID, run_as_ordinary_user
from .tricks import DAEMON, TRICKS

INSIDE = str(Path(lowrank_bench.__file__).resolve().parent / "evals" / "grading" / "sandbox")
NO_NAMESPACES = f"import sys; sys.path.insert(0, {INSIDE!r}); import syscalls; assert syscalls.block()\n"
"""From here on the kernel refuses user namespaces and bubblewrap's own to this process and all its children."""

SAY = """
import json
from lowrank_bench.evals.base import EvalSettings
from lowrank_bench.evals.benchmarks.toy_code import ToyCode
from lowrank_bench.evals.grading.sandbox.isolation import failed_checks, isolation_level
from lowrank_bench.foundation.errors import UserError
try:
    outcome = isolation_level()
except UserError as error:
    outcome = str(error)
weak = ToyCode().score([], [], EvalSettings(allow_weak_isolation=True))[1]["isolation"]
print(json.dumps([outcome, weak, failed_checks("bwrap")]))
"""


def say(code, path):
    """Return what is chosen, what a record says where weak isolation is allowed, and why it is not bubblewrap."""
    environment = {**os.environ, "PATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def path_with(folder, script):
    """Return a PATH whose bubblewrap is a shell script, or which has none."""
    if script:
        (folder / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bwrap").chmod(0o755)
    return str(folder)


def test_isolation_holds_on_this_machine():
    for level in ISOLATING:
        assert failed_checks(level) == ()
    assert isolation_level() == isolation_level(allow_weak=True) == "bwrap"
    assert bwrap_version() >= (0, 8)


def test_the_check_finds_that_resource_limits_isolate_nothing():
    (reason,) = failed_checks("rlimits")
    assert "came to exist" in reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", "bubblewrap is not installed"),
        ("echo bubblewrap 0.4.1", "bubblewrap 0.4.1 is too old"),
        ("exit 1", "says no version"),
        ('[ "$1" = --version ] && echo bubblewrap 0.9.0 && exit\necho bwrap: no such luck >&2; exit 1', "no such luck"),
    ],
)
def test_without_a_usable_bubblewrap_namespaces_are_made_by_ourselves(script, reason, tmp_path):
    level, weak, (failed,) = say(SAY, path_with(tmp_path, script))
    assert (level, weak) == ("namespaces", "namespaces")
    assert reason in failed


@pytest.mark.parametrize("installed", [True, False])
def test_a_machine_without_namespaces_is_refused_with_the_remedy(installed, tmp_path):
    path = os.environ["PATH"] if installed else path_with(tmp_path, "")
    message, weak, _ = say(NO_NAMESPACES + SAY, path)
    assert message.startswith("cannot run model-written code safely (")
    assert "the code sandbox (namespaces) does not start: PermissionError" in message
    assert "\n" not in message
    assert "--allow-weak-isolation" in message
    assert ("install bubblewrap" in message) != installed
    assert ("make namespaces" in message) == installed
    assert weak == "rlimits"


def test_the_refusal_comes_before_anything_is_generated(tmp_path):
    main = f"{NO_NAMESPACES}sys.argv = ['bench', *sys.argv[1:]]\nfrom lowrank_bench.cli import main\nmain()"
    command = [sys.executable, "-c", main, "eval", "tiny", "--benchmarks", "toy-code", "--limit", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot run model-written code safely" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


USER = """
import json, os, sys
from lowrank_bench.evals.grading.sandbox.isolation import failed_checks, isolation_level
from lowrank_bench.evals.grading.sandbox.programs import Job, run_one
level, programs, test = json.load(sys.stdin)
assert os.geteuid() and "CapEff:\\t0000000000000000\\n" in open("/proc/self/status").read()
limits = {"right": 60, "daemon": 60}  # these pass, which takes long on a machine under load
verdicts = {name: run_one(Job(text, test, ("f",)), level, limits.get(name, 1.5)) for name, text in programs.items()}
endings = {name: [verdict.passed, verdict.kind] for name, verdict in verdicts.items()}
print(json.dumps([os.geteuid(), isolation_level(), failed_checks(level), endings]))
"""

USER_TRICKS = (
    *(
        "fork-bomb",
        "threads",
        "write-outside",
        "symlink-out",
        "network",
        "memory",
        "kill-parent",
        "kill-all",
        "remount",
    ),
    *("first-process-memory", "user-namespace", "trace-parent", "interpreter-file", "become-root"),
)


@pytest.mark.parametrize("level", ISOLATING)
def test_an_ordinary_user_is_isolated_as_well(level):
    mark, marker = secrets.token_hex(16), f"/var/tmp/{secrets.token_hex(8)}"
    programs = {name: TRICKS[name].replace("{marker!r}", repr(marker)).replace("{pid}", "1") for name in USER_TRICKS}
    programs["right"] = "def f(x): return x + 1"
    programs["daemon"] = DAEMON.replace("{mark!r}", repr(mark)).replace("{value}", "x + 1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        programs["network"] = programs["network"].replace("{port}", str(listener.getsockname()[1]))
        listener.setblocking(False)
        message = json.dumps([level, programs, "assert f(1) == 2"])
        done = run_as_ordinary_user(USER, message)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert done.returncode == 0, done.stderr
    user, best, failed, verdicts = json.loads(done.stdout)
    assert user == UID or os.geteuid() != 0
    assert (best, failed) == ("bwrap", [])
    assert {name for name, (passed, _) in verdicts.items() if passed} == {"right", "daemon"}
    assert verdicts["fork-bomb"][1] == "timeout"
    assert not Path(marker).exists()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if mark.encode() in line and b"time.sleep(600)" in line]
