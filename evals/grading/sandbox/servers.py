"""The parent's side of the warm servers: one pair a worker, one judge and one candidate a task, each killable alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence

from .limits import Limits
from .sandboxed_process import TMP_BYTES, Ending, SandboxedProcess, private_uid, select_readable

_ANSWER_SECONDS = 60.0


class Forked:
    """A process that a server forked, with all that it started: killed together when it ends."""

    def __init__(self, process: int, status: int = -1) -> None:
        self._process, self._status = process, status

    def attach(self) -> bool:
        """There is nothing left to wait for."""
        return True

    def status(self, seconds: float) -> Ending | None:
        """Return how it ended, waiting for that up to so long before killing; None if nobody is left to say so."""
        select_readable(self._process, seconds)
        self.end()
        # After the end, because the pipe is read until nobody holds its other end any more.
        with os.fdopen(self._status, "rb") as pipe:
            self._status = -1
            code, _, cpu = pipe.read().partition(b" ")
        return Ending(int(code), float(cpu)) if cpu else None

    def end(self) -> None:
        """Kill what is left and wait until all of it is gone. May be called again."""
        if self._process >= 0:  # readable only when every process in its namespace is gone
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            select_readable(self._process)
            os.close(self._process)
            self._process = -1

    def close(self) -> None:
        """End it and give its descriptors back."""
        self.end()
        if self._status >= 0:
            os.close(self._status)
            self._status = -1


class Server:
    """A sandboxed process that forks judges, or candidates, on request; started again where it was lost."""

    def __init__(self, kind: str, level: str) -> None:
        self._kind, self._level = kind, level
        self.last_output = ""
        self._process: SandboxedProcess | None = None
        self._socket: socket.socket | None = None

    def fork(self, fds: Sequence[int], limits: Limits) -> Forked | None:
        """Fork one process for a task; None if that did not work."""
        status_read, status_write = os.pipe()
        try:
            line = self._running()
            numbers = limits.numbers(private_uid(self._level))
            message = " ".join(map(str, (numbers[-1], *numbers[:-1])))
            socket.send_fds(line, [message.encode()], [*fds, status_write])
            if not select_readable(line.fileno(), _ANSWER_SECONDS):
                raise ConnectionError
            answer, (process,), _, _ = socket.recv_fds(line, 1, 1)
            if answer != b"p":
                raise ConnectionError
        except (OSError, ValueError):
            # The server ends too: a late answer of it would be taken for the answer to the next request.
            os.close(status_read)
            self.close()
            return None
        finally:
            os.close(status_write)
        return Forked(process, status_read)

    def _running(self) -> socket.socket:
        if self._socket is None:
            parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket = parent_end
            extra = ("CAP_SYS_ADMIN", "CAP_SETPCAP") if self._kind == "candidate" else ()
            with child_end:
                arguments = (self._kind, child_end.fileno(), TMP_BYTES)
                self._process = SandboxedProcess(
                    self._level, "forker", arguments, (child_end.fileno(),), capabilities=extra
                )
            if not self._process.attach():
                raise ConnectionError
        return self._socket

    def close(self) -> None:
        """End the server and whatever it forked."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self.last_output = self._process.last_output()
            self._process = None


class Pair:
    """The servers of one worker. They end with the thread that first used them, so that thread has to outlive them."""

    def __init__(self, level: str) -> None:
        self.judges, self.candidates = Server("judge", level), Server("candidate", level)

    @property
    def last_output(self) -> str:
        """What a server said that could not start, if it said anything."""
        return self.candidates.last_output or self.judges.last_output

    def close(self) -> None:
        """End both."""
        self.judges.close()
        self.candidates.close()
