"""Plain data that users write: read within limits of size, depth and kind of file."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .files import read_limited

MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML without dates: no option is one, and JSON, in which options are kept, has none. No key is there twice."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._distinct: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Write out merged keys, which may be those of the mapping again, once its own are known to differ."""
        if node not in self._distinct:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, count in Counter(key.value for key in keys).items():
                if count > 1:
                    mark = [node for node in keys if node.value == key][1].start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is there twice", mark)
            self._distinct.add(node)
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_input(path: Path, kind: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of limited size; anything else (pipes, devices, folders) is refused without waiting for it.

    Args:
        path: what the user named.
        kind: what it should be, for the message.
        max_bytes: largest size.

    Raises:
        UserError: no such file, another kind of file, or too large.
    """
    try:
        return read_limited(path, max_bytes)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(f"the {kind} {path} is larger than {max_bytes:,} bytes; name another file") from error
        raise UserError(f"the {kind} {path} cannot be read ({error.strerror}); name an existing file") from error


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Read YAML as plain data; what looks like a date stays text.

    Args:
        text: one document.
        source: what it is, for the message.

    Raises:
        UserError: no YAML, numbers of thousands of digits, or nested or repeated beyond reason.
    """
    try:
        value = yaml.load(text, Loader=_Loader)  # derived from SafeLoader
        if not _is_plain(value):
            raise ValueError("it holds something other than text, numbers, lists and mappings, or too many of them")
    except RecursionError:
        raise UserError(f"{source} is nested too deeply; write it with fewer brackets") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:
        problem = str(error).split("\n")[0].split("; use sys.")[0]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            line, parts = error.problem_mark.line + 1, filter(None, (error.context, error.problem))
            problem = f"line {line}: {', '.join(parts)}"
        raise UserError(f"{source} is no valid YAML ({problem}); see docs/cli.md for an example") from error
    return value


def _is_plain(value: Any) -> bool:
    """Whether a value is JSON's kind of data and small where aliases are written out."""
    waiting, seen = [value], 0
    while waiting:
        item, seen = waiting.pop(), seen + 1
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif not isinstance(item, str | int | float | bool | None):
            return False
        # Counted as written out: ten aliases of ten aliases are few characters and billions of values.
        if seen + len(waiting) > _MAX_VALUES:
            return False
    return True


def plain_number(value: Any) -> Any:
    """Return a scalar of numpy as Python's own, which JSON takes; other values as they are."""
    return value.item() if hasattr(value, "item") else value
