"""What a figure or table of a paper is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Measure = Literal["metric", "mean", "retained"]
"""What is drawn: a benchmark's headline, the mean over several, or that as a share of the uncompressed model's."""


@dataclass(frozen=True)
class Line:
    """One line of a figure: a method with options.

    Attributes:
        label: of the line and of the records.
        method: registered name.
        options: over the method's and the recipe's defaults.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The line as a method of a sweep's configuration."""
        return {"name": self.method, "label": self.label, "options": dict(self.options)}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        benchmark: whose quoted numbers belong to it.
        ours: the benchmarks that we measure for it.
        measure: what is drawn of them.
        name: part of the file's name where an item has several panels.
    """

    benchmark: str
    ours: tuple[str, ...]
    measure: Measure = "metric"
    name: str = ""


@dataclass(frozen=True)
class Form:
    """How an item is measured on models of one size.

    Attributes:
        sweep: name shared by items that are pictures of the same sweep.
        task, benchmarks, context: as in a sweep's configuration.
        lines, ratios: what is compared, and where.
        panels: the pictures.
        recipe: training defaults.
        finetune_steps, recover_steps: instead of the recipe's.
        training_free: the model is compressed as it is.
        train_set: whose data the paper trained on, as far as known; None where nothing is trained.
        caption: what a reader must know of this form, each a sentence; `configs.captions` fills in {finetune_steps},
            {recover_steps} and {ratios}.
        departs: what it does otherwise than the paper, so that numbers cannot be compared; each a clause.
    """

    sweep: str
    task: str
    lines: tuple[Line, ...]
    ratios: tuple[float, ...]
    panels: tuple[Panel, ...]
    recipe: str
    benchmarks: tuple[str, ...] | None = None
    context: tuple[int, ...] | None = None
    finetune_steps: int | None = None
    recover_steps: int | None = None
    training_free: bool = False
    train_set: str | None = None
    caption: tuple[str, ...] = ()
    departs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A finding of the paper that our numbers can be held against.

    Attributes:
        text: what the paper says, with its place.
        relation: ``above``: the first line of the form is better than each other one; ``similar``: all are alike.
        ratios: least and greatest ratio for which the paper says so.
        small_ratios: the same in the small form.
    """

    text: str
    relation: Literal["above", "similar"]
    ratios: tuple[float, float]
    small_ratios: tuple[float, float]


@dataclass(frozen=True)
class Item:
    """A figure or table.

    Attributes:
        paper: short name.
        kind: ``figure`` or ``table``, which is also the option that names it.
        name: as typed: ``3a``.
        title: one line about it.
        model, revision: what the paper measured.
        full: for models of the paper's size.
        small: for models below 50 M parameters.
        claims: what the paper says of it.
    """

    paper: str
    kind: Literal["figure", "table"]
    name: str
    title: str
    model: str
    full: Form
    small: Form
    revision: str | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def shown(self) -> str:
        """The item in words: ``Figure 3a``."""
        return f"{self.kind.capitalize()} {self.name}"


@dataclass(frozen=True)
class Paper:
    """A paper with what can be made again of it."""

    name: str
    title: str
    source: str
    items: tuple[Item, ...]
