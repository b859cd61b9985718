"""The tokenizer of a plan: read when it is first needed and once a process; what was counted with it is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from ..evals.tasks.chat import chat_rules, has_chat_template
from ..foundation.files import digest
from ..foundation.remembered import remembered
from ..foundation.version import __version__
from ..models.loading import load_tokenizer
from ..models.presets import ModelSource

_VERSION = 2  # raised where what is counted changes
_PACKAGES = ("tokenizers", "transformers")


@lru_cache(maxsize=1)
def _load(source: ModelSource) -> tuple[Any, float]:
    """Return the tokenizer of a model and the CPU seconds of loading it."""
    begin = time.thread_time()
    tokenizer = load_tokenizer(source.location, source.revision)
    return tokenizer, time.thread_time() - begin


def tokenizer_chats(source: ModelSource) -> bool:
    """Return whether a model's tokenizer has a chat template."""
    tokenizer = PlanTokenizer(source)
    return bool(tokenizer.counted("chat template", None, lambda: has_chat_template(tokenizer)))


def tokenizer_chat_rules(source: ModelSource) -> int:
    """Return the version of the rules by which a model's chat template is rendered, see `chat_rules`."""
    tokenizer = PlanTokenizer(source)
    return int(tokenizer.counted("chat rules", None, lambda: chat_rules(tokenizer)))


class PlanTokenizer:
    """Behaves like the tokenizer of a model, which is read at the first use: a large one takes seconds."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(_load(self._source)[0], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _load(self._source)[0](*args, **kwargs)

    def __len__(self) -> int:
        return len(_load(self._source)[0])

    def read(self) -> Any:
        """Return the tokenizer itself, read once a process."""
        return _load(self._source)[0]

    def load_seconds(self) -> float:
        """Return the CPU seconds of loading it in this process."""
        return _load(self._source)[1]

    def check(self) -> None:
        """Raise a `UserError` if the tokenizer cannot be read; reads nothing where these files were readable before."""
        self.counted("readable", None, lambda: bool(_load(self._source)))

    def counted(self, question: str, inputs: Any, count: Callable[[], Any]) -> Any:
        """Return a result that depends on the tokenizer, remembered from one process to the next.

        Args:
            question: names the question.
            inputs: plain data with all else that the result depends on, such as the sha256 of texts.
            count: returns the result as plain data; what it raises is passed on and not remembered.
        """
        versions = [__version__, *map(version, _PACKAGES)]  # this package may run from a folder, not installed
        return remembered(digest([_VERSION, versions, self._source.sha256, question, inputs]), count)
