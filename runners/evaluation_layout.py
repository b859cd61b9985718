"""Laying out the evaluations of a sweep: which benchmarks at which contexts, in which windows, under which settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..evals.base import Benchmark, EvalSettings, benchmarks
from ..evals.base import Stage as EvalStage
from ..evals.kinds.generative import check_sampling
from .checks import bos_windows, check_model
from .estimates.at_hand import counts_by_size
from .evaluation_stages import evaluate_stage, evaluation_name
from .graph import Plan
from .specs import Execution, ModelLocation
from .stage_data import StageData
from .training.data import DATA_SEED


@dataclass(frozen=True)
class PlannedModel:
    """A model that a stage reads: its identity and where it lies.

    Attributes:
        identity: what a stage's key has of it: the hash of a folder, or key and folder of the stage that makes it.
        location: folder or repository.
        revision: of a repository.
        stage: key of the stage that makes it; None for the model that the user named.
    """

    identity: str
    location: str
    revision: str = ""
    stage: str | None = None


def execution_on(plan: Plan, data: StageData, model: PlannedModel) -> Execution:
    """Return what all kinds of `Execution` share."""
    return Execution(
        model=ModelLocation(location=model.location, revision=model.revision),
        device=plan.device,
        data=data.folder,
        train_set=data.train_set,
        task=plan.config.task,
        task_file=plan.task_file,
    )


class EvaluationLayout:
    """Builds the evaluate stages of one plan.

    Args:
        plan: gets the stages, and its `bos_note`.
        names: the benchmarks.
        data: of the plan's stages.
        pretrained: whether the model is measured before it is finetuned too.

    Raises:
        UserError: a benchmark cannot be run with the sweep's settings, or not on this model.
    """

    def __init__(self, plan: Plan, names: tuple[str, ...], data: StageData, pretrained: bool) -> None:
        self.plan, self.data = plan, data
        self.benchmarks = [benchmarks.get(name)() for name in names]
        include = plan.config.execution.include_path
        self.include_path = include.expanduser().resolve() if include else None
        self.bos = bos_windows(
            plan.config.evaluation.bos, plan.source if plan.at_hand.tokenizer else None, self.benchmarks
        )
        plan.bos_note = self.bos.note
        self._check("pretrained" if pretrained else "finetuned")

    def _check(self, first: str) -> None:
        readable = [benchmark for benchmark in self.benchmarks if not counts_by_size(benchmark.name, self.plan.at_hand)]
        for benchmark in self.benchmarks:
            for context in self._contexts(benchmark):
                settings = self._settings(self._stage("finetuned"), context)
                if benchmark.generates:
                    check_sampling(settings)
                if benchmark in readable:
                    benchmark.check(settings)
        stages = sorted({self._stage("finetuned"), self._stage(first)})
        if self.plan.at_hand.tokenizer:
            asked = [(benchmark, self._settings(stage)) for stage in stages for benchmark in readable]
            check_model(self.plan.source, self.plan.skeleton.config, asked)

    def add(self, model: PlannedModel, state: str, shown: str, compressed: bool) -> dict[str, str]:
        """Add the evaluations of one model.

        Args:
            model: that is evaluated.
            state: see `graph.Cell`.
            shown: the model in titles.
            compressed: whether a method or a control changed it.

        Returns:
            Keys of the stages by name, see `evaluation_stages.evaluation_name`.
        """
        keys = {}
        for benchmark in self.benchmarks:
            for context in self._contexts(benchmark):
                settings = self._settings(self._stage(state), context)
                for windows, chosen in self.bos.settings(benchmark, settings, compressed=compressed):
                    name = evaluation_name(benchmark.name, context, windows)
                    keys[name] = self._evaluation(benchmark, name, shown, model, chosen)
        return keys

    def _stage(self, state: str) -> EvalStage:
        """Return whether a model counts as finetuned: its prompts follow from that."""
        return "pretrained" if state == "pretrained" or self.plan.config.training.training_free else "finetuned"

    def _contexts(self, benchmark: Benchmark) -> tuple[int | None, ...]:
        return self.plan.config.evaluation.context or (None,) if benchmark.has_context else (None,)

    def _settings(self, stage: EvalStage, context: int | None = None) -> EvalSettings:
        asked, execution = self.plan.config.evaluation, self.plan.config.execution
        return EvalSettings(
            data_dir=self.data.folder,
            limit=asked.limit,
            stage=stage,
            batch_size=execution.eval_batch_size,
            max_new_tokens=asked.max_new_tokens,
            samples=asked.samples,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=DATA_SEED if asked.problem_seed is None else asked.problem_seed,
            allow_weak_isolation=execution.allow_weak_isolation,
            context=context,
            chat=self.data.chat,
            include_path=self.include_path,
        )

    def _evaluation(
        self, benchmark: Benchmark, name: str, shown: str, model: PlannedModel, settings: EvalSettings
    ) -> str:
        stage = evaluate_stage(
            benchmark,
            settings,
            self.plan.engine.engine_for(benchmark.is_generating(settings)),
            self.plan.dtype,
            model.identity,
            execution_on(self.plan, self.data, model),
            f"evaluate {name.replace('@', ' at ')} on {shown}",
            counts_by_size(benchmark.name, self.plan.at_hand),
            self.plan.dtype_note,
            self.data.chat_rules,
        )
        return self.plan.add(stage, model.stage)
