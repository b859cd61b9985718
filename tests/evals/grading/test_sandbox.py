"""The code grader under attack: nothing wrong passes, nothing is left, nothing gets out.

What the machine has to withstand runs at both levels of isolation, what the judge has to on bubblewrap alone.
"""

import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from lowrank_bench.evals.grading.sandbox.limits import Limits
from lowrank_bench.evals.grading.sandbox.programs import Job, _attempt, _run, run_one, run_programs
from lowrank_bench.evals.grading.sandbox.sandboxed_process import ISOLATING
from lowrank_bench.evals.grading.sandbox.servers import Pair
from lowrank_bench.evals.grading.sandbox.wire import decode

from .tricks import DAEMON, MACHINE_TRICKS, TRICKS

TEST = "assert f(1) == 2\nassert abs(f(1) - 2) < 1e-6\n"
RIGHT = "def f(x):\n    return x + 1\n"


def processes_with(mark: str) -> list[str]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                pids.append(path.parent.name)
        except OSError:
            continue
    return pids


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_right_program_passes_and_wrong_one_does_not():
    right, wrong, raising, broken = run_programs(
        [
            Job(RIGHT, TEST, ("f",)),
            Job("def f(x): return x\n", TEST, ("f",)),
            Job("def f(x): return x / 0\n", TEST, ("f",)),
            Job("def f(x) return x\n", TEST, ("f",)),
        ],
        "bwrap",
    )
    assert right.passed
    assert right.kind == "passed"
    assert [wrong.kind, raising.kind, broken.kind] == ["wrong", "exception", "syntax"]
    assert not any(verdict.passed for verdict in (wrong, raising, broken))
    assert "ZeroDivisionError" in raising.detail


@pytest.mark.parametrize(
    ("level", "name"), [*(("bwrap", name) for name in TRICKS), *(("namespaces", name) for name in MACHINE_TRICKS)]
)
def test_trick_never_passes_and_changes_nothing(level, name, tmp_path):
    before = set(psutil.Process().children(recursive=True))
    marker = tmp_path / "escaped"
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        abstract.bind("\0lowrank-bench-test" if name == "abstract-socket" else f"\0{secrets.token_hex(8)}")
        abstract.listen(1)
        program = TRICKS[name]
        for key, value in (
            ("{marker!r}", repr(str(marker))),
            ("{port}", listener.getsockname()[1]),
            ("{pid}", os.getpid()),
        ):
            program = program.replace(key, str(value))
        verdict = run_one(Job(program, TEST, ("f",)), level, timeout=1.0)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not verdict.passed
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not marker.exists()
    assert not Path("/usr/escaped").exists()


@pytest.mark.parametrize("level", ISOLATING)
@pytest.mark.parametrize("value", ["x + 1", "0"])
def test_daemon_does_not_outlive_its_verdict(value, level):
    mark = secrets.token_hex(16)
    verdict = run_one(Job(DAEMON.replace("{mark!r}", repr(mark)).replace("{value}", value), TEST, ("f",)), level)
    assert verdict.passed == (value == "x + 1")
    assert processes_with(mark) == []


@pytest.mark.parametrize("level", ISOLATING)
def test_nothing_outlives_a_killed_grader(level):
    mark = secrets.token_hex(16)
    program = (
        f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'while True: pass', {mark[::-1]!r}[::-1]])"
    )
    code = (
        "from lowrank_bench.evals.grading.sandbox.programs import Job, run_one\n"
        f"print(run_one(Job({program!r}, 'assert f(1) == 2', ('f',)), {level!r}, timeout=60))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as grader:
        running = wait_for(lambda: processes_with(mark))  # the grader's own command line has it reversed only
        grader.kill()
        output = grader.stdout.read()
    assert running, output
    assert wait_for(lambda: not processes_with(mark))


LOOK = """
import os
def look():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {
        "namespaces": sorted(os.readlink(f"/proc/self/ns/{n}") for n in ("pid", "net", "mnt", "ipc", "uts", "cgroup")),
        "uid": os.getuid(),
        "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "files": sorted(os.listdir("/tmp") + os.listdir("/dev/shm")),
        "open": sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in range(3, 1024)),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    }
def leave(): open("/tmp/left", "w").close(); open("/dev/shm/left", "w").close()
"""


def look_test(server):
    return (
        "leave()\nseen = look()\nassert seen['files'] == ['left', 'left'] and seen['open'] == 2, seen\n"
        "assert set(seen['capabilities']) == {'0' * 16} and seen['no_new_privileges'] == '1', seen\n"
        f"assert seen['uid'] and seen['processes'] <= 3 and not set(seen['namespaces']) & {server!r}, seen\n"
    )


@pytest.mark.parametrize("level", ISOLATING)
def test_servers_give_every_candidate_a_sandbox_of_its_own(level):
    """Two tasks of one server share nothing."""
    host = {os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net", "mnt", "ipc", "uts", "cgroup")}
    names = ("look", "leave")
    with closing(Pair(level)) as pair:
        for _ in range(2):
            verdict = _attempt(Job(LOOK, look_test(host), names), level, pair, 3, 3)
            assert verdict.passed, verdict.detail
        first, second = (
            _attempt(Job(LOOK, "raise Exception(look()['namespaces'])", ("look",)), level, pair, 3, 3).detail
            for _ in range(2)
        )
        server = pair.candidates._process.process.pid
    assert "net:" in first
    assert first != second
    assert not Path(f"/proc/{server}").exists()


@pytest.mark.parametrize("level", ISOLATING)
def test_the_machine_is_not_named(level):
    """Neither its name, its kernel's command line and boot id, nor anything else of /proc that is no process."""
    program = (
        "import ctypes, os, socket\ndef names():\n    domain = ctypes.create_string_buffer(65)\n"
        "    assert ctypes.CDLL(None).getdomainname(domain, 65) == 0\n"
        "    return os.uname().nodename, socket.gethostname(), domain.value.decode()\n"
        "def kernel():\n    paths = ('cmdline', 'sys', 'sys/kernel/random/boot_id', 'version', 'kallsyms', 'keys')\n"
        "    return [path for path in paths if os.path.exists(f'/proc/{path}')]\n"
        "def others(): return sorted(name for name in os.listdir('/proc') if not name.isdigit())\n"
    )
    test = (
        "assert names() == ('sandbox',) * 3, names()\nassert kernel() == [], kernel()\n"
        "assert others() == ['self', 'thread-self'], others()"
    )
    before = socket.gethostname()
    verdict = run_one(Job(program, test, ("names", "kernel", "others")), level, timeout=20)
    assert verdict.passed, verdict
    assert socket.gethostname() == before


@pytest.mark.parametrize("level", ISOLATING)
def test_servers_serve_many_tasks(level):
    """Whether somebody asks how judge and candidate ended, or not."""
    kinds = {RIGHT: "passed", "import os\nos._exit(1)": "exited", "def f(x): return 0": "wrong"}
    with closing(Pair(level)) as pair:
        verdicts = [_attempt(Job(program, TEST, ("f",)), level, pair, 20, 20) for program in [*kinds] * 10]
    assert [verdict and verdict.kind for verdict in verdicts] == [*kinds.values()] * 10


@pytest.mark.parametrize("level", ISOLATING)
def test_lost_servers_are_started_again(level):
    with closing(Pair(level)) as pair:
        for _ in range(2):
            assert _run(Job(RIGHT, TEST, ("f",)), level, pair, 60).passed
            for server in (pair.judges, pair.candidates):
                server._process.process.kill()
                server._process.process.wait()


@pytest.mark.parametrize("level", ISOLATING)
def test_a_server_whose_connection_is_closed_ends_with_its_candidate(level):
    """The grader's death by another way than a signal to its children, which depends on the thread that began them."""
    to_candidate, to_judge = os.pipe(), os.pipe()
    with closing(Pair(level)) as pair, closing(pair.candidates.fork((to_candidate[0], to_judge[1]), Limits())):
        for fd in (to_candidate[0], to_judge[1]):
            os.close(fd)
        size = int.from_bytes(os.read(to_judge[0], 8), "big")  # the candidate says "ready" and waits for its job
        pair.candidates._socket.close()
        assert wait_for(lambda: pair.candidates._process.process.poll() is not None)
        assert decode(os.read(to_judge[0], size)) == "ready"
        assert os.read(to_judge[0], 1) == b""
    for fd in (to_candidate[1], to_judge[0]):
        os.close(fd)


@pytest.mark.parametrize("level", ISOLATING)
def test_grading_leaves_no_open_file(level):
    def run():
        run_programs([Job(RIGHT, TEST, ("f",)), Job("import sys\nsys.exit(1)", TEST, ("f",))], level, 2)
        return len(os.listdir("/proc/self/fd"))

    assert run() == run()


@pytest.mark.parametrize("level", ISOLATING)
def test_many_programs_side_by_side(level):
    assert all(verdict.passed for verdict in run_programs([Job(RIGHT, TEST, ("f",))] * 24, level, workers=4))


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("import sys\nsys.exit(0)", "exited"),
        ("import os\nos._exit(0)", "exited"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
        ("def f(x): return [0] * 10**10", "memory"),
        ("def f(x): return [0] * (1 << 25)", "output"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("def f(x): return object()", "wrong"),
    ],
)
def test_kind_of_failure_is_named(program, kind):
    timeout = 3.0 if kind == "timeout" else 60.0  # a machine under load takes its time for the others
    assert run_one(Job(program, "assert f(1) == 2", ("f",)), "bwrap", timeout).kind == kind


@pytest.mark.parametrize("level", ISOLATING)
@pytest.mark.parametrize("together", [False, True])
def test_a_program_inherits_nothing_of_the_grader(level, together):
    """Neither its ``__future__`` imports nor its modules, globals and name."""
    programs = {
        "def f(x: List[int]) -> Foo: return x + 1": "NameError: name 'List'",
        "limit: Undefined = 3\ndef f(x): return x + 1": "NameError: name 'Undefined'",
        "class A:\n    y: Undefined\ndef f(x): return x + 1": "NameError: name 'Undefined'",
        "import judge\ndef f(x): return x + 1": "ModuleNotFoundError: No module named 'judge'",
        "import wire, limits\ndef f(x): return x + 1": "ModuleNotFoundError: No module named 'wire'",
        "def f(x): raise Exception(sorted(globals()))": "Exception: ['__builtins__', 'f']",
        "def f(x): raise Exception(__name__)": "Exception: builtins",
    }
    verdicts = run_programs([Job(text, TEST, ("f",), together=together) for text in programs], level, 1)
    for verdict, message in zip(verdicts, programs.values(), strict=True):
        assert verdict.kind == "exception"
        assert verdict.detail.startswith(message)
    typed = "from __future__ import annotations\ndef f(x: Later) -> Later: return x + 1"
    assert run_one(Job(typed, TEST, ("f",), together=together), level).passed


def test_tests_and_their_setup_inherit_nothing_of_the_grader():
    for setup, test in (("def help(x: Unknown): pass", TEST), ("", "def help(x: Unknown): pass\n" + TEST)):
        verdict = run_one(Job(RIGHT, test, ("f",), setup=setup), "bwrap")
        assert verdict.kind == "exception"
        assert "Unknown" in verdict.detail


def test_timed_out_program_runs_again_alone_before_it_counts():
    slow = "import time\ndef f(x):\n    time.sleep(0.9)\n    return x + 1\n"
    (verdict,) = run_programs([Job(slow, "assert f(1) == 2", ("f",))], "bwrap", timeout=0.5)
    assert verdict.passed
    assert verdict.reruns == 1
    (verdict,) = run_programs([Job("while True: pass", "assert f(1) == 2", ("f",))], "bwrap", timeout=0.5)
    assert verdict.kind == "timeout"
    assert verdict.reruns == 1


def test_argument_changes_reach_the_test():
    program = "def f(a, d):\n    a.append(3)\n    d['k'] = 1\n"
    test = "a, d = [1], {}\nf(a, d)\nassert a == [1, 3] and d == {'k': 1}"
    assert run_one(Job(program, test, ("f",)), "bwrap").passed


def test_an_iterator_reaches_the_program_unread():
    """Encoding uses an iterator up, so it may happen once only."""
    program = "def f(items, other=()): return [x + 1 for x in items] + list(other)"
    test = "assert f(iter([1, 2])) == [2, 3]\nassert f((x for x in [5]), other=map(int, '7')) == [6, 7]"
    assert run_one(Job(program, test, ("f",)), "bwrap").passed


@pytest.mark.parametrize("level", ISOLATING)
def test_large_results_are_judged(level):
    """HumanEval 130 at a million, MBPP 630 with ten coordinates, a large argument that the program changes."""
    program = (
        "import itertools\ndef f(n):\n    tri = [1, 3]\n    for i in range(2, n + 1):\n"
        "        tri.append(i / 2 + 1 if i % 2 == 0 else tri[i - 1] + tri[i - 2] + (i + 3) / 2)\n    return tri\n"
        "def g(t): return [list(p) for p in itertools.product(*[(n - 1, n, n + 1) for n in t])]\n"
        "def h(a): a.reverse()\n"
    )
    again = program.replace("def f", "def f2").replace("def g", "def g2")
    test = (
        f"{again}assert f(1000000) == f2(1000000)\nt = tuple(range(9))\nassert g(t) == g2(t)\n"
        "a = list(range(100000))\nh(a)\nassert a == list(range(100000))[::-1]"
    )
    verdict = run_one(Job(program, test, ("f", "g", "h")), level, timeout=60)
    assert verdict.passed, verdict


def test_builtin_exception_reaches_the_test():
    program = "def f(x): raise ValueError('no')"
    test = "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'"
    assert run_one(Job(program, test, ("f",)), "bwrap").passed


def test_exit_inside_a_call_cannot_be_taken_for_an_expected_error():
    test = "try:\n    f(1)\nexcept BaseException:\n    pass\n"
    assert not run_one(Job("import sys\ndef f(x): sys.exit(0)", test, ("f",)), "bwrap").passed
    assert not run_one(Job("import os\ndef f(x): os._exit(0)", test, ("f",)), "bwrap").passed


@pytest.mark.parametrize(
    "answer",
    [
        *(("value", None), ("done", None, None), None, b"x", ("value", None, None), ("value", b"x", None)),
        *(("value", b"cN", b"x"), ("value", b"cN", 5), ("value", b"cN", b"cN")),
    ],
)
def test_a_malformed_answer_cannot_be_taken_for_an_expected_error(answer):
    replaced = f"sys._getframe(1).f_globals['answer'] = lambda *a: {answer!r}"
    program = f"import sys\n{replaced}\ndef f(x): return 1"
    assert run_one(Job(program, "try:\n    f(1)\nexcept:\n    pass\n", ("f",)), "bwrap").kind == "output"


def test_a_program_too_large_to_be_sent_is_a_failure():
    for size in ((16 << 20) - 100, 17 << 20):
        assert run_one(Job("#" * size, TEST, ("f",)), "bwrap").kind == "output"


def test_a_task_without_a_test_is_no_pass():
    assert run_one(Job(RIGHT, "", ("f",)), "bwrap").kind == "no-test"
    assert run_one(Job(RIGHT, "def check(f): pass\ncheck(f)", ("f",)), "bwrap").kind == "no-test"


def test_test_that_passes_a_function_says_so_unless_run_together():
    job = Job("def f(g): return g(1)", "assert f(lambda x: x + 1) == 2", ("f",))
    assert run_one(job, "bwrap").kind == "unjudgeable"
    together = Job(job.program, job.test, job.names, together=True)
    verdict = run_one(together, "bwrap")
    assert verdict.passed
    assert verdict.together


@pytest.mark.parametrize(
    "program", ["import sys\nsys.exit(0)", "import os\nos._exit(0)", "while True: pass", "def f(x): 0"]
)
def test_together_mode_wants_the_token(program):
    verdict = run_one(Job(program, "assert f(1) == 2", ("f",), together=True), "bwrap", timeout=1.0)
    assert not verdict.passed


def test_weak_isolation_still_judges_by_plain_data():
    programs = [RIGHT, TRICKS["equal-to-all"], TRICKS["sys-exit-in-call"], TRICKS["endless"]]
    seconds = [60.0, 60.0, 60.0, 1.0]
    verdicts = [
        run_one(Job(program, TEST, ("f",)), "rlimits", timeout)
        for program, timeout in zip(programs, seconds, strict=True)
    ]
    assert [verdict.passed for verdict in verdicts] == [True, False, False, False]
