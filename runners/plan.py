"""From a configuration to a graph of stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..evals.base import Benchmark, EvalSettings, benchmarks
from ..evals.base import Stage as EvalStage
from ..evals.hosting.choice import Choice as EngineChoice
from ..evals.hosting.choice import choose_engine
from ..evals.kinds.generative import check_sampling
from ..evals.tasks.base import benchmark_names, get_task
from ..foundation.environment import number_formats
from ..foundation.errors import UserError, unknown
from ..methods.base import Compressor, create_method
from ..methods.ranks.budget import Allocation, Budget
from ..methods.ranks.policies.base import policies
from ..models.footprint import context_length
from ..models.matrices import model_size
from ..models.presets import ModelSource, resolve_model
from .checks import begins_with_bos, check_model
from .config import MethodSpec, SweepConfig
from .estimates.at_hand import AtHand, assumed_device, assumed_engine, counts_by_size, find_at_hand, read_skeleton
from .estimates.machine import Machine, measure_machine
from .process_setup import ProcessSetup, read_setup
from .store.folders import MODEL_FOLDER, Stage, StageStore, ratio_folder, verify_around
from .store.shared import SharedStore
from .training.data import DATA_SEED, TrainSetSurvey, example_length, survey_train_set
from .training.memory import TrainingPeak, training_peak
from .training.placement import Choice, NothingFits, choose_placement, optimizer_name, placed
from .training.recipes import RECIPES, SMALL_MODEL_PARAMETERS, Placement, Recipe, TrainSettings

BASELINE = MethodSpec(name="none", label="uncompressed")


@dataclass(frozen=True)
class Cell:
    """One row of results before its benchmarks: a model at one point of the sweep, and the stages behind it.

    Attributes:
        method: the method, or `BASELINE` for the uncompressed model.
        ratio: target; 1 for the uncompressed model.
        state: ``pretrained``, ``finetuned``, ``compressed`` or ``recovered``.
        stages: keys of the stages on the way, by kind; evaluate keys are in ``evaluations``.
        evaluations: evaluate key by benchmark name, with ``@CONTEXT`` behind it where a context was asked for.
    """

    method: MethodSpec
    ratio: float
    seed: int
    state: str
    stages: Mapping[str, str]
    evaluations: Mapping[str, str]


@dataclass(frozen=True)
class _Model:
    """A model that a stage reads: its identity and where it lies."""

    identity: str
    location: str
    revision: str = ""
    stage: str | None = None

    @property
    def runtime(self) -> dict[str, str]:
        return {"location": self.location, "revision": self.revision}


@dataclass
class Plan:
    """All stages of a sweep, each after those it needs, and its cells.

    Attributes:
        stages: by key, in an order in which they can run.
        needs: keys of the stages that must stand before a stage can run.
        setup: the processes that train together, or None for one.
        bos_note: what a reader of perplexities should know, or empty.
        assumed: the machine that the user named for a dry run, or None for this one.
        at_hand: which inputs could be read.
        training_sets: what was read for training and statistics, by task.
        dry: whether nothing is going to run; then a training that fits nowhere is noted instead of refused.
        trainings: where each training is placed and what it takes, by the stage's title.
        refusals: why trainings fit nowhere, by the stage's title.
    """

    config: SweepConfig
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
    bos_note: str = ""
    assumed: Machine | None = None
    at_hand: AtHand = field(default_factory=AtHand)
    training_sets: dict[str, TrainSetSurvey] = field(default_factory=dict)
    dry: bool = False
    trainings: dict[str, tuple[Choice, TrainingPeak]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the sweep and of its folder."""
        return self.config.name or f"{self.source.short_name}-{self.config.task}".lower()

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
        return self.recipe.saves(self.config.save_dtype, trains)

    def add(self, stage: Stage, *needs: str | None) -> str:
        """Add a stage (once) and return its key, which the environment's number formats are part of."""
        if formats := number_formats():
            stage = replace(stage, config=dict(stage.config) | {"environment": formats})
        self.stages.setdefault(stage.key, stage)
        self.needs.setdefault(stage.key, tuple(key for key in needs if key))
        return stage.key

    def pending(self) -> list[str]:
        """Return the keys of the stages that have yet to run, in order.

        What made weights that were removed (`removal`) has to run again where one of them reads those, or where the
        user asks for ``all``.
        """
        missing = set(self.store.missing(self.stages))
        weightless = self.store.without_weights(key for key in self.stages if key not in missing)
        if self.config.keep == "all":
            missing |= weightless
        for key in reversed(self.stages):  # each comes after those it needs
            if key in missing:
                missing |= weightless.intersection(self.needs[key])
        return [key for key in self.stages if key in missing]


def pick_device(wanted: str) -> str:
    """Return the torch device for ``auto`` or the one that was named.

    Raises:
        UserError: a device that is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    there += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if wanted not in there:
        raise UserError(
            f"the device '{wanted}' is not there (there is {', '.join(there)}); use --device cpu, or auto to take a "
            "GPU where one is"
        )
    return wanted


def pick_recipe(wanted: str, source: ModelSource, parameters: int) -> str:
    """Return the name of the recipe: the one named, the preset's, or by model size."""
    if wanted == "auto":
        return source.recipe or ("small" if parameters < SMALL_MODEL_PARAMETERS else "paper")
    if wanted not in RECIPES:
        raise unknown("recipe", wanted, [*RECIPES, "auto"])
    return wanted


def build_method(spec: MethodSpec, recipe: Recipe, seed: int) -> Compressor:
    """Build a method with the recipe's defaults for it, the user's options over them, and the sweep's seed."""
    options = {**recipe.method_options.get(spec.name, {}), **spec.options}
    method = create_method(spec.name, options)
    if "seed" in type(method).model_fields and "seed" not in spec.options:
        method = create_method(spec.name, options | {"seed": seed})
    return method


def make_plan(
    config: SweepConfig, assumed: Machine | None = None, dry: bool = False, compress_only: bool = False
) -> Plan:
    """Check everything that can be checked without work, and lay out the stages.

    Args:
        config: what to run.
        assumed: the machine to plan for in a dry run, instead of this one.
        dry: nothing is going to run: where hub and cache have neither model nor data, what is known of them counts.
        compress_only: only fit and compress stages, of the model as it is; then the task may be empty, and no training
            data are read where no method needs them.

    Raises:
        UserError: anything unusable, before a single file is written.
    """
    task = get_task(config.task) if config.task or not compress_only else None
    for spec in config.methods:
        if create_method(spec.name, spec.options).trains and config.training_free:
            raise UserError(f"method '{spec.name}' trains while it compresses; leave it out, or --training-free")
    names = () if compress_only or task is None else benchmark_names(config.benchmarks or task.benchmarks)
    if config.context and not any(benchmarks.get(name).has_context for name in names):
        raise UserError(f"--context is for perplexities and none of {', '.join(names)} is one; leave it out")
    verify_around(Path(config.model))
    source = resolve_model(config.model, config.revision)
    device = assumed_device(config.device) if assumed else pick_device(config.device)
    if config.data is not None and not config.data.is_dir():
        raise UserError(f"the data folder {config.data} does not exist; name the folder that holds gsm8k/, math/, …")
    at_hand = find_at_hand(config, source, names, assumed) if dry else AtHand()
    skeleton, at_hand = read_skeleton(source, at_hand, dry)
    most = getattr(skeleton.config, "max_position_embeddings", None)
    if config.context and most and max(config.context) > most:
        raise UserError(
            f"--context {max(config.context)} is more than {source.name} takes ({most}); ask for at most that many "
            "tokens"
        )
    parameters = model_size(skeleton).parameters
    recipe_name = pick_recipe(config.recipe, source, parameters)
    recipe = RECIPES[recipe_name]
    engine = assumed_engine(config.engine) if assumed else None
    engine = engine or choose_engine(config.engine, skeleton.config, parameters, device)
    root = config.out.expanduser().resolve() / "stages"
    store = SharedStore(root, config.storage) if config.storage else StageStore(root)
    plan = Plan(config, source, recipe, recipe_name, device, engine, config.dtype or recipe.dtype, store, skeleton)
    plan.assumed, plan.at_hand, plan.dry = assumed, at_hand, dry
    if config.accelerate is not None:
        plan.setup = read_setup(config.accelerate, device, assumed.count if assumed else None)
    _check_ratios(plan)
    pretrained = task is not None and task.pretrained_row if config.pretrained is None else config.pretrained
    _Layout(plan, names, pretrained, compress_only).lay_out()
    return plan


def _check_ratios(plan: Plan) -> None:
    for spec in plan.config.methods:
        method = build_method(spec, plan.recipe, plan.config.seeds[0])
        for ratio in plan.config.ratios:
            shape = method.shape(plan.skeleton, ratio)
            allocation = Budget(ratio, method.guard, plan.config.rank_multiple).allocate(
                shape, policies.get("uniform")()
            )
            plan.allocations[spec.shown, ratio] = allocation


def merge_settings(base: TrainSettings, *changes: Mapping[str, Any]) -> TrainSettings:
    """Return the settings with changes, later ones last; epochs given without steps unset the recipe's steps."""
    given = {key: value for change in changes for key, value in change.items() if value is not None}
    if "batch_size" in given and "micro_batch_size" not in given:
        given["micro_batch_size"] = min(given["batch_size"], base.micro_batch_size)
    if "epochs" in given and "steps" not in given:
        given["steps"] = None
    return TrainSettings(**(base.model_dump() | given))


def evaluate_stage(
    benchmark: Benchmark,
    settings: EvalSettings,
    engine: str,
    dtype: str,
    model: str,
    runtime: Mapping[str, Any],
    title: str,
    by_size: bool = False,
) -> Stage:
    """Return the stage that evaluates one model on one benchmark.

    Args:
        benchmark, settings: what is measured.
        engine, dtype: by what.
        model: identity of the model.
        runtime: where model and data lie, and the device.
        title: for people.
        by_size: the data are not at hand in a dry run.
    """
    config = {
        "benchmark": benchmark.name,
        "variant": benchmark.variant(settings),
        "identity": {"limit": settings.limit} if by_size else dict(benchmark.identity(settings)),
        "engine": engine,
        "dtype": dtype,
    }
    how = {**runtime, "settings": asdict(settings) | {"data_dir": None}}
    return Stage("evaluate", config, {"model": model}, how, title)


class _Layout:
    """Builds the stages of one plan."""

    def __init__(self, plan: Plan, names: tuple[str, ...], pretrained: bool, compress_only: bool) -> None:
        self.plan, self.config, self.names, self.pretrained = plan, plan.config, names, pretrained
        self.compress_only = compress_only
        kind = get_task(plan.config.task).kind if plan.config.task else ""
        finetune, recover = plan.recipe.for_kind(kind, plan.device)
        self.finetune = merge_settings(finetune, plan.config.finetune.model_dump())
        self.recover = merge_settings(recover, plan.config.recover.model_dump())
        if plan.config.training_free:
            self.finetune, self.recover = (run.model_copy(update={"steps": 0}) for run in (self.finetune, self.recover))
        for run in (self.finetune, self.recover):
            if plan.setup and run.steps != 0:
                run.split(plan.setup.processes)
        self.data_dir = plan.config.data.expanduser().resolve() if plan.config.data else None
        self.train_set = plan.recipe.train_set(plan.config.task, plan.config.train_set)
        self.peaks: dict[tuple[Any, ...], TrainingPeak] = {}
        self.calibration: dict[str, dict[str, Any]] = {}
        if not compress_only:
            self._train_set(plan.config.task)
        self.source = _Model(plan.source.sha256, plan.source.location, plan.source.revision)
        made = [benchmarks.get(name)() for name in names]
        if plan.at_hand.tokenizer:
            self.bos, plan.bos_note = begins_with_bos(self.config.bos, plan.source, made)
        else:
            self.bos = self.config.bos == "always"
        read = [benchmark for benchmark in made if not counts_by_size(benchmark.name, plan.at_hand)]
        for benchmark in made:
            for context in self._contexts(benchmark.name):
                settings = self._settings(self._stage("finetuned"), context)
                if benchmark.generates:
                    check_sampling(settings)
                if benchmark in read:
                    benchmark.check(settings)
        stages = sorted({self._stage("finetuned"), self._stage("pretrained" if pretrained else "finetuned")})
        if plan.at_hand.tokenizer:
            check_model(plan.source, plan.skeleton.config, [(b, self._settings(s)) for s in stages for b in read])

    def _train_set(self, task: str) -> dict[str, Any]:
        if task not in self.calibration:
            source = self.train_set if task == self.config.task else None
            survey = survey_train_set(task, source, self.data_dir, self.plan.at_hand.data)
            self.plan.training_sets[task] = survey
            self.calibration[task] = survey.identity
        return self.calibration[task]

    def lay_out(self) -> None:
        """Add every stage and cell of the sweep."""
        for seed in self.config.seeds:
            if self.compress_only:
                for spec in self.config.methods:
                    self._method(spec, seed, self.source, {})
                continue
            shown = self.pretrained or self.config.training_free
            if shown:
                self._cell(BASELINE, 1.0, seed, "pretrained", {}, self.source)
            tuned, keys = self._finetuned(seed)
            if keys or not shown:
                self._cell(BASELINE, 1.0, seed, "finetuned", keys, tuned)
            for spec in self.config.methods:
                self._method(spec, seed, tuned, keys)

    def _runtime(self, model: _Model, **more: Any) -> dict[str, Any]:
        return {
            "model": model.runtime,
            "device": self.plan.device,
            "data": str(self.data_dir) if self.data_dir else None,
            "train_set": self.train_set,
            "task": self.config.task,
            **more,
        }

    def _training_runtime(self, model: _Model, choice: Choice) -> dict[str, Any]:
        setup = self.plan.setup or (
            ProcessSetup(None, choice.processes, "fsdp2") if choice.placement == "fsdp2" else None
        )
        more: dict[str, Any] = {"accelerate": setup.runtime} if setup else {}
        if choice.why:
            more["placement"] = {"placement": choice.placement, "why": choice.why}
        return self._runtime(model, checkpoint_minutes=self.config.checkpoint_minutes, **more)

    def _place(
        self, settings: TrainSettings, title: str, method: Compressor | None = None, ratio: float = 1.0
    ) -> Choice:
        """Choose where a training keeps weights, gradients and moments.

        Args:
            settings: of the run.
            title: for messages.
            method: one that trains while it compresses.
            ratio: of the model that is trained; what a compressed one takes is its share of the dense one's.
        """
        setup, device = self.plan.setup, self.plan.device.partition(":")[0]
        longest = example_length(self.config.task, settings.max_length, context_length(self.plan.skeleton.config))

        def foresee(placement: Placement, processes: int) -> TrainingPeak:
            options = None if method is None else method.model_dump_json()
            name = settings, longest, placement, processes, options
            if name not in self.peaks:
                skeleton = self.plan.skeleton
                self.peaks[name] = training_peak(skeleton, settings, longest, device, placement, processes, method)
            peak = self.peaks[name]
            return replace(
                peak, device=peak.device - round(peak.least * (1 - 1 / ratio)), least=round(peak.least / ratio)
            )

        if setup:
            sharded = setup.strategy == "fsdp2" and (method is None or method.trains_sharded)
            spread: Placement = "fsdp2" if sharded else "device"
            choice = Choice(spread, setup.processes, f"by {setup.processes} processes, as --accelerate asks")
            self.plan.trainings[title] = choice, foresee(spread, setup.processes)
            return Choice("device", 1, "")
        if self.config.executor == "ray" and self.config.placement == "auto":
            return Choice("device", 1, "")  # other machines' memory is not known here
        count = self.plan.machine.count
        shares = max(n for n in range(1, count + 1) if settings.batch_size % n == 0)
        if method is not None and not method.trains_sharded:
            shares = 1
        try:
            choice = choose_placement(
                foresee, self.plan.machine, self.config.placement, title, settings.optimizer, shares
            )
        except NothingFits as refusal:
            self.plan.refusals[title] = str(refusal)
            return Choice("device", 1, "")
        if self.plan.assumed is None:
            optimizer_name(placed(settings, choice))  # or 8 bits would fail after the first finetuning
        self.plan.trainings[title] = choice, foresee(choice.placement, choice.processes)
        return choice

    def _training(self, settings: TrainSettings, seed: int) -> dict[str, Any]:
        return {"train": settings.hashed(), **self._sampled(settings, seed)}

    def _sampled(self, settings: TrainSettings, seed: int, method: Compressor | None = None) -> dict[str, Any]:
        name = (method.calibration_task if method else "") or self.config.task
        length = (method.calibration_length if method else None) or settings.max_length
        return {"data": self._train_set(name) | {"max_length": length}, "seed": seed}

    def _finetuned(self, seed: int) -> tuple[_Model, dict[str, str]]:
        if self.finetune.steps == 0:
            return self.source, {}
        title = f"finetune {self.plan.source.name} on {self.config.task}, seed {seed}"
        choice = self._place(self.finetune, title)
        stage = Stage(
            "finetune",
            self._training(placed(self.finetune, choice), seed) | {"save_dtype": self.plan.saves(trains=True)},
            {"model": self.source.identity},
            self._training_runtime(self.source, choice),
            title,
        )
        key = self.plan.add(stage)
        return self._made(key, MODEL_FOLDER), {"finetune": key}

    def _made(self, key: str, folder: str) -> _Model:
        return _Model(f"{key}/{folder}", str(self.plan.store.path(key) / folder), stage=key)

    def _method(self, spec: MethodSpec, seed: int, tuned: _Model, keys: dict[str, str]) -> None:
        method = build_method(spec, self.plan.recipe, seed)
        options = method.model_dump(mode="json")
        config: dict[str, Any] = {"fit": method.fit_key()}
        if method.fit_needs_data:
            config |= self._sampled(self.finetune, seed, method)
        if self.compress_only and len(self.config.ratios) == 1:
            config["budget"] = {"ratio": self.config.ratios[0], "rank_multiple": self.config.rank_multiple}
        fit_title = f"fit {config['fit'].get('factors', spec.name)}, seed {seed}"
        # Options of a method that its fit does not depend on must not be in the fit's identity: they travel beside it.
        maker = {"method": spec.name, "options": options}
        runtime = self._runtime(tuned, memory=self.config.memory, **maker)
        fit = Stage("fit", config, {"model": tuned.identity}, runtime, fit_title)
        fit_key = self.plan.add(fit, tuned.stage)
        together = bool(options.get("trajectory"))
        ratios = sorted(self.config.ratios)
        for group in [ratios] if together else [[ratio] for ratio in ratios]:
            self._compressed(spec, method, seed, tuned, keys | {"fit": fit_key}, group)

    def _compressed(
        self, spec: MethodSpec, method: Compressor, seed: int, tuned: _Model, keys: dict[str, str], ratios: list[float]
    ) -> None:
        config: dict[str, Any] = {
            "method": spec.name,
            "options": method.model_dump(mode="json"),
            "ratios": ratios,
            "save_dtype": self.plan.saves(method.trains),
            "seed": seed,
        }
        shown = " and ".join(f"{ratio:g}x" for ratio in ratios)
        title = f"compress {spec.shown} {shown}, seed {seed}"
        runtime = self._runtime(tuned)
        if self.config.rank_multiple > 1:
            config["rank_multiple"] = self.config.rank_multiple
        if method.trains:
            choice = self._place(self.recover, title, method)
            runtime = self._training_runtime(tuned, choice)
            config |= self._training(placed(self.recover, choice), seed)
            config["extra_pruning_steps"] = self.config.extra_pruning_steps
        elif method.compress_needs_data:
            config |= self._sampled(self.finetune, seed, method)
        stage = Stage(
            "compress",
            config,
            {"model": tuned.identity, "fit": keys["fit"]},
            runtime | {"memory": self.config.memory, "fit": str(self.plan.store.path(keys["fit"]))},
            title,
        )
        key = self.plan.add(stage, tuned.stage, keys["fit"])
        if self.compress_only:
            return
        for ratio in ratios:
            small = self._made(key, f"{ratio_folder(ratio)}/{MODEL_FOLDER}")
            path = keys | {"compress": key}
            last = self.recover.steps == 0
            if last or self.config.before_recovery:
                self._cell(spec, ratio, seed, "compressed", path, small)
            if not last:
                self._recovered(spec, method, ratio, seed, path, small)

    def _recovered(
        self, spec: MethodSpec, method: Compressor, ratio: float, seed: int, keys: dict[str, str], small: _Model
    ) -> None:
        extra = self.config.extra_pruning_steps if method.trains else 0
        title = f"recover {spec.shown} {ratio:g}x, seed {seed}"
        choice = self._place(self.recover, title, ratio=ratio)
        stage = Stage(
            "recover",
            self._training(placed(self.recover, choice), seed)
            | {"save_dtype": self.plan.saves(trains=True), "extra_pruning_steps": extra},
            {"model": small.identity},
            self._training_runtime(small, choice),
            title,
        )
        key = self.plan.add(stage, small.stage)
        self._cell(spec, ratio, seed, "recovered", keys | {"recover": key}, self._made(key, MODEL_FOLDER))

    def _stage(self, state: str) -> EvalStage:
        """Return whether a model counts as finetuned: its prompts follow from that."""
        return "pretrained" if state == "pretrained" or self.config.training_free else "finetuned"

    def _contexts(self, name: str) -> tuple[int | None, ...]:
        return self.config.context or (None,) if benchmarks.get(name).has_context else (None,)

    def _settings(self, state: EvalStage, context: int | None = None) -> EvalSettings:
        return EvalSettings(
            data_dir=self.data_dir,
            limit=self.config.limit,
            stage=state,
            batch_size=self.config.eval_batch_size,
            max_new_tokens=self.config.max_new_tokens,
            samples=self.config.samples,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            seed=DATA_SEED,
            allow_weak_isolation=self.config.allow_weak_isolation,
            context=context,
            bos=self.bos,
        )

    def _cell(self, spec: MethodSpec, ratio: float, seed: int, state: str, keys: dict[str, str], model: _Model) -> None:
        evaluations = {}
        for name in self.names:
            for context in self._contexts(name):
                settings = self._settings(self._stage(state), context)
                place = f"{name}@{context}" if context else name
                evaluations[place] = self._evaluation(name, spec, ratio, seed, state, model, settings)
        self.plan.cells.append(Cell(spec, ratio, seed, state, keys, evaluations))

    def _evaluation(
        self, name: str, spec: MethodSpec, ratio: float, seed: int, state: str, model: _Model, settings: EvalSettings
    ) -> str:
        benchmark = benchmarks.get(name)()
        by_size = counts_by_size(name, self.plan.at_hand)
        shown = f"{name} at {settings.context}" if settings.context else name
        stage = evaluate_stage(
            benchmark,
            settings,
            self.plan.engine.engine,
            self.plan.dtype,
            model.identity,
            self._runtime(model),
            f"evaluate {shown} on {spec.shown} {ratio:g}x ({state}), seed {seed}",
            by_size,
        )
        return self.plan.add(stage, model.stage)
