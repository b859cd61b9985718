"""What a sweep consists of: the graph of its stages, and the cells that become rows of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from ..evals.hosting.choice import Choice as EngineChoice
from ..foundation.environment import number_formats
from ..methods.ranks.budget import Allocation
from ..models.matrices import model_size
from ..models.presets import ModelSource
from ..models.quantised.scheme import Correction, Scheme
from .config import MethodSpec, SweepConfig
from .estimates.at_hand import AtHand
from .estimates.machine import Machine, measure_machine
from .points import Point
from .process_setup import ProcessSetup
from .specs import Stage
from .store.folders import StageStore
from .tracking.names import Tracking
from .training.data import TrainSetSurvey
from .training.memory import TrainingPeak
from .training.placement import Choice
from .training.recipes import Recipe

BASELINE = MethodSpec(name="none", label="uncompressed")


@dataclass(frozen=True)
class Tuned:
    """A learning rate that held-out training examples chose.

    Attributes:
        grid: all that were tried, ascending.
        losses: mean loss of each in nats a token; infinite where it was not finite.
        chosen: with the least of them.
        tokens: that the trainings of the whole grid read, that of the chosen one among them.
        held_out: share of the training examples that the losses are of.
    """

    grid: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float
    tokens: int
    held_out: float


@dataclass(frozen=True)
class Cell:
    """One row of results before its benchmarks: a model at one point of the sweep, and the stages behind it.

    Attributes:
        method: the method, or `BASELINE` for the uncompressed model.
        ratio: target; 1 for the uncompressed model.
        state: ``pretrained``, ``finetuned``, ``compressed`` or ``recovered``.
        stages: keys of the stages on the way, by kind; evaluate keys are in ``evaluations``.
        evaluations: evaluate keys by name, see `evaluation_stages.evaluation_name`.
        budget: optimizer steps after the first finetuning, where the sweep names them; None where the recipe's epochs
            decide, or the model depends on none.
        scheme: how its weights were rounded, or None.
        control: whether it is a dense model that was only rounded; ``method`` is then the control's name and options.
        recovery: what recovered it, as tables show it; empty for ``full`` and for none.
        correction: of a control: what is added to its rounded matrices.
        tuned: how its learning rate after compression was chosen, None where it was not.
    """

    method: MethodSpec
    ratio: float
    seed: int
    state: str
    stages: Mapping[str, str]
    evaluations: Mapping[str, str]
    budget: int | None = None
    scheme: Scheme | None = None
    control: bool = False
    recovery: str = ""
    correction: Correction | None = None
    tuned: Tuned | None = None

    @property
    def label(self) -> str:
        """The row's name in tables."""
        if self.method is BASELINE:
            return self.state
        shown = self.method.shown
        more = [f"recovery={self.recovery}"] if self.recovery else []
        if self.scheme is not None and not self.control:
            more.append(f"bits={self.scheme.bits}")
        for option in more:
            shown += f"{',' if ':' in shown else ':'}{option}"
        return shown


def sweep_name(given: str | None, source: ModelSource, task: str) -> str:
    """Return the name of a sweep and of its folder: the given one, or else that of model and task."""
    return given or f"{source.short_name}-{task}".lower()


@dataclass
class Plan:
    """All stages of a sweep, each after those it needs, and its cells.

    Attributes:
        config: the sweep, its task by name.
        asked: the same as it was given; the task may be a file.
        stages: by key, in an order in which they can run.
        needs: keys of the stages that must stand before a stage can run.
        setup: the processes that train together, or None for one.
        dtype_note: why evaluations do not compute in the recipe's dtype, or empty.
        bos_note: what a reader of perplexities should know, or empty.
        calibration_note: why statistics are gathered in bfloat16, or empty.
        grid: ratio and method of each recover stage of a tuned sweep, by key; cells have those that were chosen alone.
        provisional: keys of the stages that stand for those of a learning rate that is not chosen yet.
        alternatives: by the key of such a stage, what it may read in place of what it needs once the rate is chosen.
        control_notes: at which shares of bytes a control has no row.
        task_file: the user's task file, see `specs.Execution`.
        assumed: the machine that the user named for a dry run, or None for this one.
        at_hand: which inputs could be read.
        training_sets: what was read for training and statistics, by task.
        dry: whether nothing is going to run; then a training that fits nowhere is noted instead of refused.
        trainings: where each training is placed and what it takes, by the stage's title.
        refusals: why trainings fit nowhere, by the stage's title.
        points: ratios and bits of each method, by `MethodSpec.shown`.
    """

    config: SweepConfig
    asked: SweepConfig
    source: ModelSource
    recipe: Recipe
    recipe_name: str
    device: str
    engine: EngineChoice
    dtype: str
    store: StageStore
    skeleton: nn.Module
    stages: dict[str, Stage] = field(default_factory=dict)
    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    allocations: dict[tuple[str, float], Allocation] = field(default_factory=dict)
    setup: ProcessSetup | None = None
    dtype_note: str = ""
    bos_note: str = ""
    calibration_note: str = ""
    control_notes: list[str] = field(default_factory=list)
    grid: dict[str, tuple[float, MethodSpec]] = field(default_factory=dict)
    provisional: set[str] = field(default_factory=set)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    task_file: str | None = None
    assumed: Machine | None = None
    at_hand: AtHand = field(default_factory=AtHand)
    training_sets: dict[str, TrainSetSurvey] = field(default_factory=dict)
    dry: bool = False
    trainings: dict[str, tuple[Choice, TrainingPeak]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    points: dict[str, tuple[Point, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the sweep and of its folder."""
        return sweep_name(self.config.name, self.source, self.config.task)

    @property
    def tracking(self) -> Tracking | None:
        """Where the sweep is reported to, None for nowhere."""
        execution = self.config.execution
        if not execution.report_to:
            return None
        return Tracking(names=execution.report_to, sweep=self.name, folder=execution.folder / self.name)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the uncompressed model."""
        return model_size(self.skeleton).parameters

    @cached_property
    def machine(self) -> Machine:
        """The machine that the stages run on: the assumed one, or what is free of this one."""
        return self.assumed or measure_machine(self.device)

    def saves(self, trains: bool) -> str:
        """Return the dtype that a stage saves weights in, trained ones or others; see `Recipe.saves`."""
        asked = self.config.training.save_dtype or (None if self.config.bytes is None else "bfloat16")
        return self.recipe.saves(asked, trains)

    def ratios(self, shown: str) -> list[float]:
        """Return the ratios of a method, ascending, by `MethodSpec.shown`."""
        return sorted({point.ratio for point in self.points[shown]})

    def bits(self, shown: str, ratio: float) -> list[int]:
        """Return the bits in which a method's weights are measured at a ratio, whole ones first."""
        return sorted((point.bits for point in self.points[shown] if point.ratio == ratio), reverse=True)

    def add(self, stage: Stage, *needs: str | None) -> str:
        """Add a stage (once) and return its key, which the environment's number formats are part of."""
        if formats := number_formats():
            stage = stage.model_copy(update={"spec": stage.spec.model_copy(update={"environment": formats})})
        # Cells that share a stage add it again; the title of the first stays.
        self.stages.setdefault(stage.key, stage)
        self.needs.setdefault(stage.key, tuple(key for key in needs if key))
        return stage.key

    def reads(self, key: str) -> tuple[str, ...]:
        """Return the keys of the stages whose weights a stage reads, or may read after a choice."""
        return self.needs[key] + self.alternatives.get(key, ())

    def too_few_ranks(self) -> set[str]:
        """Return the keys of finished fits that keep fewer parts of some factors than this plan may read."""
        return {key for key, stage in self.stages.items() if stage.kind == "fit" and not self.store.enough(stage)}

    def pending(self) -> list[str]:
        """Return the keys of the stages that have yet to run, in order.

        What made weights that were removed (`removal`), and a fit that keeps too few ranks, has to run again where one
        of them reads those; weights also where the user asks for ``all``.
        """
        missing = set(self.store.missing(self.stages))
        weightless = self.store.without_weights(key for key in self.stages if key not in missing)
        if self.config.execution.keep == "all":
            missing |= weightless
        weightless |= self.too_few_ranks()
        for key in reversed(self.stages):  # each comes after those it needs
            if key in missing:
                missing |= weightless.intersection(self.needs[key])
        return [key for key in self.stages if key in missing]
