"""Laying out the stages and cells of a sweep, in the order of the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from ..evals.tasks.base import get_task
from ..foundation.errors import UserError
from ..methods.base import Compressor
from ..methods.calibration.precision import PassDtype
from ..methods.correction import corrector
from ..methods.recoveries.base import Recovery, create_recovery
from ..models.loading import own_dtype
from ..models.quantised.scheme import FACTORS, FACTORS_AND_EMBEDDINGS, Correction, Scheme
from .choices import DtypeChoice, build_method, merge_settings, pick_calibration_dtype
from .config import MethodSpec, RecoverOverrides
from .controls import ControlRow, control_rows
from .evaluation_layout import EvaluationLayout, PlannedModel, execution_on
from .graph import BASELINE, Cell, Plan, Tuned
from .kept_ranks import KeptRanks
from .points import WHOLE_BITS
from .process_setup import ProcessSetup
from .specs import (
    ChosenPlacement,
    CompressExecution,
    CompressInputs,
    CompressSpec,
    CompressStage,
    Execution,
    FinetuneSpec,
    FinetuneStage,
    FitBudget,
    FitExecution,
    FitSpec,
    FitStage,
    ModelInput,
    QuantiseSpec,
    QuantiseStage,
    RecoverSpec,
    RecoverStage,
    TrainingExecution,
)
from .stage_data import StageData
from .store.folders import MODEL_FOLDER, ratio_folder
from .training.placement import Choice, placed
from .training.plan_placement import TrainingPlacements
from .training.settings import TrainSettings
from .tuning import Candidate, choose


def _recoveries(recipe: TrainSettings, asked: RecoverOverrides) -> list[TrainSettings]:
    """Return the training after compression once for each budget that the sweep asks for, ascending."""
    changes = asked.model_dump(exclude={"steps"})
    return [merge_settings(recipe, changes, {"steps": steps}) for steps in sorted(asked.steps or ())] or [
        merge_settings(recipe, changes)
    ]


class Layout:
    """Builds the stages of one plan."""

    def __init__(self, plan: Plan, names: tuple[str, ...], pretrained: bool, compress_only: bool = False) -> None:
        self.plan, self.config, self.pretrained = plan, plan.config, pretrained
        self.compress_only = compress_only
        kind = get_task(plan.config.task).kind if plan.config.task else ""
        finetune, recover = plan.recipe.for_kind(kind, plan.device)
        training = plan.config.training
        self.finetune = merge_settings(finetune, training.finetune.model_dump())
        self.recoveries = _recoveries(recover, training.recover)
        if training.training_free:
            self.finetune = self.finetune.model_copy(update={"steps": 0})
            self.recoveries = [self.recoveries[0].model_copy(update={"steps": 0})]
        self.recovered_by = {spec.shown: create_recovery(spec.name, spec.options) for spec in training.recovery}
        for recovery in self.recovered_by.values():
            recovery.check()
            if plan.setup and plan.setup.strategy == "fsdp2" and not recovery.trains_sharded:
                raise UserError(
                    f"the recovery {recovery.name} needs the whole model in every process, and --accelerate is for "
                    "FSDP2; name one for DDP, or --recovery full"
                )
        # Called for its error alone: a batch that the processes cannot share is refused before anything runs.
        for run in (self.finetune, *self.recoveries):
            if plan.setup and run.steps != 0:
                run.split(plan.setup.processes)
        self.data = StageData(plan)
        for asked in (training.finetune, training.recover):
            if (asked.max_length or 0) > self.data.context:
                raise UserError(
                    f"--max-length {asked.max_length} is more than {plan.source.name} takes ({self.data.context}); ask "
                    "for at most that many tokens, or leave it out"
                )
        self.placements = TrainingPlacements(plan)
        # By ratio, budget and recovery, of the method and seed that are laid out at the moment (`_choose` clears it).
        self.candidates: dict[tuple[float, TrainSettings, str], list[Candidate]] = {}
        self.kept_ranks = KeptRanks(plan)
        self.controls, plan.control_notes = control_rows(self.config, plan.skeleton, plan.saves(trains=False))
        if not compress_only:
            self.data.check()
        self.source = PlannedModel(plan.source.sha256, plan.source.location, plan.source.revision)
        self.evaluations = EvaluationLayout(plan, names, self.data, pretrained)

    def lay_out(self) -> None:
        """Add every stage and cell of the sweep."""
        for seed in self.config.seeds:
            if self.compress_only:
                for spec in self.config.methods:
                    self._method(spec, seed, self.source, {})
                continue
            shown = self.pretrained or self.config.training.training_free
            if shown:
                self._cell(BASELINE, 1.0, seed, "pretrained", {}, self.source)
            tuned, keys = self._finetuned(seed)
            # Without a finetuning both rows would be of one model, so that only one of them is shown.
            if keys or not shown:
                self._cell(BASELINE, 1.0, seed, "finetuned", keys, tuned)
            for spec in self.config.methods:
                self._method(spec, seed, tuned, keys)
            for row in self.controls:
                self._control(row, seed, tuned, keys)
        # Last: only now are all methods that read a fit known.
        self.kept_ranks.settle()

    def _execution(self, model: PlannedModel) -> Execution:
        return execution_on(self.plan, self.data, model)

    def _training_fields(self, choice: Choice) -> dict[str, Any]:
        """Return the fields that all kinds of `TrainingExecution` share."""
        setup = self.plan.setup or (
            ProcessSetup(None, choice.processes, "fsdp2") if choice.placement == "fsdp2" else None
        )
        placement = ChosenPlacement(placement=choice.placement, why=choice.why) if choice.why else None
        return {
            "checkpoint_minutes": self.config.execution.checkpoint_minutes,
            "accelerate": setup,
            "placement": placement,
            "tracking": self.plan.tracking,
        }

    def _at_each_rate(self, run: TrainSettings) -> list[TrainSettings]:
        """Return a training after compression once for each learning rate of the grid, or as it is."""
        return [run.model_copy(update={"learning_rate": rate}) for rate in self.config.training.tune or ()] or [run]

    def _finetuned(self, seed: int) -> tuple[PlannedModel, dict[str, str]]:
        if self.finetune.steps == 0:
            return self.source, {}
        title = f"finetune {self.plan.source.name} on {self.config.task}, seed {seed}"
        choice = self.placements.choose(self.finetune, title)
        spec = FinetuneSpec(
            inputs=ModelInput(model=self.source.identity),
            train=placed(self.finetune, choice),
            data=self.data.for_training(self.finetune),
            seed=seed,
            save_dtype=self.plan.saves(trains=True),
        )
        execution = TrainingExecution(**dict(self._execution(self.source)), **self._training_fields(choice))
        key = self.plan.add(FinetuneStage(spec=spec, execution=execution, title=title))
        return self._model_of(key, MODEL_FOLDER), {"finetune": key}

    def _model_of(self, key: str, folder: str) -> PlannedModel:
        return PlannedModel(f"{key}/{folder}", str(self.plan.store.path(key) / folder), stage=key)

    def _method(self, spec: MethodSpec, seed: int, tuned: PlannedModel, keys: dict[str, str]) -> None:
        method = build_method(spec, self.plan.recipe, seed)
        options = method.model_dump(mode="json")
        reads = method.requirements.data_in_fit
        ratios = self.plan.ratios(spec.shown)
        # The budget is part of the key, so only `bench compress` names one: no later sweep reads its fit.
        alone = self.compress_only and len(ratios) == 1
        passes = self._passes(method, tuned)
        # Without data and seed in its key, a fit that reads no data is one stage for all seeds that share the model.
        fit = FitSpec(
            inputs=ModelInput(model=tuned.identity),
            fit=method.fit_key(),
            data=self.data.for_statistics(spec, method, self.finetune) if reads else None,
            seed=seed if reads else None,
            budget=FitBudget(ratio=ratios[0], rank_multiple=self.config.rank_multiple) if alone else None,
            calibration_dtype=cast(PassDtype, passes.dtype),
        )
        execution = FitExecution(
            **dict(self._execution(tuned)),
            memory=self.config.execution.memory,
            method=spec.name,
            options=options,
            calibration_why=passes.why or None,
        )
        title = f"fit {fit.fit.get('factors', spec.name)}, seed {seed}"
        fit_key = self.plan.add(FitStage(spec=fit, execution=execution, title=title), tuned.stage)
        self.kept_ranks.want(fit_key, method, spec.shown)
        together = bool(options.get("trajectory"))
        runs = [run for budget in self.recoveries for run in self._at_each_rate(budget)]
        # What trains while it compresses takes its steps out of the budget: another budget is another compression.
        budgets = [[run] for run in runs] if method.requirements.trains else [runs]
        for group in [ratios] if together else [[ratio] for ratio in ratios]:
            for group_of_runs in budgets:
                self._compressed(spec, method, seed, tuned, keys | {"fit": fit_key}, group, group_of_runs)
        self._choose(spec, method, seed)

    def _passes(self, method: Compressor, tuned: PlannedModel) -> DtypeChoice:
        """Return the dtype of the passes that a method gathers statistics from; of no effect where it gathers none."""
        if not method.requirements.statistics:
            return DtypeChoice("float32")
        stored = self.plan.saves(trains=True) if tuned.stage else "own"
        stored = own_dtype(self.plan.skeleton.config) if stored == "own" else stored
        passes = pick_calibration_dtype(self.config.calibration_dtype, stored, self.plan.device)
        self.plan.calibration_note = self.plan.calibration_note or passes.why
        return passes

    def _compressed(
        self,
        spec: MethodSpec,
        method: Compressor,
        seed: int,
        tuned: PlannedModel,
        keys: dict[str, str],
        ratios: list[float],
        recoveries: list[TrainSettings],
    ) -> None:
        """Add a compression and the recoveries that start from it, which share it unless it trains."""
        needs = method.requirements
        shown = " and ".join(f"{ratio:g}x" for ratio in ratios)
        title = f"compress {spec.shown} {shown}{self._steps(recoveries[0]) if needs.trains else ''}, seed {seed}"
        compression = CompressSpec(
            inputs=CompressInputs(model=tuned.identity, fit=keys["fit"]),
            method=spec.name,
            options=method.model_dump(mode="json"),
            ratios=tuple(ratios),
            save_dtype=self.plan.saves(needs.trains),
            seed=seed,
            rank_multiple=self.config.rank_multiple,
            versions=method.compress_versions(),
        )
        training: dict[str, Any] = {}
        if needs.trains:
            choice = self.placements.choose(recoveries[0], title, method)
            training = self._training_fields(choice)
            trained = {
                "train": placed(recoveries[0], choice).unplaced(),
                "data": self.data.for_training(recoveries[0]),
                "extra_pruning_steps": self.config.training.extra_pruning_steps,
            }
            # `model_copy` runs no validators, so `unplaced` above does what `CompressSpec` does when it is built.
            compression = compression.model_copy(update=trained)
        elif needs.searches:
            compression = compression.model_copy(update={"data": self.data.for_statistics(spec, method, self.finetune)})
        execution = CompressExecution(
            **dict(self._execution(tuned)),
            **training,
            memory=self.config.execution.memory,
            fit=self.plan.store.path(keys["fit"]),
        )
        stage = CompressStage(spec=compression, execution=execution, title=title)
        key = self.plan.add(stage, tuned.stage, keys["fit"])
        if self.compress_only:
            return
        for ratio in ratios:
            small = self._model_of(key, f"{ratio_folder(ratio)}/{MODEL_FOLDER}")
            path = keys | {"compress": key}
            last = recoveries[0].steps == 0
            recovering = {shown: recovery for shown, recovery in self.recovered_by.items() if recovery.trains}
            later = bool(needs.trains and self.config.training.tune)  # see `_choose`
            if last or (self._shows_compressed and not later):
                # A budget goes into the row only where the compressed model depends on it.
                self._cells(spec, ratio, seed, "compressed", path, small, recoveries[0] if needs.trains else None)
            for run in recoveries if not last else []:
                for shown, recovery in recovering.items():
                    self._recovered(spec, method, ratio, seed, path, small, run, recovery, shown)

    @property
    def _shows_compressed(self) -> bool:
        """Whether models are measured before their recovery too."""
        recovering = [recovery for recovery in self.recovered_by.values() if recovery.trains]
        return self.config.evaluation.before_recovery or len(recovering) < len(self.recovered_by)

    def _choose(self, spec: MethodSpec, method: Compressor, seed: int) -> None:
        """Add the cells of a tuned method: of the learning rates with the least loss, or of those that stand for them.

        A compression that trains was trained at each rate too; what is measured before the recovery is then the one
        that the first recovery's choice starts from.
        """
        trains = method.requirements.trains
        first = next((shown for shown, recovery in self.recovered_by.items() if recovery.trains), "")
        for (ratio, _, recovery), candidates in self.candidates.items():
            choice = choose(self.plan, candidates, ratio, trains)
            # What the cells below add is provisional until the rate is chosen; the grid's own trainings are not.
            chosen, known = choice.candidate, set(self.plan.stages)
            if trains and recovery == first and self._shows_compressed:
                path = {kind: key for kind, key in chosen.keys.items() if kind != "recover"}
                self._cells(spec, ratio, seed, "compressed", path, chosen.small, chosen.run, tuned=choice.tuned)
            by = "" if recovery == "full" else recovery
            self._cells(spec, ratio, seed, "recovered", chosen.keys, chosen.recovered, chosen.run, by, choice.tuned)
            if choice.tuned is None:
                self._stand_in(chosen, candidates, set(self.plan.stages) - known)
        self.candidates.clear()

    def _stand_in(self, candidate: Candidate, candidates: Sequence[Candidate], keys: set[str]) -> None:
        """Note that stages after one of the candidates stand for those after whichever is chosen."""
        self.plan.provisional |= keys
        for model in ("small", "recovered"):
            present = getattr(candidate, model).stage
            others = {str(getattr(other, model).stage) for other in candidates} - {present}
            for key in keys:
                if present in self.plan.needs[key]:
                    self.plan.alternatives[key] = tuple(sorted(others))

    def _steps(self, run: TrainSettings | None) -> str:
        """Return budget and learning rate as titles name them, where the sweep has several."""
        if run is None:
            return ""
        steps = f", {run.steps:,} steps" if len(self.recoveries) > 1 else ""
        return f"{steps}, lr {run.learning_rate:g}" if self.config.training.tune else steps

    def _recovered(
        self,
        spec: MethodSpec,
        method: Compressor,
        ratio: float,
        seed: int,
        keys: dict[str, str],
        small: PlannedModel,
        run: TrainSettings,
        recovery: Recovery,
        shown: str,
    ) -> None:
        extra = self.config.training.extra_pruning_steps if method.requirements.trains else 0
        by = "" if shown == "full" else f" by {shown}"
        title = f"recover {spec.shown} {ratio:g}x{by}{self._steps(run)}, seed {seed}"
        choice = self.placements.choose(run, title, method, ratio, recovery)
        recover = RecoverSpec(
            inputs=ModelInput(model=small.identity),
            train=placed(run, choice),
            data=self.data.for_training(run),
            seed=seed,
            save_dtype=self.plan.saves(trains=True),
            extra_pruning_steps=extra,
            recovery=recovery.name,
            recovery_options=recovery.model_dump(mode="json"),
        )
        execution = TrainingExecution(**dict(self._execution(small)), **self._training_fields(choice))
        key = self.plan.add(RecoverStage(spec=recover, execution=execution, title=title), small.stage)
        recovered, path = self._model_of(key, MODEL_FOLDER), keys | {"recover": key}
        if self.config.training.tune:
            # With one rate for all, runs that differ in the rate alone become candidates of the same choice.
            budget, self.plan.grid[key] = run.model_copy(update={"learning_rate": 1.0}), (ratio, spec)
            self.candidates.setdefault((ratio, budget, shown), []).append(Candidate(run, path, small, recovered))
        else:
            self._cells(spec, ratio, seed, "recovered", path, recovered, run, by and shown)

    def _cells(
        self,
        spec: MethodSpec,
        ratio: float,
        seed: int,
        state: str,
        keys: dict[str, str],
        model: PlannedModel,
        run: TrainSettings | None,
        recovery: str = "",
        tuned: Tuned | None = None,
    ) -> None:
        """Add the cells of one compressed model, in each number of bits."""
        more: dict[str, Any] = {"recovery": recovery, "tuned": tuned}
        for bits in self.plan.bits(spec.shown, ratio):
            if bits == WHOLE_BITS:
                self._cell(spec, ratio, seed, state, keys, model, run, **more)
                continue
            by = f" by {recovery}" if recovery else ""
            shown = f"{spec.shown} {ratio:g}x ({state}{by}){self._steps(run)} in {bits} bits"
            method = build_method(spec, self.plan.recipe, seed)
            scheme = FACTORS_AND_EMBEDDINGS if getattr(method, "embeddings", False) else FACTORS
            rounded, key = self._quantised(scheme, shown, seed, model)
            self._cell(spec, ratio, seed, state, keys | {"quantise": key}, rounded, run, scheme, **more)

    def _control(self, row: ControlRow, seed: int, model: PlannedModel, keys: dict[str, str]) -> None:
        spec, (scheme, correction, _) = row
        rounded, key = self._quantised(scheme, spec.shown, seed, model, self._corrected(spec, correction, seed, model))
        keys = keys | {"quantise": key}
        self._cell(spec, 1.0, seed, "compressed", keys, rounded, None, scheme, control=True, correction=correction)

    def _corrected(
        self, spec: MethodSpec, correction: Correction | None, seed: int, model: PlannedModel
    ) -> dict[str, Any]:
        """Return the fields of a `QuantiseSpec` that a correction adds; none for one of rank 0."""
        if correction is None or not correction.rank:
            return {}
        method = corrector(correction)
        if not method.requirements.data_in_fit:
            return {"correction": correction}
        return {
            "correction": correction,
            "data": self.data.for_statistics(spec, method, self.finetune),
            "seed": seed,
            "calibration_dtype": cast(PassDtype, self._passes(method, model).dtype),
        }

    def _quantised(
        self,
        scheme: Scheme,
        shown: str,
        seed: int,
        model: PlannedModel,
        corrected: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[PlannedModel, str]:
        quantisation = QuantiseSpec(
            inputs=ModelInput(model=model.identity),
            scheme=scheme,
            save_dtype=self.plan.saves(trains=False),
            **corrected,
        )
        execution = self._execution(model)
        stage = QuantiseStage(spec=quantisation, execution=execution, title=f"quantise {shown}, seed {seed}")
        key = self.plan.add(stage, model.stage)
        return self._model_of(key, MODEL_FOLDER), key

    def _cell(
        self,
        spec: MethodSpec,
        ratio: float,
        seed: int,
        state: str,
        keys: dict[str, str],
        model: PlannedModel,
        run: TrainSettings | None = None,
        scheme: Scheme | None = None,
        control: bool = False,
        recovery: str = "",
        correction: Correction | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        bits = f" in {scheme.bits} bits" if scheme else ""
        by = f" by {recovery}" if recovery else ""
        shown = f"{spec.shown} {ratio:g}x ({state}{by}){self._steps(run)}{bits}, seed {seed}"
        evaluations = self.evaluations.add(model, state, shown, compressed=spec is not BASELINE)
        budget = run.steps if run else None
        more: dict[str, Any] = {"recovery": recovery, "correction": correction, "tuned": tuned}
        self.plan.cells.append(Cell(spec, ratio, seed, state, keys, evaluations, budget, scheme, control, **more))
