"""Processes that start in a tenth of a second: forked from one that has imported what they need and done nothing else.

Importing torch and transformers takes longer than many a stage, and every process that is started afresh imports them
again. A fork server does it once, has no other threads and touches no GPU; what runs beside others is forked from it.

multiprocessing's forkserver with preload does the same, but its children cannot have children from it, and a worker's
engines are such. Measured 2026-11-27 (the trial code was not kept) in one run, alternating, on two busy cores: a
worker 0.27 s here, 0.25 s there (medians of 12); a worker's child 0.24 and 0.42 s here, 72 and 92 s there, because
the worker's own forkserver imports everything again. It also gives its children its own environment, not that of who
asked, and does not end them with who asked.

The protocol, over a socket of whole messages: the owner sends an order (a memory file with settings, function and
arguments) together with its end of a second socket. On that one the child sends its process id, and the server, once
the child has ended, its exit code.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .environment import READ_ONCE
from .process import die_with_parent, python_command, python_environment

MODULES = (
    "lowrank_bench.runners.stages.perform",
    "lowrank_bench.evals.hosting.child",
    "lowrank_bench.evals.engines.transformers",
)
"""What a new fork server imports."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lowrank_bench.foundation.fork_server import serve; "
    "serve(*map(int, sys.argv[2:4]), sys.argv[4:])"
)
_NUMBER = struct.Struct("<q")
_PATIENCE_SECONDS = 0.2
_MOST_FILES = 16
_KILLED = -int(signal.SIGKILL)
_servers: dict[int, ForkServer] = {}


def _environment() -> dict[str, str]:
    """Return the variables that libraries read once, when they are imported."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(READ_ONCE)}
    variables.pop("TRANSFORMERS_VERBOSITY", None)  # workers set their own
    return variables


class Child:
    """A process that a fork server forked. It is killed when the process that asked for it ends."""

    def __init__(self, status: socket.socket, session: bool) -> None:
        self._status, self._session = status, session
        self._id = 0
        self._exitcode: int | None = None

    @property
    def pid(self) -> int:
        """Process id; waits for the imports of a fork server that is new."""
        if not self._id and self._exitcode is None:
            self._read_status(None)
        return self._id

    @property
    def exitcode(self) -> int | None:
        """Exit code, negative for a signal, or None while the process runs."""
        return self.join(0)

    def join(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most so many seconds for each message; returns `exitcode`."""
        while self._exitcode is None and self._read_status(timeout):
            pass
        return self._exitcode

    def kill(self) -> None:
        """Kill it, and all that it started if it leads a session of its own."""
        if not self._id and not self._read_status(_PATIENCE_SECONDS):
            self._status.close()  # not forked yet: it ends when it cannot send its id
            self._exitcode = _KILLED
        if self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if self._session else os.kill)(self._id, signal.SIGKILL)

    def _read_status(self, timeout: float | None) -> bool:
        """Read the next message if it comes in time: the id, then the exit code."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            if not selector.select(timeout):
                return False
        try:
            message = self._status.recv(_NUMBER.size)
        except OSError:
            message = b""
        if not message:
            self._exitcode = _KILLED  # the fork server is dead, and its children with it
        elif self._id:
            self._exitcode = _NUMBER.unpack(message)[0]
        else:
            self._id = _NUMBER.unpack(message)[0]
        return True


class ForkServer:
    """The process that forks others for this one; kept by number of threads.

    Args:
        orders: the socket that the fork server listens at.
        threads: CPU threads of what it forks, for libraries that take their number when they are imported.
        process: the fork server's, where this process has started it.
    """

    def __init__(self, orders: socket.socket, threads: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self._orders, self.threads, self._process = orders, threads, process
        self._environment = _environment()

    @staticmethod
    def available() -> bool:
        """Whether this system can have one (Linux 5.3)."""
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (OSError, AttributeError):
            return False
        return True

    @staticmethod
    def running(threads: int) -> ForkServer | None:
        """Return this process's fork server, or that of the process that asked for this one, if there is one."""
        server = _servers.get(threads)
        return server if server is not None and server._environment == _environment() else None

    @classmethod
    def get_or_start(cls, threads: int) -> ForkServer:
        """Return the `running` one, or else a new one."""
        if (server := cls.running(threads)) is not None:
            return server
        own_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            process = subprocess.Popen(
                python_command(
                    "-c", _START, json.dumps(sys.path), str(server_end.fileno()), str(os.getpid()), *MODULES
                ),
                stdin=subprocess.DEVNULL,
                pass_fds=[server_end.fileno()],
                env=python_environment({"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}),
                start_new_session=True,
            )
        _servers[threads] = cls(own_end, threads, process)
        return _servers[threads]

    def start(
        self,
        function: Callable[..., None],
        *arguments: Any,
        files: Sequence[int] = (),
        output: int | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> Child:
        """Have a process forked that calls a function and ends; keep what is returned, or it may never be forked.

        Args:
            function: of a module's top level; called with the numbers that ``files`` have there, then the arguments.
            arguments: picklable.
            files: open file descriptors that it gets copies of.
            output: file descriptor for what it prints; by default it prints where this process does.
            environment: added to this process's.
            session: whether it leads a session and a process group of its own.

        Raises:
            ChildProcessError: the fork server is dead.
        """
        own_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A file in memory: a message of the socket holds 200 kB at most, and arguments may be larger.
        order = os.memfd_create("order")
        outputs = (output, output) if output is not None else (1, 2)
        try:
            with open(order, "wb", closefd=False) as file:
                settings = {
                    "environment": os.environ | (environment or {}),
                    "path": sys.path,
                    "folder": os.getcwd(),
                    "owner": os.getpid(),
                    "session": session,
                    "threads": self.threads,
                }
                pickle.dump(settings, file)
                pickle.dump((function, arguments), file)
            # With the socket of the orders, so that the child can have children forked by this server too.
            socket.send_fds(self._orders, [b"\0"], [child_end.fileno(), order, self._orders.fileno(), *outputs, *files])
        except OSError as error:
            _servers.pop(self.threads, None)
            raise ChildProcessError("the process that forks workers is dead; run the same command again") from error
        finally:
            child_end.close()
            os.close(order)
        return Child(own_end, session)


def run_apart(function: Callable[..., None], *arguments: Any, threads: int = 1) -> tuple[int, str]:
    """Call a function in a process that has seen nothing but imports; return its exit code and what it printed.

    Args:
        function, arguments: see `ForkServer.start`.
        threads: CPU threads.
    """
    with tempfile.TemporaryFile() as log:
        if ForkServer.available():
            code = ForkServer.get_or_start(threads).start(function, *arguments, output=log.fileno()).join()
        else:
            words = [json.dumps(sys.path), pickle.dumps((function, arguments)).hex()]
            start = (
                "import json, pickle, sys; sys.path[:] = json.loads(sys.argv[1]); "
                "function, arguments = pickle.loads(bytes.fromhex(sys.argv[2])); function(*arguments)"
            )
            environment = python_environment({"OMP_NUM_THREADS": str(threads)})
            code = subprocess.call(python_command("-c", start, *words), stdout=log, stderr=log, env=environment)
        log.seek(0)
        return code if code is not None else 1, log.read().decode("utf-8", "replace")


def serve(handle: int, owner: int, modules: Sequence[str] = MODULES) -> None:
    """Be a fork server: import modules, then fork what is ordered until the owner is gone.

    Args:
        handle: file descriptor of the socket with the orders.
        owner: process id.
        modules: what to import.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what an interrupt means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = socket.socket(fileno=handle)
    alive = _owner(owner)
    gc.disable()  # collections while so much is imported take a tenth of the time and free nothing
    _import(alive, modules)
    gc.freeze()  # collections in the children then leave the shared pages as they are
    gc.enable()
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(alive, selectors.EVENT_READ)
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == alive:
                    os._exit(0)
                elif key.fd != handle:
                    child, status = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with status, contextlib.suppress(OSError):
                        status.send(_NUMBER.pack(code))
                else:
                    data, files, _, _ = socket.recv_fds(orders, 1, _MOST_FILES)
                    if not data:
                        os._exit(0)
                    parent = os.getpid()
                    try:
                        child = os.fork()
                    except OSError:  # closing its socket says so to the one who ordered
                        for file in files:
                            os.close(file)
                        continue
                    if child == 0:
                        # A brother's socket or the orders, held open here, would hide the end of the other side.
                        selector.close()
                        for end, others in running.items():
                            os.close(end)
                            others[1].close()
                        orders.close()
                        _run_child(parent, files)
                    status = socket.socket(fileno=files[0])
                    for file in files[1:]:
                        os.close(file)
                    end = os.pidfd_open(child)
                    running[end] = child, status
                    selector.register(end, selectors.EVENT_READ)


def _owner(process: int) -> int:
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)


def _import(alive: int, modules: Sequence[str]) -> None:
    """Import modules, and end as soon as the owner does.

    Importing takes seconds, in which `serve` cannot watch; a thread does, and has ended before the first fork.
    """
    near, far = os.pipe()

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            for file in (alive, near):
                selector.register(file, selectors.EVENT_READ)
            if any(key.fd == alive for key, _ in selector.select()):
                os._exit(0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:  # also where an import fails: the interpreter would wait for the thread, and who ordered for both
        os.close(far)
        thread.join()  # a fork would lose it
        os.close(near)


def _run_child(parent: int, files: Sequence[int]) -> NoReturn:
    """Be a child of the fork server ``parent``: take over its owner's environment and do what was ordered."""
    code = 1
    try:
        handle, order, orders, out, err, *copied = files
        with open(order, "rb") as file:
            file.seek(0)
            settings = pickle.load(file)
            if settings["session"]:
                os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with_parent(parent)
            threading.Thread(target=_die_with, args=(settings["owner"], settings["session"]), daemon=True).start()
            for source, target in ((out, 1), (err, 2)):
                os.dup2(source, target)
                os.close(source)
            os.environ.clear()
            os.environ.update(settings["environment"])
            time.tzset()  # TZ may be another in the new environment
            os.chdir(settings["folder"])
            sys.path[:] = settings["path"]
            importlib.invalidate_caches()  # files may be new since the server looked at their folders
            _servers[settings["threads"]] = ForkServer(socket.socket(fileno=orders), settings["threads"])
            with socket.socket(fileno=handle) as status:
                try:
                    status.send(_NUMBER.pack(os.getpid()))
                except OSError:
                    os._exit(1)  # `Child.kill` came before the fork
            # Only now: unpickling imports modules, which must see the environment and the path of the owner.
            function, arguments = pickle.load(file)
        function(*copied, *arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(owner: int, session: bool) -> None:
    """Kill this process, or all of its session, when the owner ends."""
    end = _owner(owner)
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        selector.select()
    (os.killpg if session else os.kill)(os.getpid(), signal.SIGKILL)
