"""What a sandboxed process does to itself before it runs anything: limits, then a user id that owns nothing."""

from __future__ import annotations

import os
import resource

PENDING_SIGNALS = 64
"""Signals that may wait, and timers that send them: both are counted for the whole user."""


class Limits:
    """Resource limits of one process.

    Args:
        memory: address space in bytes.
        cpu: processor seconds; the process gets SIGXCPU then, and SIGKILL one second later.
        processes: processes and threads of this user.
        file_size: bytes of one file.
        uid: user and group to become; 0 keeps the user.
    """

    def __init__(
        self, memory: int = 1 << 30, cpu: int = 4, processes: int = 16, file_size: int = 16 << 20, uid: int = 0
    ) -> None:
        self.memory, self.cpu, self.processes, self.file_size, self.uid = memory, cpu, processes, file_size, uid

    def numbers(self, uid: int) -> tuple[int, ...]:
        """Return the arguments of these limits for another user."""
        return self.memory, self.cpu, self.processes, self.file_size, uid

    def apply(self) -> None:
        """Give up everything that is not needed. Cannot be undone by the process."""
        if self.uid:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        for name, soft, hard in (
            (
                resource.RLIMIT_CORE,
                1,
                1,
            ),  # 1, not 0: a host's crash collector (a piped core_pattern) runs in spite of 0
            (resource.RLIMIT_NOFILE, 64, 64),
            (resource.RLIMIT_FSIZE, self.file_size, self.file_size),
            (resource.RLIMIT_NPROC, self.processes, self.processes),
            (resource.RLIMIT_CPU, self.cpu, self.cpu + 1),
            (resource.RLIMIT_AS, self.memory, self.memory),
            (resource.RLIMIT_SIGPENDING, PENDING_SIGNALS, PENDING_SIGNALS),
            (resource.RLIMIT_MEMLOCK, 0, 0),
            (resource.RLIMIT_MSGQUEUE, 0, 0),
        ):
            resource.setrlimit(name, (soft, hard))
