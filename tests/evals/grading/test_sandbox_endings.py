"""What ended a program, or its test, and whose time was used up."""

from contextlib import closing

import pytest

from lowrank_bench.evals.grading.sandbox.programs import Job, _attempt, run_one
from lowrank_bench.evals.grading.sandbox.sandboxed_process import ISOLATING
from lowrank_bench.evals.grading.sandbox.servers import Pair

IDENTITY = "def f(x): return x"


def attempt(job, level="bwrap"):
    """Run a job within one second of CPU time and far more wall time."""
    with closing(Pair(level)) as pair:
        return _attempt(job, level, pair if level in ISOLATING else None, 0, 120)


@pytest.mark.parametrize(
    ("test", "level"),
    [
        ("assert f(1) == 1\nwhile True: pass", "bwrap"),
        ("f(1)\nsum(range(10**12))", "namespaces"),
        ("while not f(0): hash('a' * 10**6)", "rlimits"),
    ],
)
def test_a_test_that_uses_up_the_judge_is_a_timeout(test, level):
    verdict = attempt(Job(IDENTITY, test, ("f",)), level)
    assert verdict.kind == "timeout"
    assert verdict.detail == "the test itself: more CPU time than allowed"


@pytest.mark.parametrize("before", ["", "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"])
def test_time_used_up_by_the_program_is_not_said_to_be_the_tests(before):
    verdict = attempt(Job(f"{before}def f(x):\n    while True: pass", "assert f(1) == 1", ("f",)))
    assert (verdict.kind, verdict.detail) == ("timeout", "more CPU time than allowed")


@pytest.mark.parametrize("level", ISOLATING)
@pytest.mark.parametrize(
    ("program", "kind", "detail"),
    [
        ("import os\ndef f(x): os._exit(152)", "exited", "exit code 152 before the test ended"),
        ("import os\nos._exit(137)", "exited", "exit code 137 before the test ended"),
        ("import os\ndef f(x): os._exit(255)", "exited", "exit code 255 before the test ended"),
        ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGXCPU)", "crashed", "SIGXCPU"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "crashed", "SIGKILL"),
    ],
)
def test_an_exit_code_is_no_signal_and_a_signal_to_oneself_no_timeout(program, kind, detail, level):
    verdict = run_one(Job(program, "assert f(1) == 1", ("f",)), level, timeout=20)
    assert (verdict.kind, verdict.detail) == (kind, detail)


@pytest.mark.parametrize(
    ("test", "detail"),
    [
        ("f(1)\nimport os\nos._exit(3)", "the test itself: exit code 3 before the test ended"),
        ("f(1)\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "the test itself: SIGSEGV"),
    ],
)
def test_a_test_that_ends_without_a_verdict_is_not_the_programs_exit(test, detail):
    verdict = run_one(Job(IDENTITY, test, ("f",)), "bwrap", timeout=20)
    assert (verdict.kind, verdict.detail) == ("crashed", detail)


def test_a_program_cannot_write_how_it_ended():
    program = (
        "import os\ndef f(x):\n    for n in range(3, 64):\n        try: fd = os.open(f'/proc/1/fd/{n}', os.O_WRONLY)\n"
        "        except OSError: continue\n        os.write(fd, b'0 99.0')\n    os._exit(7)"
    )
    assert run_one(Job(program, "f(1)", ("f",)), "bwrap", timeout=20).detail == "exit code 7 before the test ended"
