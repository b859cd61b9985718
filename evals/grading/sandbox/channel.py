"""Framed messages over a pair of pipes: eight bytes of length, then one value of `wire`."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per task
    from typing import Any

try:
    from .wire import MAX_MESSAGE_BYTES, WireError, decode, encode
except ImportError:  # inside the sandbox this folder is no package
    from wire import MAX_MESSAGE_BYTES, WireError, decode, encode  # type: ignore[import-not-found, no-redef]


class Channel:
    """One end of the conversation between judge and candidate, over two file descriptors."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd

    def send(self, value: Any) -> None:
        """Send one value; raises `WireError` if it is beyond the limits, `OSError` if nobody listens."""
        data = encode(value)
        left = memoryview(len(data).to_bytes(8, "big") + data)
        while left:
            left = left[os.write(self.write_fd, left) :]

    def receive(self) -> Any:
        """Return the next value; raises `EOFError` if the other end is gone, `WireError` for malformed data."""
        size = int.from_bytes(self._exactly(8), "big")
        # The other end may be an untrusted program: its length is checked before that much is read and kept.
        if size > MAX_MESSAGE_BYTES:
            raise WireError("message too large")
        return decode(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.read_fd, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
