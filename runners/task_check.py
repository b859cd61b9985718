"""What a task file makes of its data for one model: examples with their mask, lengths, overlap, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from ..evals.base import EvalSettings, benchmarks
from ..evals.tasks.files.opening import is_task_file, open_task
from ..evals.tasks.files.overlap import Overlap, OverlapSearch, prompt_text
from ..evals.tasks.files.problems import ProblemCard, card_of
from ..evals.tasks.files.task import FileTask, length_quantiles
from ..evals.tasks.files.training import Counts, find_layout, read_examples
from ..evals.tasks.prompts import IGNORED, Encoded
from ..foundation.errors import UserError
from ..foundation.progress import reporting
from ..methods.ranks.budget import RatioOutOfReachError
from ..models.footprint import context_length
from .config import make_config
from .estimates.seconds import estimate
from .graph import Plan
from .plan import make_plan
from .progress import PLANNING_QUIET, show_progress

SHOWN = 3
_RATIO = 2.0
TOKENISED = 20_000
"""Examples that are tokenised for the quantiles; all rows are read and counted."""
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class Rendered:
    """One training example as the model reads it.

    Attributes:
        where: the line or row.
        tokens, learnt: how many there are, and are learnt.
        parts: its text in pieces, and whether each is learnt.
    """

    title: str
    tokens: int
    learnt: int
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Checked:
    """What `check_task` found.

    Attributes:
        task, model: by name.
        prompt: ``chat``, or the prompt of the task file.
        limit: longest example in tokens.
        card: rows, duplicates and so on; see `training.Counts`.
        examples: the first few.
        quantiles: of tokens, before anything is left out.
        tokenised: how many examples they are of.
        too_long: of those, how many are longer than the limit: left out, or cut where all of a text is learnt.
        cut: whether they are cut.
        benchmarks: by name, the data card.
        overlaps: by name.
        ratio: of the sweep whose cost is estimated: 2, or what is within reach of a model with large embeddings.
        cost: pending stages of a sweep with one method at that ratio: kind, number, seconds.
        notes: what a reader should know.
    """

    task: str
    model: str
    prompt: str
    limit: int
    card: Counts
    examples: Sequence[Rendered]
    quantiles: Mapping[str, int]
    tokenised: int
    too_long: int
    cut: bool
    benchmarks: Mapping[str, ProblemCard]
    overlaps: Mapping[str, Overlap]
    ratio: float
    cost: Sequence[tuple[str, int, float]]
    notes: Sequence[str]


def check_task(
    path: Path, model: str, revision: str | None = None, chat_template: str = "auto", console: Console | None = None
) -> Checked:
    """Check a task file with a model's tokenizer; every file is read, nothing is written.

    Args:
        path: the task file.
        model, revision: preset, folder or hub id.
        chat_template: as in a sweep.
        console: where lines, or on a terminal a bar, say how much of large data is read; None is silent.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    if not is_task_file(str(path)):
        raise UserError(f"'{path}' is no task file; name a .yaml file, such as one that bench task new writes")
    task = open_task(str(path))
    assert isinstance(task, FileTask)
    values: dict[str, Any] = {"model": model, "revision": revision, "task": str(path), "methods": [{"name": "svd"}]}
    values |= {"ratios": [_RATIO], "training": {"chat_template": chat_template}}
    shown = show_progress(console or Console(quiet=True), "reading data", after=PLANNING_QUIET)
    with shown as report, reporting(report):
        plan = _plan(values)
        if not plan.at_hand.tokenizer:
            raise UserError(f"the tokenizer of {model} is not on this machine; name a model that is, such as tiny")
        return _checked(task, plan)


def _plan(values: dict[str, Any]) -> Plan:
    """Return the plan of a sweep, which checks model, prompts and problems as a run would, and knows what it costs."""
    try:
        return make_plan(make_config(values), dry=True)
    except RatioOutOfReachError as error:
        if error.largest is None:
            raise
        return make_plan(make_config(values | {"ratios": [error.largest]}), dry=True)


def _checked(task: FileTask, plan: Plan) -> Checked:
    from ..models.loading import load_tokenizer

    tokenizer = load_tokenizer(plan.source.location, plan.source.revision)
    chat = plan.training_sets[task.name].identity.chat
    limit = min(task.max_length, context_length(plan.skeleton.config))
    layout, counts = find_layout(task.file), Counts()
    problems: dict[str, Any] = {name: benchmarks.get(name)() for name in task.benchmarks}
    rows = {name: benchmark.data(EvalSettings()) for name, benchmark in problems.items()}
    searches = {name: OverlapSearch(data.rows) for name, data in rows.items()}
    shown: list[Rendered] = []
    lengths: list[int] = []
    unlearnt = 0
    for row, example in read_examples(task.file, layout, counts):
        text = example.answer if layout.form == "text" else prompt_text(example.prompt)
        for search in searches.values():
            search.see(text, row.title)
        if len(lengths) >= TOKENISED:
            continue
        whole = task.encode_row(row, tokenizer, example, _UNLIMITED, chat=chat)
        assert whole is not None
        lengths.append(len(whole.input_ids))
        unlearnt += all(label == IGNORED for label in whole.labels)
        if len(shown) < SHOWN:
            shown.append(rendered(tokenizer, whole, row.title))
    too_long, cut = sum(length > limit for length in lengths), task.kind == "language"
    if not lengths:
        raise UserError(f"the training data of '{task.name}' leave no example; see the rows that were left out")
    notes = list(plan.at_hand.notes)
    if too_long == len(lengths) and not cut:
        notes.append(f"not one example fits {limit} tokens; raise max_length, or use a model with a longer context")
    if unlearnt:
        notes.append(f"{unlearnt} examples have no token that is learnt")
    seconds = estimate(plan).by_kind(plan)
    cost = [(kind, count, total) for kind, (count, total, _) in seconds.items()]
    return Checked(
        task.name,
        plan.source.name,
        "chat template" if chat else task.file.prompt,
        limit,
        counts,
        shown,
        length_quantiles(lengths),
        len(lengths),
        too_long,
        cut,
        {name: card_of(data) for name, data in rows.items()},
        {name: search.result() for name, search in searches.items()},
        plan.config.ratios[0],
        cost,
        notes,
    )


def rendered(tokenizer: Any, example: Encoded, title: str) -> Rendered:
    """Return an example's text in pieces, special tokens shown, by whether they are learnt."""
    flags = [label != IGNORED for label in example.labels]
    parts: list[tuple[str, bool]] = []
    done, before = 0, ""
    for learnt, group in groupby(flags):
        done += len(list(group))
        # From the beginning each time: tokens that are decoded alone may lose a space, or part of a character.
        text = str(tokenizer.decode(example.input_ids[:done], clean_up_tokenization_spaces=False))
        parts.append((text[len(before) :] if text.startswith(before) else text, learnt))
        before = text
    return Rendered(title, len(flags), sum(flags), tuple(parts))
