"""What the command line says about options that typer refuses and paths that the system refuses."""

from __future__ import annotations

import errno

import typer

UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
"""What typer raises for a wrong command line; it has no public name of its own in typer."""

_REMEDIES = {
    errno.ENAMETOOLONG: "a part of it is longer than the file system takes (255 bytes); choose a shorter name",
    errno.ELOOP: "its symbolic links lead to each other; name the folder or file itself",
    errno.ENOTDIR: "a part of it is a file, not a folder; name another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.EACCES: "permission denied; name another place or change its permissions",
    errno.EPERM: "the system does not permit it; name another place",
    errno.EROFS: "its file system is read-only; name another place",
}


def usage_sentence(error: Exception) -> str:
    """Return typer's complaint as one sentence that ends with where the options are listed."""
    context = getattr(error, "ctx", None)
    text = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    command = context.command_path if context is not None else "bench"
    return f"{text[:1].lower()}{text[1:]}; {command} --help lists what is allowed"


def path_sentence(error: OSError | RuntimeError) -> str:
    """Return a sentence about a path that the system does not take, or the empty string for any other error."""
    if isinstance(error, RuntimeError):  # pathlib, before Python 3.13
        text = str(error)
        path = text.partition("Symlink loop from ")[2].strip("'")
        return f"the path {path} cannot be used: {_REMEDIES[errno.ELOOP]}" if path else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"the path {error.filename} cannot be used: {remedy}" if remedy and error.filename is not None else ""
