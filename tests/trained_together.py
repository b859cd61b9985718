"""Trainings that one process and several shall do alike; run by accelerate it does them all and keeps what came out."""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear, low_rank_layers, matrices, replace_module
from lowrank_bench.runners.training import trainer as training
from lowrank_bench.runners.training.data import IGNORED, TaskData
from lowrank_bench.runners.training.settings import TrainSettings
from lowrank_bench.runners.training.trainer import TaskTrainer

STEPS = 7
# 19 examples in batches of 8: each epoch ends with an update of three, and the steps go through two of these ends.
ITEMS = [
    Encoded([1, 5, *range(6 + i, 9 + i + i % 4), 2], [IGNORED] * 2 + [*range(6 + i, 9 + i + i % 4), 2])
    for i in range(19)
]
SETTINGS = TrainSettings(
    steps=STEPS,
    learning_rate=1e-3,
    batch_size=8,
    micro_batch_size=8,
    max_grad_norm=0.1,
    gradient_checkpointing=False,
    precision="float32",
)
CASES = ("dense", "tied, accumulated", "factorised", "bfloat16", "fused")
SELECTIONS: dict[str, dict[str, Any]] = {
    "from the top": {"new_vectors": "top", "additional_share": 0.5, "criterion": "taylor"},
    "nothing new": {"additional_dimension": 0, "scope": "global", "train_others": False},
}
"""Options of Basis Selection."""


def factorised() -> Any:
    """Return a model whose second layer uses factors of the first, and k those of q, all with added biases."""
    model = random_model("llama")
    layers: dict[str, LowRankLinear] = {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for matrix in matrices(model):
            if matrix.name == "lm_head":
                continue
            kind = "self_attn.q_proj" if matrix.name.endswith("k_proj") else matrix.name.split(".", 3)[3]
            dense, source = get_linear(model, matrix.name), layers.get(kind)
            a, b = torch.randn(6, dense.in_features) / 6, torch.randn(dense.out_features, 6) / 6
            layer = LowRankLinear.from_factors(a, b, None, torch.zeros(dense.out_features), source)
            layers.setdefault(kind, layer)
            replace_module(model, matrix.name, layer)
    return model


def build(case: str) -> Any:
    """Return the model of a case."""
    if case == "tied, accumulated":
        return random_model("qwen2", tied=True)
    return factorised() if case == "factorised" else random_model("llama")


class Watched(training._CheckedTrainer):
    """Notes after each pass the share of the gradients that this process holds, and how many storages they are in."""

    shares: ClassVar[list[float]] = []
    storages: ClassVar[list[float]] = []

    def training_step(self, model: Any, *args: Any, **more: Any) -> Any:
        loss = super().training_step(model, *args, **more)
        gradients = [(p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad, p) for p in model.parameters()]
        numbers = sum(p.numel() for _, p in gradients)
        self.shares.append(sum(grad.numel() for grad, _ in gradients if grad is not None) / numbers)
        storages = {grad.untyped_storage().data_ptr() for grad, _ in gradients if grad is not None}
        self.storages.append(len(storages) / len(gradients))
        return loss


training._CheckedTrainer = Watched  # type: ignore[misc]


def train(case: str) -> tuple[Any, Any]:
    """Return the trained model and the log."""
    Watched.shares.clear()
    Watched.storages.clear()
    model, settings = build(case), SETTINGS
    if case == "tied, accumulated":
        settings = settings.model_copy(update={"micro_batch_size": 2, "gradient_checkpointing": True})
    if case == "bfloat16":
        settings = settings.model_copy(update={"precision": "bfloat16"})
    if case == "fused":
        settings = settings.model_copy(update={"optimizer": "adamw_torch_fused"})
    return model, TaskTrainer(TaskData(ITEMS, 0, 0, 42), settings).train(model, STEPS)


def select(case: str) -> dict[str, Any]:
    """Return what Basis Selection made on the main process: products and other weights, bases, numbers in training.

    ``held`` has for each frozen tensor the numbers that this process held and those of the whole.
    """
    model = random_model("llama")
    method = create_method("bs", {"prunings": 3, **SELECTIONS[case]})
    result: dict[str, Any] = {"held": {}}

    class Watched(TaskTrainer):
        def train(
            self, model: Any, steps: int, lr_scale: float = 1.0, on_gradients: Any = None, state: Any = None
        ) -> Any:
            def look(step: int, tokens: int) -> None:
                on_gradients(step, tokens)
                for name, layer in model.named_modules():
                    if isinstance(layer, BasisLinear):
                        for side in ("left", "right"):
                            tensor = getattr(layer, side)
                            here = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                            result["held"][f"{name}.{side}"] = (here.numel(), tensor.numel())

            return super().train(model, steps, lr_scale, look, state)

    def emit(budget: Budget, compressed: Any, report: Any) -> None:
        state = compressed.state_dict()
        for name in low_rank_layers(compressed):
            b, a = (state.pop(f"{name}.lr_{part}") for part in "ba")
            state[name] = b.double() @ a.double()
        result.update(state=state, bases=report.tensors, report=report.summary())

    settings = SETTINGS.model_copy(update={"gradient_checkpointing": case == "nothing new"})
    trainer = Watched(TaskData(ITEMS, 0, 0, 42), settings, extra_steps=8)
    method.compress_path(model, method.fit(model, None), [Budget(2.0)], trainer, emit)
    return result


if __name__ == "__main__":
    from accelerate import PartialState

    from lowrank_bench.runners.executors.local import prepare
    from lowrank_bench.runners.training.sharding import is_main, is_sharded, whole_state

    prepare(1)
    PartialState(cpu=True)
    results: dict[str, dict[str, Any]] = {"fsdp2": {}, "ddp": {}}
    for strategy, by_case in results.items():
        # Starting the processes takes longer than the trainings, so one start serves both strategies.
        os.environ["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp2").lower()
        for case in CASES:
            model, log = train(case)
            state = whole_state(model) if is_sharded(model) else model.state_dict()
            by_case[case] = {"state": state, "log": vars(log), "sharded": is_sharded(model)}
            by_case[case] |= {"shares": list(Watched.shares), "storages": list(Watched.storages)}
        for case in SELECTIONS:
            by_case[case] = select(case)
    if is_main():
        torch.save(results, Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
