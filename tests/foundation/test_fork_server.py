import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lowrank_bench.foundation import fork_server
from lowrank_bench.foundation.fork_server import MODULES, ForkServer, run_apart


def surroundings(word):
    print(word, os.environ["MARK"], os.getcwd(), "/somewhere" in sys.path, flush=True)
    print("to the other stream", file=sys.stderr)


def state():
    import torch

    assert not [name for name in MODULES if name not in sys.modules]
    assert not torch.cuda.is_initialized()
    assert torch.get_num_threads() == 1
    print(torch.arange(6.0).sum().item())


def leave(how):
    if how == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "error":
        raise ValueError("what went wrong")
    sys.exit(how)


def answer(pipe, number):
    os.write(pipe, str(number).encode())


def grandchild(pipe):
    ForkServer.get_or_start(1).start(answer, 7, files=[pipe]).join()


def tell_and_sleep(pipe):
    os.write(pipe, f"{os.getpid()}\n".encode())
    time.sleep(1000)


def family(pipe):
    """Start a child that sleeps, and sleep."""
    subprocess.Popen([sys.executable, "-c", "import time; print('there', flush=True); time.sleep(1000)"], stdout=pipe)
    time.sleep(1000)


def gone(process):
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(*processes):
    until = time.monotonic() + 120
    while not all(map(gone, processes)):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_child_finds_the_surroundings_of_who_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", "set after the fork server had begun")
    monkeypatch.syspath_prepend("/somewhere")
    monkeypatch.chdir(tmp_path)
    code, printed = run_apart(surroundings, "word")
    assert code == 0
    assert printed == f"word set after the fork server had begun {tmp_path} True\nto the other stream\n"


def test_a_child_has_the_imports_and_nothing_else():
    assert run_apart(state) == (0, "15.0\n")


@pytest.mark.parametrize(("how", "code"), [(None, 0), (3, 3), ("signal", -signal.SIGTERM)])
def test_exit_codes(how, code):
    assert run_apart(leave, how) == (code, "")


def test_an_error_is_printed():
    code, printed = run_apart(leave, "error")
    assert code == 1
    assert printed.endswith("ValueError: what went wrong\n")


def test_children_have_children():
    near, far = os.pipe()
    assert ForkServer.get_or_start(1).start(grandchild, files=[far]).join() == 0
    os.close(far)
    with open(near) as pipe:
        assert pipe.read() == "7"


def test_waiting_has_a_limit_and_killing_none(tmp_path):
    near, far = os.pipe()
    child = ForkServer.get_or_start(1).start(tell_and_sleep, files=[far])
    with open(near) as pipe:
        assert int(pipe.readline()) == child.pid
    assert child.join(0.05) is None
    assert child.exitcode is None
    child.kill()
    assert child.join() == -signal.SIGKILL
    assert gone(child.pid)
    child.kill()
    os.close(far)


def test_a_session_is_killed_as_a_whole():
    near, far = os.pipe()
    child = ForkServer.get_or_start(1).start(family, files=[far], session=True)
    os.close(far)
    with open(near) as pipe:
        assert pipe.readline() == "there\n"
        (inner,) = psutil.Process(child.pid).children()
        child.kill()
        assert child.join() == -signal.SIGKILL
        assert pipe.read() == ""
    wait_until_gone(inner.pid)


@pytest.mark.parametrize("session", [False, True])
def test_children_die_with_who_asked_and_so_does_the_fork_server(session):
    script = (
        "import sys, time; sys.path[:0] = sys.argv[1:2]; import test_fork_server as here\n"
        f"child = here.ForkServer.get_or_start(1).start(here.tell_and_sleep, files=[1], session={session})\n"
        "time.sleep(1000)"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        parent = psutil.Process(child).ppid()
        process.kill()
    wait_until_gone(child, parent)


def test_a_child_killed_before_its_fork_never_runs(tmp_path):
    mark = tmp_path / "mark"
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1:2]; import test_fork_server as here\n"
        "fork_server = here.ForkServer.get_or_start(1)\n"
        "child = fork_server.start(pathlib.Path.touch, pathlib.Path(sys.argv[2]))\n"
        "child.kill(); assert child.join() == -9\n"
        "assert fork_server.start(here.leave, 0).join() == 0"  # by now the first would have been there
    )
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(mark)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


def test_a_dead_fork_server_is_an_error_and_replaced():
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1:2]; import test_fork_server as here\n"
        "child = here.ForkServer.get_or_start(1).start(here.leave, 0); child.join()\n"
        "os.kill(here.psutil.Process().children()[0].pid, signal.SIGKILL)\n"
        "here.psutil.Process().children()[0].wait()\n"
        "try: here.ForkServer.get_or_start(1).start(here.leave, 0)\n"
        "except ChildProcessError: assert here.ForkServer.get_or_start(1).start(here.leave, 5).join() == 5\n"
        "else: raise SystemExit('nobody was there to take the order')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_fork_server_that_cannot_import_ends_and_so_does_the_wait(monkeypatch):
    monkeypatch.setattr(fork_server, "MODULES", ("no_such_module",))
    monkeypatch.setattr(fork_server, "_servers", {})
    with contextlib.suppress(ChildProcessError):  # where it has ended before the order
        assert ForkServer.get_or_start(1).start(leave, 0).join(300) == -signal.SIGKILL


def test_what_imports_read_from_the_environment_has_not_changed_since(monkeypatch):
    near, far = socket.socketpair()
    with near, far:
        server = ForkServer(near, 99)
        monkeypatch.setitem(fork_server._servers, 99, server)
        monkeypatch.setenv("ANYTHING", "else")
        assert ForkServer.running(99) is server
        monkeypatch.setenv("HF_HOME", "/another")
        assert ForkServer.running(99) is None


def test_where_there_can_be_none_a_process_is_started_afresh(monkeypatch):
    monkeypatch.setattr(ForkServer, "available", staticmethod(lambda: False))
    assert run_apart(leave, 4) == (4, "")
