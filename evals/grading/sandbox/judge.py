"""The trusted side: holds the tests, calls the candidate by proxy, says what came out. Has a sandbox of its own.

Its verdict goes to standard output as one encoded tuple ``(kind, detail)`` after the single byte ``r`` that starts the
parent's clock.
"""

from __future__ import annotations

import builtins
import os
import sys
from importlib.machinery import PathFinder

from candidate import run  # type: ignore[import-not-found]
from channel import Channel  # type: ignore[import-not-found]
from limits import Limits  # type: ignore[import-not-found]
from syscalls import block  # type: ignore[import-not-found]
from wire import WireError, decode, encode  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per task
    from typing import Any


class CandidateGone(BaseException):
    """The candidate cannot answer any more; no test may catch this."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Proxy:
    """A function of the candidate, called over the pipe with plain data."""

    def __init__(self, candidate: Candidate, name: str) -> None:
        self._candidate, self.__name__ = candidate, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._candidate.call(self.__name__, args, kwargs)


class Candidate:
    """The other end of the pipe."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.raised: BaseException | None = None
        self.calls = 0
        self.gone: CandidateGone | None = None

    def ask(self, *message: Any) -> Any:
        """Send a message and return the answer; the candidate's death or nonsense ends the test."""
        if self.gone is not None:
            raise self.gone
        try:
            self.channel.send(message[0] if len(message) == 1 else message)
            answer = self.channel.receive()
            if not isinstance(answer, tuple) or len(answer) < 2:
                raise WireError("malformed answer")
        except (EOFError, OSError):
            raise self._end("crashed", "the program ended before it answered") from None
        except WireError as error:
            raise self._end("output", str(error)) from None
        if answer[0] == "error":
            self._raise(str(answer[1]), str(answer[-1]))
        return answer

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the candidate; changes that it makes to its arguments are made here too."""
        try:
            sent = encode(args, opaque=False), encode(kwargs, opaque=False)
        except WireError as error:
            raise self._end("unjudgeable", f"the test passes no plain data ({error})") from None
        self.calls += 1
        answer = self.ask(name, *sent)
        if len(answer) != 3 or answer[0] != "value":
            raise self._end("output", "malformed answer")
        try:
            value = decode(answer[1])
            changed = () if answer[2] is None else decode(answer[2])
            for argument, new_content in zip(args, changed, strict=False):
                write_back(argument, new_content)
        except (WireError, TypeError, ValueError) as error:
            raise self._end("output", str(error)) from None
        return value

    def _end(self, kind: str, detail: str) -> CandidateGone:
        """Return what ends the test. It is kept, so that a test with a bare ``except`` does not pass after it."""
        self.gone = CandidateGone(kind, detail)
        return self.gone

    def _raise(self, name: str, message: str) -> None:
        kinds = {"SystemExit": "exited", "MemoryError": "memory", "WireError": "output", "SyntaxError": "syntax"}
        if name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "WireError"):
            raise self._end(kinds.get(name, "exception"), f"{name}: {message}"[:300])
        # Builtin exceptions keep their class, since a test may expect one. The name comes from the program: nothing but
        # a subclass of `Exception` may be called by it.
        cls = getattr(builtins, name, None)
        is_error = isinstance(cls, type) and issubclass(cls, Exception)
        try:
            error = cls(message) if is_error and cls is not None else Exception(f"{name}: {message}")
        except TypeError:  # UnicodeDecodeError and the like want more arguments
            error = Exception(f"{name}: {message}")
        self.raised = error
        raise error


def write_back(argument: Any, changed: Any) -> None:
    """Make a changed argument's content that of the candidate's copy."""
    if type(argument) is not type(changed):
        return
    if isinstance(argument, (list, bytearray)):
        argument[:] = changed
    elif isinstance(argument, (dict, set)):
        argument.clear()
        argument.update(changed)
    elif type(argument).__name__ == "ndarray" and argument.shape == changed.shape:
        argument[...] = changed


def judge(candidate: Candidate, job: dict[str, Any]) -> tuple[str, str]:
    """Run the tests; return the verdict's kind and a detail of at most 300 characters."""
    try:
        if job["token"] is not None:
            done = candidate.ask(job) == ("done", job["token"])
            return ("passed", "") if done else ("output", "malformed answer")
        answer = candidate.ask({"program": job["program"], "names": job["names"], "token": None})
        if answer[0] != "loaded" or not isinstance(answer[1], list):
            return "output", "malformed answer"
        space: dict[str, Any] = {}
        if job["setup"]:
            run(job["setup"], "<setup>", space)
        for name, is_function, value in answer[1]:
            # A program must not add names to the test's globals: one such as `all` would hide the builtin.
            if name in job["names"]:
                space[name] = Proxy(candidate, name) if is_function else value
        run(job["test"], "<test>", space)
    except CandidateGone as error:
        return error.kind, error.detail
    except BaseException as error:
        return classify(error, candidate, job)
    if candidate.gone is not None:
        return candidate.gone.kind, candidate.gone.detail
    return ("passed", "") if candidate.calls else ("no-test", "the test never calls the program")


def classify(error: BaseException, candidate: Candidate, job: dict[str, Any]) -> tuple[str, str]:
    """Name the kind of a failed test."""
    detail = f"{type(error).__name__}: {error}"[:300]
    own = error is candidate.raised
    if isinstance(error, SyntaxError) and own:
        return "syntax", detail
    if isinstance(error, MemoryError):
        return "memory", detail
    if isinstance(error, ModuleNotFoundError) and lacks_package(error):
        return "missing-package", detail
    in_process = job["token"] is not None
    # A failed assertion of the program itself is an exception; in a shared process it looks like one of the test's.
    if isinstance(error, AssertionError) and (in_process or not own):
        return "wrong", detail
    return "exception", detail


def lacks_package(error: ModuleNotFoundError) -> bool:
    """Tell whether an import failed because the package is neither in the standard library nor on offer here."""
    _, quote, rest = str(error).partition("'")  # No module named 'package.module'
    package = rest.partition("'")[0].partition(".")[0]
    known = package in sys.stdlib_module_names or package in sys.modules
    return bool(quote and package) and not known and PathFinder.find_spec(package) is None


def main(read_fd: int, write_fd: int, *numbers: int) -> None:
    """Read a job from standard input, judge the candidate at the other end of two descriptors, write the verdict."""
    # The tests may print: the verdict goes through a descriptor that they do not know, and 0 to 2 become /dev/null.
    verdict_fd = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    job = Channel(0, verdict_fd).receive()
    for standard_fd in range(3):
        os.dup2(null, standard_fd)
    Limits(*numbers).apply()
    block()  # nothing is left to do where a server has done it
    channel = Channel(read_fd, write_fd)
    if channel.receive() != "ready":
        raise SystemExit("the candidate did not start")
    os.write(verdict_fd, b"r")  # starts the parent's clock: starting Python is not the program's time
    verdict = judge(Candidate(channel), job)
    Channel(0, verdict_fd).send(verdict)
