"""Processes that start in a tenth of a second: forked from one that has imported what they need and done nothing else.

Importing torch and transformers takes longer than many a stage, and every process that is started afresh imports them
again. A nursery does it once, has no other threads and touches no GPU; what is to run beside others is forked from it.
multiprocessing's forkserver does the same, but its children cannot have children from it.
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
"""What a nursery imports."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lowrank_bench.foundation.forked import serve; "
    "serve(*map(int, sys.argv[2:]))"
)
_NUMBER = struct.Struct("<q")
_PATIENCE_SECONDS = 0.2
_MOST_FILES = 16
_KILLED = -int(signal.SIGKILL)
_nurseries: dict[int, Nursery] = {}


def _environment() -> dict[str, str]:
    """Return the variables that libraries read once, when they are imported."""
    found = {name: value for name, value in os.environ.items() if name.startswith(READ_ONCE)}
    found.pop("TRANSFORMERS_VERBOSITY", None)  # workers set their own
    return found


class Child:
    """A process that a nursery forked. It is killed when the process that asked for it ends."""

    def __init__(self, news: socket.socket, session: bool) -> None:
        self._news, self._session = news, session
        self._id = 0
        self._exitcode: int | None = None

    @property
    def pid(self) -> int:
        """Process id; waits for the imports of a nursery that is new."""
        if not self._id and self._exitcode is None:
            self._hear(None)
        return self._id

    @property
    def exitcode(self) -> int | None:
        """Exit code, negative for a signal, or None while the process runs."""
        return self.join(0)

    def join(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most so many seconds for each piece of news; returns `exitcode`."""
        while self._exitcode is None and self._hear(timeout):
            pass
        return self._exitcode

    def kill(self) -> None:
        """Kill it, and all that it started if it leads a session of its own."""
        if not self._id and not self._hear(_PATIENCE_SECONDS):
            self._news.close()  # unborn yet: it ends when it finds nobody to tell its id to
            self._exitcode = _KILLED
        if self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if self._session else os.kill)(self._id, signal.SIGKILL)

    def _hear(self, timeout: float | None) -> bool:
        """Read the next news if it comes in time: the id, then the exit code."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._news, selectors.EVENT_READ)
            if not selector.select(timeout):
                return False
        try:
            told = self._news.recv(_NUMBER.size)
        except OSError:
            told = b""
        if not told:
            self._exitcode = _KILLED  # the nursery is dead, and its children with it
        elif self._id:
            self._exitcode = _NUMBER.unpack(told)[0]
        else:
            self._id = _NUMBER.unpack(told)[0]
        return True


class Nursery:
    """Where this process has others forked.

    Args:
        orders: the socket that the nursery listens at.
        threads: CPU threads of what it forks, for libraries that take their number when they are imported.
        process: the nursery's, where this process has started it.
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
    def known(threads: int) -> Nursery | None:
        """Return this process's nursery, or that of the process that asked for this one, if there is one."""
        found = _nurseries.get(threads)
        return found if found is not None and found._environment == _environment() else None

    @classmethod
    def here(cls, threads: int) -> Nursery:
        """Return the `known` nursery, or else a new one."""
        if (found := cls.known(threads)) is not None:
            return found
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            process = subprocess.Popen(
                python_command("-c", _START, json.dumps(sys.path), str(far.fileno()), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
                env=python_environment({"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}),
                start_new_session=True,
            )
        _nurseries[threads] = cls(near, threads, process)
        return _nurseries[threads]

    def start(
        self,
        function: Callable[..., None],
        *arguments: Any,
        files: Sequence[int] = (),
        output: int | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> Child:
        """Have a process forked that calls a function and ends; keep what is returned, or it may never be born.

        Args:
            function: of a module's top level; called with the numbers that ``files`` have there, then the arguments.
            arguments: picklable.
            files: open file descriptors that it gets copies of.
            output: file descriptor for what it prints; by default it prints where this process does.
            environment: added to this process's.
            session: whether it leads a session and a process group of its own.

        Raises:
            ChildProcessError: the nursery is dead.
        """
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
            socket.send_fds(self._orders, [b"\0"], [far.fileno(), order, self._orders.fileno(), *outputs, *files])
        except OSError as error:
            _nurseries.pop(self.threads, None)
            raise ChildProcessError("the process that forks workers is dead; run the same command again") from error
        finally:
            far.close()
            os.close(order)
        return Child(near, session)


def run_apart(function: Callable[..., None], *arguments: Any, threads: int = 1) -> tuple[int, str]:
    """Call a function in a process that has seen nothing but imports; return its exit code and what it printed.

    Args:
        function, arguments: see `Nursery.start`.
        threads: CPU threads.
    """
    with tempfile.TemporaryFile() as log:
        if Nursery.available():
            code = Nursery.here(threads).start(function, *arguments, output=log.fileno()).join()
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


def serve(handle: int, owner: int) -> None:
    """Be a nursery: import `MODULES`, then fork what is ordered until the owner is gone.

    Args:
        handle: file descriptor of the socket with the orders.
        owner: process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides what an interrupt means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = socket.socket(fileno=handle)
    alive = _owner(owner)
    _import(alive)
    gc.freeze()  # collections in the children then leave the shared pages as they are
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(alive, selectors.EVENT_READ)
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == alive:
                    os._exit(0)
                elif key.fd != handle:
                    child, news = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with news, contextlib.suppress(OSError):
                        news.send(_NUMBER.pack(code))
                else:
                    word, files, _, _ = socket.recv_fds(orders, 1, _MOST_FILES)
                    if not word:
                        os._exit(0)
                    parent = os.getpid()
                    try:
                        child = os.fork()
                    except OSError:  # who asked finds the line dead
                        for file in files:
                            os.close(file)
                        continue
                    if child == 0:
                        selector.close()
                        for end, others in running.items():
                            os.close(end)
                            others[1].close()
                        orders.close()
                        _live(parent, files)
                    news = socket.socket(fileno=files[0])
                    for file in files[1:]:
                        os.close(file)
                    end = os.pidfd_open(child)
                    running[end] = child, news
                    selector.register(end, selectors.EVENT_READ)


def _owner(process: int) -> int:
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)


def _import(alive: int) -> None:
    """Import `MODULES`, and end as soon as the owner does."""
    near, far = os.pipe()

    def watch() -> None:
        with selectors.DefaultSelector() as selector:
            for file in (alive, near):
                selector.register(file, selectors.EVENT_READ)
            if any(key.fd == alive for key, _ in selector.select()):
                os._exit(0)

    thread = threading.Thread(target=watch)
    thread.start()
    for module in MODULES:
        importlib.import_module(module)
    os.close(far)
    thread.join()  # a fork would lose it
    os.close(near)


def _live(parent: int, files: Sequence[int]) -> NoReturn:
    """Be a child of the nursery ``parent``: take its owner's surroundings and do what was ordered."""
    code = 1
    try:
        handle, order, orders, out, err, *given = files
        with open(order, "rb") as file:
            file.seek(0)
            asked = pickle.load(file)
            if asked["session"]:
                os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            die_with_parent(parent)
            threading.Thread(target=_die_with, args=(asked["owner"], asked["session"]), daemon=True).start()
            for source, target in ((out, 1), (err, 2)):
                os.dup2(source, target)
                os.close(source)
            os.environ.clear()
            os.environ.update(asked["environment"])
            time.tzset()
            os.chdir(asked["folder"])
            sys.path[:] = asked["path"]
            importlib.invalidate_caches()
            _nurseries[asked["threads"]] = Nursery(socket.socket(fileno=orders), asked["threads"])
            with socket.socket(fileno=handle) as news:
                try:
                    news.send(_NUMBER.pack(os.getpid()))
                except OSError:
                    os._exit(1)  # killed before it was born
            function, arguments = pickle.load(file)
        function(*given, *arguments)
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
