"""Tasks: a target application with its finetuning data and its benchmarks.

A built-in task is a file of ``library/`` that holds it as ``TASK``; other packages publish theirs as entry points, and
`files` makes one of a user's task file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from ...foundation.errors import UserError, unknown
from ...foundation.files import digest
from ...foundation.progress import track
from .chat import as_conversation
from .encoded_sets import EncodedSet, encoded_once, tokenizer_identity
from .prompts import encode_documents, encode_example, encode_joined


@dataclass(frozen=True)
class Example:
    """One training example as text; the prompt is empty in language modelling."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class TrainSet:
    """Training examples, a hash over them, and where they came from."""

    examples: list[Example]
    sha256: str
    source: str


@dataclass(frozen=True)
class TrainSurvey:
    """What can be said of training examples without keeping them: hash, origin, number, and a sample of them."""

    sha256: str
    source: str
    count: int
    sample: tuple[Example, ...]


Loader = Callable[[Path | None, int], tuple[list[Example], str]]


@dataclass(frozen=True)
class Task:
    """A target application.

    Attributes:
        name, summary: as listed.
        kind: ``instruction`` (prompt and answer, only the answer is learnt) or ``language`` (all is learnt).
        benchmarks: what a finetuned model is measured by; the first one is the task's headline.
        max_length: default of the longest training example, in tokens.
        pretrained_row: whether results also show the model before finetuning.
        joined: language modelling over one joined text rather than document by document.
        sources: names of training sets, the one for the hub first.
        local_source: default where local data are used.
    """

    name: str
    summary: str
    kind: Literal["instruction", "language"]
    benchmarks: tuple[str, ...]
    max_length: int
    loaders: dict[str, Loader] = field(repr=False)
    local_source: str = ""
    pretrained_row: bool = False
    joined: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the training sets."""
        return tuple(self.loaders)

    @property
    def instructs(self) -> bool:
        """Whether its prompts are instructions, which a chat template may render."""
        return self.kind == "instruction"

    def check_chat(self, chat: bool, sample: Sequence[Example]) -> None:
        """Raise a `UserError` where examples cannot be written for a tokenizer with, or without, a chat template."""

    def check_rendering(self, tokenizer: Any, sample: Sequence[Example]) -> None:
        """Raise a `UserError` where a tokenizer's chat template cannot write an example."""
        self.encode(tokenizer, list(sample), 1, cut=True, chat=True)

    def default_source(self, data_dir: Path | None) -> str:
        """Return the training set that is used unless another is named."""
        return self.local_source if data_dir is not None and self.local_source else self.sources[0]

    def train_examples(self, source: str | None, data_dir: Path | None, seed: int) -> TrainSet:
        """Return the training examples in their order of origin.

        Args:
            source: one of `sources`, or None for the default.
            data_dir: folder with local datasets, or None for the hub.
            seed: seed of generated data; others do not depend on it.
        """
        name = source or self.default_source(data_dir)
        if name not in self.loaders:
            raise unknown("training set", name, self.loaders, f" of task '{self.name}'")
        examples, origin = self.loaders[name](data_dir, seed)
        return TrainSet(examples, digest([[e.prompt, e.answer] for e in examples]), origin)

    def survey(self, source: str | None, data_dir: Path | None, seed: int, most: int) -> TrainSurvey:
        """Return hash and number of the training examples, and at most so many of them at equal distances.

        Args:
            source, data_dir, seed: as in `train_examples`.
            most: how many examples are wanted.
        """
        training = self.train_examples(source, data_dir, seed)
        count = len(training.examples)
        sample = (
            [training.examples[index * count // most] for index in range(most)] if count > most else training.examples
        )
        return TrainSurvey(training.sha256, training.source, count, tuple(sample))

    def read_encoded(
        self,
        tokenizer: Any,
        source: str | None,
        data_dir: Path | None,
        seed: int,
        max_length: int,
        cut: bool = False,
        chat: bool = False,
    ) -> EncodedSet:
        """Return the training examples as token ids; arguments as in `train_examples` and `encode`.

        Sets of moderate size are encoded once a process: the stages of a sweep read the same examples, with tokenizers
        that come from other folders but are equal.
        """
        training = self.train_examples(source, data_dir, seed)
        encode = partial(self.encode, tokenizer, training.examples, max_length, cut, chat)
        identity = None if chat else tokenizer_identity(tokenizer)
        if identity is None:
            return encode()
        return encoded_once((type(self), training.sha256, self.kind, self.joined, identity, max_length, cut), encode)

    def encode(
        self, tokenizer: Any, examples: list[Example], max_length: int, cut: bool = False, chat: bool = False
    ) -> EncodedSet:
        """Turn examples into token ids and labels; instruction examples that are too long are dropped and counted.

        Args:
            tokenizer: of the model.
            examples: of this task.
            max_length: in tokens.
            cut: keep the beginning of examples that are too long, for statistics.
            chat: render instructions with the tokenizer's chat template.
        """
        if self.kind == "language":
            texts = [example.answer for example in examples]
            encode = encode_joined if self.joined else encode_documents
            return EncodedSet(encode(tokenizer, texts, max_length), 0)
        encoded = [
            encode_example(tokenizer, as_conversation(e.prompt) if chat else e.prompt, e.answer, max_length, cut)
            for e in track(examples, unit="examples encoded")
        ]
        items = [item for item in encoded if item is not None]
        return EncodedSet(items, len(encoded) - len(items))


PUBLISHED = "lowrank_bench.tasks"
"""Entry point group in which other packages publish a `Task`."""


_LIBRARY = Path(__file__).parent / "library"
_added: dict[str, Task] = {}


def built_in_tasks() -> tuple[str, ...]:
    """Return the names of the tasks in ``library/``, one file each."""
    return tuple(sorted(path.stem.replace("_", "-") for path in _LIBRARY.glob("[!_]*.py")))


def add_task(task: Task) -> Task:
    """Make a task known by its name in this process, in place of an added one of that name.

    Raises:
        UserError: a built-in task has the name.
    """
    if task.name in built_in_tasks():
        raise UserError(
            f"the task name '{task.name}' is that of a built-in task; choose another, such as my-{task.name}"
        )
    _added[task.name] = task
    return task


def _built_in(name: str) -> Task:
    task = import_module(f"{__package__}.library.{name.replace('-', '_')}").TASK
    assert isinstance(task, Task)
    return task


def all_tasks() -> dict[str, Task]:
    """Return every task by name: the built-in ones, those that other packages publish, and added ones.

    Raises:
        UserError: a published task cannot be imported, is none, or has a name that is taken.
    """
    known = {name: _built_in(name) for name in built_in_tasks()}
    for point in entry_points(group=PUBLISHED):
        try:
            task = point.load()
        except Exception as error:
            raise UserError(
                f"task '{point.name}' of {point.value} cannot be imported ({error}); repair or uninstall it"
            ) from error
        if not isinstance(task, Task) or task.name != point.name:
            raise UserError(f"{point.value} is no task '{point.name}'; publish a lowrank_bench.Task under its own name")
        if known.setdefault(task.name, task) is not task:
            raise UserError(f"task '{task.name}' of {point.value} has a name that is taken; rename or uninstall it")
    return known | _added


def get_task(name: str) -> Task:
    """Return a task; raise a `UserError` with the nearest name if there is none."""
    if name in built_in_tasks():
        return _built_in(name)
    if name in _added:
        return _added[name]
    known = all_tasks()
    if name not in known:
        raise unknown("task", name, known)
    return known[name]
