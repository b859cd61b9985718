"""Basis Selection as the authors' code does it: what each option of the recipe `paper` means."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import TrainingLog, create_method
from lowrank_bench.methods.contract import logits
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.library.bs.pruning import (
    above_share_of_mean,
    pruning_steps,
    pruning_steps_by_epoch,
    whole_prunings,
)
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import get_linear, low_rank_layers, matrices
from lowrank_bench.runners.choices import build_method
from lowrank_bench.runners.config import MethodSpec
from lowrank_bench.runners.training.recipes import RECIPES

SMALL = {"prunings": 4, "additional_dimension": 2}
AUTHORS = {
    "min_lr_rate": 0.1,
    "drop_below": 1e-3,
    "counting": "epoch",
    "prune_before": "forward",
    "threshold": "constant",
}


def method(**options: Any) -> Any:
    return create_method("bs", SMALL | options)


def compress(bs: Any, ratio: float = 2.0, trainer: Any = None, model: Any = None) -> Any:
    model = model or random_model("llama")
    return model, bs.compress(model, bs.fit(model, RandomData()), Budget(ratio, bs.guard), trainer)


class Recording(PlainTrainer):
    """Notes the options of its trainings, and the first layer's rank when each step's gradients are there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.options: list[dict[str, Any]] = []
        self.bases: list[int] = []

    def train(
        self,
        model: nn.Module,
        steps: int,
        lr_scale: float = 1.0,
        on_gradients: Any = None,
        state: Any = None,
        **more: Any,
    ) -> TrainingLog:
        self.options.append(more)
        layer = next(module for module in model.modules() if isinstance(module, BasisLinear))

        def look(step: int, tokens: int) -> None:
            self.bases.append(layer.rank)
            on_gradients(step, tokens)

        return super().train(model, steps, lr_scale, look, state, **more)


def simulated(steps_in_epoch: int, keep: int, prune: int, prunings: int) -> list[int]:
    """Return the steps before which the authors' loop prunes; written from what it does, loop by loop."""
    whole = prunings - prunings % prune
    between = steps_in_epoch // (whole // prune)
    return [
        epoch * steps_in_epoch + step
        for epoch in range(keep + prune)
        for step in range(steps_in_epoch)
        if epoch >= keep and step % between == 0
    ]


@pytest.mark.parametrize(
    ("steps", "keep", "prune", "prunings"),
    [(50, 1, 2, 100), (3086, 1, 2, 100), (117, 1, 2, 7), (40, 0, 3, 10), (9, 2, 1, 4)],
)
def test_prunings_are_counted_in_each_epoch(steps: int, keep: int, prune: int, prunings: int) -> None:
    due = pruning_steps_by_epoch(keep * steps, prune * steps, prune, prunings)
    assert due == simulated(steps, keep, prune, prunings)
    assert len(due) >= whole_prunings(prunings, prune)


def test_the_rounding_of_an_epoch_makes_more_prunings_than_were_asked_for() -> None:
    assert len(pruning_steps_by_epoch(3086, 2 * 3086, 2, 100)) == 102
    assert len(pruning_steps(3086, 2 * 3086, 100)) == 100


def test_an_epoch_with_fewer_steps_than_prunings_has_one_at_each() -> None:
    assert pruning_steps_by_epoch(10, 20, 2, 100) == list(range(10, 30))


def test_all_prunings_of_the_count_are_done_and_the_budget_is_met() -> None:
    trainer = Recording(total_steps=24)
    model, report = compress(method(counting="epoch", prunings=5), trainer=trainer)
    assert sum(p.numel() for p in model.parameters()) == report.parameters <= report.parameters_before / 2
    # 4 steps before the first pruning, 8 of pruning: two epochs of 4 steps, and 5 prunings become 2 for each.
    assert report.steps == 12
    assert len({*trainer.bases[:5]}) == 1


@pytest.mark.parametrize("share", [1e-3, 0.2])
def test_weak_singular_values_are_dropped_at_the_start(share: float) -> None:
    """The rule is the authors': above a share of the mean of all min(m, n) values."""
    model = random_model("llama")
    with torch.no_grad():
        for matrix in matrices(model):
            linear = get_linear(model, matrix.name)
            u, s, vt = torch.linalg.svd(linear.weight, full_matrices=False)
            s[len(s) // 2 :] = 1e-6 * s[0]
            linear.weight.copy_(u @ torch.diag(s) @ vt)
    expected = {m.name: torch.linalg.svdvals(get_linear(model, m.name).weight) for m in matrices(model)}
    before, seen = logits(model), {}

    class Looking(PlainTrainer):
        def train(self, model: Any, *args: Any, **more: Any) -> TrainingLog:
            for name, layer in model.named_modules():
                if isinstance(layer, BasisLinear):
                    seen[name] = len(layer.kept)
            seen["error"] = float((logits(model.eval()) - before).abs().max() / before.abs().max())
            return super().train(model, *args, **more)

    compress(method(drop_below=share), trainer=Looking(), model=model)
    error = seen.pop("error")
    assert seen == {name: int((s > share * s.mean()).sum()) for name, s in expected.items()}
    assert share > 0.1 or error < 1e-3


def test_weak_singular_values_are_dropped_at_the_merge() -> None:
    """Untrained new vectors (a factor of zeros) add nothing, so their ranks go: the authors' rank at the merge."""
    plain, dropped = (compress(method(additional_share=0.5, drop_below=share)) for share in (0.0, 1e-3))
    extra = plain[1].details["additional_dimension"]
    assert set(extra.values()) == {2}
    for name, layer in low_rank_layers(plain[0]).items():
        small = low_rank_layers(dropped[0])[name]
        assert small.rank == layer.rank - extra[name], name
        torch.testing.assert_close(small.dense_weight(), layer.dense_weight(), atol=1e-5, rtol=0)
    assert dropped[1].parameters == sum(p.numel() for p in dropped[0].parameters()) < plain[1].parameters


def test_dropping_keeps_ranks_in_multiples() -> None:
    model, bs = random_model("llama"), method(drop_below=1e-3)
    bs.compress(model, bs.fit(model, RandomData()), Budget(2.0, bs.guard, 4), None)
    assert all(layer.rank % 4 == 0 for layer in low_rank_layers(model).values())


def test_the_share_of_the_mean_counts_the_zeros() -> None:
    assert above_share_of_mean(torch.tensor([4.0, 1.0]), 0.25, 2) == 2
    assert above_share_of_mean(torch.tensor([4.0, 1.0]), 0.4, 2) == 1
    assert above_share_of_mean(torch.tensor([4.0, 1.0]), 0.4, 8) == 2
    assert above_share_of_mean(torch.zeros(3), 0.1, 3) == 1


def test_before_the_forward_pass_a_pruned_basis_has_no_part_in_the_gradient() -> None:
    """Of a step with a pruning the gradient is that of the smaller model, and else that of the larger one."""

    def ranks(order: str) -> tuple[list[int], list[int]]:
        trainer = Recording(total_steps=12)
        compress(method(prune_before=order, prunings=2), trainer=trainer)
        return trainer.bases, trainer.options

    (update, _), (forward, options) = ranks("update"), ranks("forward")
    # 2 steps before the first pruning and 4 of pruning, with prunings at 2 and 4.
    assert update[0] == update[1] == update[2] > update[3]
    assert forward[0] == forward[1] > forward[2] == forward[3] > forward[4]
    assert "on_step" in options[0]


def test_the_floor_of_the_schedule_is_the_trainers() -> None:
    trainer = Recording()
    compress(method(min_lr_rate=0.1), trainer=trainer)
    assert trainer.options == [{"min_lr_rate": 0.1}]


def test_without_the_options_a_trainer_is_called_as_before() -> None:
    trainer = Recording()
    compress(method(), trainer=trainer)
    assert trainer.options == [{}]


def test_a_constant_threshold_keeps_its_share_at_every_pruning() -> None:
    """Each pruning keeps at least K^(1/P) of what is left, so less is pruned on the way than with the compensation."""

    def bases_left(threshold: str) -> list[int]:
        trainer = Recording(total_steps=48)
        compress(method(threshold=threshold, prunings=20, additional_dimension=0), 3.0, trainer)
        return trainer.bases

    constant, compensated = bases_left("constant"), bases_left("compensated")
    assert all(a >= b for a, b in zip(constant, compensated, strict=True))
    assert constant != compensated
    one_shot = [compress(method(threshold=name, prunings=1))[1].ranks for name in ("constant", "compensated")]
    assert one_shot[0] == one_shot[1]


def test_a_constant_threshold_belongs_to_the_exponential_schedule() -> None:
    with pytest.raises(UserError, match="leave schedule or threshold out"):
        method(threshold="constant", schedule="linear")


def test_the_options_at_their_defaults_are_not_in_the_key() -> None:
    plain = method().model_dump(mode="json")
    assert not AUTHORS.keys() & plain.keys()
    assert method(**AUTHORS).model_dump(mode="json").items() >= AUTHORS.items()
    assert create_method("bs", plain) == method()


@pytest.mark.parametrize("recipe", ["paper", "quick"])
def test_the_recipe_follows_the_authors(recipe: str) -> None:
    bs = build_method(MethodSpec(name="bs"), RECIPES[recipe], 42).model_dump()
    assert bs.items() >= AUTHORS.items()
    own = build_method(MethodSpec(name="bs", options={"counting": "run"}), RECIPES[recipe], 42)
    assert own.counting == "run"
    small = build_method(MethodSpec(name="bs"), RECIPES["small"], 42).model_dump()
    assert not AUTHORS.keys() & small.keys()


def test_everything_together_meets_the_budget_and_computes() -> None:
    model, report = compress(method(**AUTHORS), trainer=PlainTrainer(total_steps=24))
    assert report.parameters <= report.parameters_before / 2
    assert torch.isfinite(logits(model)).all()
    assert math.isfinite(report.recover_lr_scale)
