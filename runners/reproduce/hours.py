"""GPU hours of a reproduction by arithmetic, where no stage of it has been timed.

Training costs 6 floating-point operations a parameter and token, 8 with gradient checkpointing, which runs every
forward pass twice; generation 2. A model compressed to a ratio has 1/ratio of the parameters. Basis Selection trains
through bases that are full at first; they are frozen, and what is frozen costs 2 less, as it has no gradient. To each
stage come its start and reading, writing and hashing weights. What is left out: statistics on data, and checkpoints of
trainings of more than half an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...evals.tasks import get_task
from ...methods.base import create_method
from ...results.published.quoted import PARAMETERS
from ...results.published.verdicts import papers_model
from ..config import SweepConfig
from ..plan import Plan, merge_settings
from ..progress import duration
from ..recipes import RECIPES, SMALL_MODEL_PARAMETERS

GPU = "H100 (SXM, bfloat16)"
PEAK_FLOPS = 989e12
"""Dense bfloat16 operations a second of the GPU, from its data sheet."""
TRAINING_SHARE, GENERATION_SHARE, DECOMPOSITION_SHARE = 0.4, 0.05, 0.01
"""Assumed shares of the peak."""
TOKENS_PER_EXAMPLE, TOKENS_PER_COMPLETION = 200, 250
"""Assumed lengths: an instruction with its answer, a completion."""
FULL_BASES = 1.6
"""Entries of all bases over those of the matrices: 2 where they are square, 1.37 in the MLP of Llama-2-7B."""
SEARCH_TOKENS = 5000 * 64 * 128
"""Of a policy that asks the model: its most evaluations, the examples of each, their tokens (``surgical``)."""
STARTING_SECONDS = 60
"""Assumed of a stage: a process that imports torch, or an engine with its graphs."""
STAGE_BYTES, DISK_BYTES_PER_SECOND = 6, 1e9
"""Of a stage and parameter: weights in bfloat16 are read, written and hashed; and how fast, assumed."""
BYTES_PER_TRAINED_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, each in float32."""

TRAINING_EXAMPLES: Mapping[str, int] = {
    "metamathqa": 395_000,
    "gsm8k+math": 14_973,
    "gsm8k": 7_473,
    "codealpaca": 20_022,
    "mbpp": 374,
}
PROBLEMS: Mapping[str, int] = {
    **{"gsm8k": 1319, "math": 5000, "humaneval": 164, "mbpp": 500, "wikitext2": 2600},
    **{"boolq": 3270, "piqa": 1838, "hellaswag": 10042, "winogrande": 1267, "arc-easy": 2376, "arc-challenge": 1172},
}


@dataclass(frozen=True)
class Hours:
    """GPU hours by kind of stage.

    Attributes:
        hours, stages: how long and how many, by kind.
        measured: the kinds whose hours come from finished stages.
        parameters: of the uncompressed model.
        trains: whether anything is trained.
    """

    hours: Mapping[str, float]
    stages: Mapping[str, int]
    measured: frozenset[str]
    parameters: int
    trains: bool

    @property
    def total(self) -> float:
        """All hours."""
        return sum(self.hours.values())

    def sentences(self) -> list[str]:
        """Return the estimate with its assumptions, and what memory training needs."""
        parts = [
            f"{kind} {count} × {duration(3600 * self.hours[kind] / count)}"
            f"{' (measured)' if kind in self.measured else ''}"
            for kind, count in self.stages.items()
        ]
        said = [f"about {self.total:,.3g} GPU hours to go: {', '.join(parts) or 'nothing'}."]
        if set(self.stages) - self.measured:
            training = "training 6·N·tokens (8 with gradient checkpointing) at"
            said.append(
                f"What is not measured is arithmetic for one {GPU}: {training if self.trains else 'everything at'} "
                f"{100 * TRAINING_SHARE:g} % of {PEAK_FLOPS / 1e12:g} TFLOP/s, generation 2·N·tokens at "
                f"{100 * GENERATION_SHARE:g} %, {TOKENS_PER_EXAMPLE} tokens an example, {STARTING_SECONDS} s to "
                f"start a stage, {STAGE_BYTES} bytes of a parameter read and written there at "
                f"{DISK_BYTES_PER_SECOND / 1e9:g} GB/s."
            )
        if self.trains and self.stages:
            need = BYTES_PER_TRAINED_PARAMETER * self.parameters / 1e9
            said.append(
                f"Training needs about {need:,.0f} GB of GPU memory for weights, gradients and AdamW's moments alone, "
                "on the one GPU that is used here; `bench run --accelerate` trains over several."
            )
        return said


def known_parameters(model: str) -> int | None:
    """Return the parameters of one of the papers' models, or None."""
    return PARAMETERS.get(papers_model(model))


def gpu_hours(config: SweepConfig, parameters: int, plan: Plan | None = None) -> Hours | None:
    """Return the GPU hours of what is missing, or of everything where there is no plan yet.

    A kind of which the plan has finished stages takes their mean as measured; the rest is arithmetic. None for models
    below 50 M parameters, which need no GPU.
    """
    if parameters < SMALL_MODEL_PARAMETERS:
        return None
    work = list(_pending(plan) if plan else _everything(config))
    past = _measured(plan) if plan else {}
    hours: dict[str, float] = {}
    stages: dict[str, int] = {}
    for kind, method, ratio, benchmark in work:
        operations, share = _operations(config, parameters, kind, method, ratio, benchmark)
        around = STARTING_SECONDS + STAGE_BYTES * parameters / ratio / DISK_BYTES_PER_SECOND
        seconds = past.get(kind, operations / (PEAK_FLOPS * share) + around)
        hours[kind] = hours.get(kind, 0.0) + seconds / 3600
        stages[kind] = stages.get(kind, 0) + 1
    return Hours(hours, stages, frozenset(past) & frozenset(stages), parameters, not config.training_free)


def _measured(plan: Plan) -> dict[str, float]:
    seconds: dict[str, list[float]] = {}
    for key, stage in plan.stages.items():
        if plan.store.is_done(key):
            seconds.setdefault(stage.kind, []).append(float(plan.store.read(key)["seconds"]))
    return {kind: sum(values) / len(values) for kind, values in seconds.items()}


_Work = tuple[str, str, float, str]


def _everything(config: SweepConfig) -> Iterable[_Work]:
    names = config.benchmarks or get_task(config.task).benchmarks
    for _ in config.seeds:
        if not config.training_free:
            yield "finetune", "", 1.0, ""
        yield from (("evaluate", "", 1.0, name) for name in names)
        for spec in config.methods:
            yield "fit", spec.name, 1.0, ""
            for ratio in config.ratios:
                yield "compress", spec.name, ratio, ""
                if not config.training_free:
                    yield "recover", spec.name, ratio, ""
                yield from (("evaluate", spec.name, ratio, name) for name in names)


def _pending(plan: Plan) -> Iterable[_Work]:
    left = set(plan.pending())
    for cell in plan.cells:
        for kind, key in cell.stages.items():
            if key in left:
                left.discard(key)
                yield kind, cell.method.name, cell.ratio, ""
        for place, key in cell.evaluations.items():
            if key in left:
                left.discard(key)
                yield "evaluate", cell.method.name, cell.ratio, place.partition("@")[0]


def _operations(
    config: SweepConfig, parameters: int, kind: str, method: str, ratio: float, benchmark: str
) -> tuple[float, float]:
    """Return the floating-point operations of a stage and the share of the peak at which they run."""
    small = parameters / ratio
    if kind == "evaluate":
        problems = min(config.limit or 10**9, PROBLEMS.get(benchmark, 1000))
        return 2.0 * small * problems * TOKENS_PER_COMPLETION, GENERATION_SHARE
    recipe = RECIPES["paper" if config.recipe == "auto" else config.recipe]  # what needs a GPU is not small
    finetune, recover = recipe.for_kind(get_task(config.task).kind)
    base, changes = (finetune, config.finetune) if kind == "finetune" else (recover, config.recover)
    chosen = merge_settings(base, changes.model_dump())
    source = recipe.train_set(config.task, config.train_set) or get_task(config.task).default_source(config.data)
    tokens = chosen.total_steps(TRAINING_EXAMPLES.get(source, 10_000)) * chosen.batch_size * TOKENS_PER_EXAMPLE
    per_token = 8.0 if chosen.gradient_checkpointing else 6.0
    trains = bool(method) and method != "none" and create_method(method, {}).trains
    if kind == "finetune":
        return per_token * parameters * tokens, TRAINING_SHARE
    if kind == "recover":
        return per_token * small * tokens * (0.5 if trains else 1.0), TRAINING_SHARE
    if kind == "compress" and trains:
        # Half of the common budget, through frozen bases that fall from full rank to the ratio's.
        return (per_token - 2) * (FULL_BASES * parameters + small) / 2 * tokens / 2, TRAINING_SHARE
    if kind == "compress" and method != "none" and create_method(method, {}).compress_needs_data:
        return 2.0 * parameters * SEARCH_TOKENS, TRAINING_SHARE
    # Decompositions of n matrices of width w cost about 20·n·w³ operations; w is near 4096 for 7 B parameters.
    return (20.0 * parameters * 4096 if kind == "fit" else 2.0 * parameters), DECOMPOSITION_SHARE
