"""Small stages of each kind for tests that need one without a plan."""

from lowrank_bench.evals.base import EvalSettings
from lowrank_bench.models.quantised.scheme import FACTORS
from lowrank_bench.runners.data_spec import DataSpec
from lowrank_bench.runners.specs import (
    CompressExecution,
    CompressInputs,
    CompressSpec,
    CompressStage,
    EvaluateExecution,
    EvaluateSpec,
    EvaluateStage,
    Execution,
    FinetuneSpec,
    FinetuneStage,
    FitExecution,
    FitSpec,
    FitStage,
    ModelInput,
    ModelLocation,
    QuantiseSpec,
    QuantiseStage,
    RecoverSpec,
    RecoverStage,
    TrainingExecution,
)
from lowrank_bench.runners.stage_results import (
    CompressResult,
    EvaluateResult,
    FitResult,
    QuantiseResult,
    RecordedTraining,
    TrainingResult,
)
from lowrank_bench.runners.training.settings import TrainSettings

DATA = DataSpec(task="toy-math", source="generated:42", sha256="", prompt_version=2)
_TRAINED = TrainingResult(training=RecordedTraining(steps=1, tokens=10))
RESULTS = {
    "finetune": _TRAINED,
    "fit": FitResult(matrices=7),
    "compress": CompressResult(reports={}),
    "recover": _TRAINED,
    "quantise": QuantiseResult(packed_bytes=1),
    "evaluate": EvaluateResult(metrics=(), dataset_sha256="d", prompt_sha256="p", details={}, bytes=1),
}
"""What a stage of each kind may return."""


def _common(location, execution):
    return {"model": ModelLocation(location=location)} | execution


def finetune_stage(title="", model="m", location="m", train=None, **execution):
    spec = FinetuneSpec(
        inputs=ModelInput(model=model), train=train or TrainSettings(), data=DATA, seed=42, save_dtype="own"
    )
    return FinetuneStage(spec=spec, execution=TrainingExecution(**_common(location, execution)), title=title)


def fit_stage(title="", model="m", location="m", fit=None, data=None, **execution):
    spec = FitSpec(inputs=ModelInput(model=model), fit=fit or {"factors": "svd"}, data=data)
    common = _common(location, {"method": "svd", "options": {}} | execution)
    return FitStage(spec=spec, execution=FitExecution(**common), title=title)


def compress_stage(title="", model="m", fit="fit-0000000000000000", method="svd", options=None, **changes):
    spec = CompressSpec(
        inputs=CompressInputs(model=model, fit=fit),
        method=method,
        options=options or {},
        ratios=(2.0,),
        save_dtype="own",
        seed=42,
        **changes,
    )
    execution = CompressExecution(model=ModelLocation(location="?"), fit="?")
    return CompressStage(spec=spec, execution=execution, title=title)


def recover_stage(title="", model="m", location="m", **execution):
    spec = RecoverSpec(
        inputs=ModelInput(model=model),
        train=TrainSettings(),
        data=DATA,
        seed=42,
        save_dtype="own",
        extra_pruning_steps=0,
    )
    return RecoverStage(spec=spec, execution=TrainingExecution(**_common(location, execution)), title=title)


def quantise_stage(title="", model="m", location="m", scheme=FACTORS, **execution):
    spec = QuantiseSpec(inputs=ModelInput(model=model), scheme=scheme, save_dtype="own")
    return QuantiseStage(spec=spec, execution=Execution(**_common(location, execution)), title=title)


def evaluate_stage(title="", model="m", location="m", **execution):
    spec = EvaluateSpec(
        inputs=ModelInput(model=model),
        benchmark="toy-math",
        variant="toy-math-250-0shot",
        identity={"limit": None},
        engine="transformers",
        dtype="float32",
    )
    common = _common(location, {"settings": EvalSettings()} | execution)
    return EvaluateStage(spec=spec, execution=EvaluateExecution(**common), title=title)
