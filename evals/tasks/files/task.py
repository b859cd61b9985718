"""A `Task` that a task file describes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ....foundation.errors import UserError
from ....foundation.files import canonical_json
from ..base import Example, Task, TrainSet, TrainSurvey
from ..encoded_sets import DataCard, EncodedSet
from ..prompts import IGNORED, Encoded, encode_documents, encode_example
from .prompting import asked, uses_chat
from .rows import Row
from .schema import TaskFile
from .stored import StoredExamples
from .training import Counts, Layout, example_line, find_layout, read_examples, training_identity

SOURCE = "task-file"
"""Name of the training set; where it lies is no part of what it is."""


@dataclass(frozen=True)
class FileTask(Task):
    """A task file's task; rows are read one at a time.

    Attributes:
        definition: the task file.
    """

    definition: TaskFile | None = None
    of_file: ClassVar[bool] = True

    @property
    def file(self) -> TaskFile:
        """The task file."""
        assert self.definition is not None
        return self.definition

    @property
    def instructs(self) -> bool:
        """Whether a chat template may render its prompts."""
        return self.kind == "instruction" and uses_chat(self.file, True)

    def check_chat(self, chat: bool, sample: Sequence[Example]) -> None:
        """Raise a `UserError` where the task file, or a conversation, needs a chat template and there is none."""
        if self.file.prompt == "chat" and self.kind == "instruction" and not chat:
            raise UserError(
                f"the task '{self.name}' says 'prompt: chat' and this model's tokenizer has no chat template, or "
                "--chat-template never forbids it; use a chat model, or write 'prompt: auto'"
            )
        for example in sample:
            asked(self.file, example.prompt, chat)

    def check_rendering(self, tokenizer: Any, sample: Sequence[Example]) -> None:
        """Raise a `UserError`, which names the row, where a tokenizer's chat template cannot write an example."""
        for example in sample:
            try:
                self.encode_one(tokenizer, example, 1, cut=True, chat=True)
            except UserError as error:
                rows = read_examples(self.file, find_layout(self.file), Counts())
                raise UserError(f"{next(row.title for row, other in rows if other == example)}: {error}") from error

    def train_examples(self, source: str | None, data_dir: Path | None, seed: int) -> TrainSet:
        """Return all examples at once; `survey` and `read_encoded` keep none of them."""
        survey = self.survey(source, data_dir, seed, 1)
        return TrainSet(
            [e for _, e in read_examples(self.file, find_layout(self.file), Counts())], survey.sha256, SOURCE
        )

    def survey(self, source: str | None, data_dir: Path | None, seed: int, most: int) -> TrainSurvey:
        """Read the data once and keep hash, number and a sample."""
        return survey_file(self.file, most)[0]

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
        """Return the examples as token ids in a temporary file, with the data card."""
        counts, layout = Counts(), find_layout(self.file)
        sha256, dropped, shortened = _new_hash(self.file, layout), 0, 0

        def encoded() -> Iterator[Encoded]:
            nonlocal dropped, shortened
            for row, example in read_examples(self.file, layout, counts):
                sha256.update(example_line(example))
                item = self.encode_row(row, tokenizer, example, max_length, cut, chat)
                if item is None:
                    dropped += 1
                    continue
                shortened += (cut or self.kind == "language") and len(item.input_ids) == max_length
                yield item

        items = StoredExamples(encoded())
        card = DataCard(
            **counts.card(),
            sha256=sha256.hexdigest(),
            form=layout.form,
            dropped_too_long=dropped,
            cut_to_length=shortened,
            tokens=length_quantiles(items.lengths()),
        )
        return EncodedSet(items, dropped, card)

    def encode(
        self, tokenizer: Any, examples: list[Example], max_length: int, cut: bool = False, chat: bool = False
    ) -> EncodedSet:
        """Turn examples into token ids and labels, in memory."""
        encoded_items = [self.encode_one(tokenizer, example, max_length, cut, chat) for example in examples]
        items = [item for item in encoded_items if item is not None]
        return EncodedSet(items, len(encoded_items) - len(items))

    def encode_row(
        self, row: Row, tokenizer: Any, example: Example, max_length: int, cut: bool = False, chat: bool = False
    ) -> Encoded | None:
        """Return ids and labels of a row's example, None where it is too long; what is refused names the row."""
        try:
            return self.encode_one(tokenizer, example, max_length, cut, chat)
        except UserError as error:
            raise UserError(f"{row.title}: {error}") from error

    def encode_one(
        self, tokenizer: Any, example: Example, max_length: int, cut: bool = False, chat: bool = False
    ) -> Encoded | None:
        """Return ids and labels of one example, None where it is too long."""
        if self.kind == "language":
            return encode_documents(tokenizer, [example.answer], max_length)[0]
        prompt = asked(self.file, example.prompt, chat)
        item = encode_example(tokenizer, prompt, example.answer, max_length, cut)
        if item is None or self.file.loss == "answer":
            return item
        # Nothing predicts a leading BOS.
        skip = 1 if item.input_ids[:1] == [tokenizer.bos_token_id] else 0
        return Encoded(item.input_ids, [IGNORED] * skip + item.input_ids[skip:])


def survey_file(definition: TaskFile, most: int) -> tuple[TrainSurvey, Mapping[str, Any]]:
    """Read the training data once; returns the survey and the data card.

    Args:
        definition: the task file.
        most: examples in the sample, at about equal distances.

    Raises:
        UserError: data that cannot be read, or no example for training.
    """
    layout, counts = find_layout(definition), Counts()
    sha256 = _new_hash(definition, layout)
    sample: list[Example] = []
    stride = 1
    for index, (_, example) in enumerate(read_examples(definition, layout, counts)):
        sha256.update(example_line(example))
        if index % stride == 0:
            sample.append(example)
            if len(sample) > 2 * most:  # every second one, and from here on at double the distance
                sample, stride = sample[::2], 2 * stride
    if not counts.used:
        raise UserError(
            f"the training data of '{definition.name}' leave no example: {counts.rows:,} rows, {counts.empty:,} with "
            f"an empty prompt or answer, {counts.held_out:,} held out; name other columns, or another file"
        )
    count = len(sample)
    if count > most:
        sample = [sample[index * count // most] for index in range(most)]
    card = counts.card() | {"sha256": sha256.hexdigest(), "form": layout.form}
    return TrainSurvey(sha256.hexdigest(), SOURCE, counts.used, tuple(sample)), card


def _new_hash(definition: TaskFile, layout: Layout) -> Any:
    return hashlib.sha256(canonical_json(training_identity(definition, layout)).encode() + b"\n")


def length_quantiles(lengths: Sequence[int] | Iterable[int]) -> dict[str, int]:
    """Return the least, the quartiles, the 95th percentile and the most of some lengths; empty for none."""
    ordered = sorted(lengths)
    if not ordered:
        return {}
    last = len(ordered) - 1
    shares = {"min": 0.0, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
    return {name: ordered[round(share * last)] for name, share in shares.items()} | {"sum": sum(ordered)}
