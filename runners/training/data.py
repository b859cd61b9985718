"""A task's training data as token ids, for training and for statistics."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evals.tasks.base import Example, get_task
from ...evals.tasks.encoded_sets import DataCard
from ...evals.tasks.prompts import IGNORED, PROMPT_VERSION, Encoded
from ...foundation.errors import UserError
from ...foundation.progress import track
from ..data_spec import DataSpec
from ..estimates.assumptions import TRAINING_SETS

CALIBRATION_TOKENS = 2048
"""Longest example that statistics are made of unless the user names a length; a model's context may be far longer."""

DATA_SEED = 42
"""Seed of generated (toy) data: one dataset for all seeds of a sweep, as with real data."""


def collate(items: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right; returns ``input_ids``, ``attention_mask``, ``labels`` as int64 (b, t)."""
    length = max(len(item.input_ids) for item in items)
    ids = torch.full((len(items), length), pad_token_id)
    mask = torch.zeros(len(items), length, dtype=torch.long)
    labels = torch.full((len(items), length), IGNORED)
    for row, item in enumerate(items):
        size = len(item.input_ids)
        ids[row, :size] = torch.tensor(item.input_ids)
        labels[row, :size] = torch.tensor(item.labels)
        mask[row, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True)
class TaskData:
    """Encoded training examples (a `methods.base.CalibrationData`).

    Attributes:
        items: the examples that fit the length limit.
        pad_token_id: fills the rows of a batch.
        dropped: how many examples were too long.
        seed: of the order in which `batches` draws.
        length: the length limit in tokens.
        card: of the data, see `EncodedSet`.
        used: what `batches` has given so far at most, in ``examples`` and ``tokens`` without padding.
    """

    items: Sequence[Encoded]
    pad_token_id: int
    dropped: int
    seed: int
    length: int = 0
    used: dict[str, int] = field(default_factory=dict, compare=False)
    card: DataCard | None = field(default=None, compare=False)

    def reading(self) -> dict[str, int]:
        """Return what `batches` has been asked for, for a record: examples, tokens and the length limit."""
        return self.used | {"length": self.length} if self.used else {}

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of the first ``samples`` examples of a seeded shuffle."""
        chosen = self._chosen(samples)
        # All passes read a beginning of one shuffle, so that the longest of them contains the others.
        if len(chosen) > self.used.get("examples", 0):
            self.used.update(examples=len(chosen), tokens=sum(len(self.items[i].input_ids) for i in chosen))
        for start in track(range(0, len(chosen), batch_size), unit="batches"):
            yield collate([self.items[i] for i in chosen[start : start + batch_size]], self.pad_token_id)

    def extent(self, samples: int | None) -> tuple[int, int]:
        """Return how many examples `batches` yields, and the tokens of the longest."""
        lengths = [len(self.items[i].input_ids) for i in self._chosen(samples)]
        return len(lengths), max(lengths, default=0)

    def _chosen(self, samples: int | None) -> list[int]:
        order = list(range(len(self.items)))
        random.Random(self.seed).shuffle(order)
        return order[:samples]


SAMPLE = 256
"""So many examples tell how long those of a training set are."""


@dataclass(frozen=True)
class TrainSetSurvey:
    """What a plan knows of a training set.

    Attributes:
        name: of the source, as `Task.sources` has it.
        identity: its source, its hash and the prompt rules.
        examples: how many there are.
        sample: `SAMPLE` of them at equal distances; empty where the data are not at hand.
    """

    name: str
    identity: DataSpec
    examples: int
    sample: tuple[Example, ...] = ()


def survey_train_set(
    task: str, source: str | None, data_dir: Path | None, at_hand: bool = True, chat: bool = False, chat_rules: int = 1
) -> TrainSetSurvey:
    """Read a training set and say what it is.

    Args:
        task, source, data_dir: as in `load_task_data`.
        at_hand: whether data that would come from the hub can be read; otherwise their published size is taken.
        chat: whether the model's tokenizer has a chat template that is to be used; language tasks use none.
        chat_rules: of the template, see `DataSpec`.
    """
    task_class = get_task(task)
    name = source or task_class.default_source(data_dir)
    if not at_hand and name in TRAINING_SETS and name in task_class.sources:
        named = DataSpec(task=task, source=f"{name} (not read)", sha256="", prompt_version=PROMPT_VERSION)
        return TrainSetSurvey(name, named, TRAINING_SETS[name].examples)
    survey = task_class.survey(source, data_dir, DATA_SEED, SAMPLE)
    rendered = chat and task_class.instructs
    identity = DataSpec(
        task=task,
        source=survey.source,
        sha256=survey.sha256,
        prompt_version=PROMPT_VERSION,
        chat=rendered,
        chat_rules=chat_rules if rendered else 1,
    )
    return TrainSetSurvey(name, identity, survey.count, survey.sample)


def example_length(task: str, asked: int | None, context: int | None = None) -> int:
    """Return the longest example that is read, in tokens: the one asked for, else the task's own.

    Where the task says none either it is `CALIBRATION_TOKENS`; it is never more than the model's context.

    Args:
        task: whose data are read.
        asked: what the method or the training settings say, or None.
        context: the model's context length, or None where it does not matter.
    """
    length = asked or get_task(task).max_length or CALIBRATION_TOKENS
    return min(length, context or length)


def calibration_length(task: str, asked: int | None, context: int) -> int:
    """Return the longest example that statistics are made of, in tokens.

    Unless a length is asked for, it is `CALIBRATION_TOKENS`, or the model's context where that is shorter. Examples
    that are texts of their own are not read any longer than a training on the task reads them.

    Args:
        task: whose data are read.
        asked: what the method or the training settings say, or None.
        context: the model's context length.
    """
    task_class = get_task(task)
    own = (
        CALIBRATION_TOKENS
        if task_class.joined
        else min(task_class.max_length or CALIBRATION_TOKENS, CALIBRATION_TOKENS)
    )
    return min(asked or own, context)


def load_task_data(
    task: str,
    source: str | None,
    data_dir: Path | None,
    tokenizer: Any,
    max_length: int | None,
    context: int,
    seed: int,
    cut: bool = False,
    chat: bool = False,
) -> TaskData:
    """Load and encode a task's training set.

    Args:
        task, source, data_dir: what to load.
        tokenizer: of the model.
        max_length: longest example in tokens, or None for the task's own; never more than ``context``.
        context: the model's context length.
        seed: of the order of `TaskData.batches`.
        cut: keep the beginning of examples that are too long, for statistics, instead of leaving them out.
        chat: render instructions with the tokenizer's chat template.

    Raises:
        UserError: no example fits.
    """
    task_class = get_task(task)
    limit = example_length(task, max_length, context)
    encoded = task_class.read_encoded(tokenizer, source, data_dir, DATA_SEED, limit, cut, chat)
    if not encoded.items:
        raise UserError(
            f"none of the {encoded.count} training examples of '{task}' fits {limit} tokens; raise max_length (the "
            f"model takes {context})"
        )
    return TaskData(encoded.items, tokenizer.pad_token_id, encoded.dropped, seed, limit, card=encoded.card)
