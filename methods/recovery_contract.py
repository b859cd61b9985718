"""What every recovery must do, as a test suite that a recovery inherits with one line.

    from lowrank_bench.methods.recovery_contract import RecoveryContract

    class TestMine(RecoveryContract):
        recovery = "mine"

Run it with pytest, which only this module imports. It recovers random two-layer models of every architecture on the CPU
in a few seconds, for real, by `contract_parts.PlainTrainer`.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from ..models.architectures import ARCHITECTURES, random_model
from ..models.checkpoint import save_checkpoint
from ..models.loading import load_model
from .base import create_method
from .contract import logits, same, weights
from .contract_parts import PlainTrainer, RandomData
from .ranks.budget import Budget
from .recoveries.base import Phase, Recovery, create_recovery

STEPS = 7
SEED = 5


class RecordingTrainer(PlainTrainer):
    """A real trainer that keeps the numbers of the batches that it read, one after the other."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.batch_numbers: list[int] = []

    def train(self, model: nn.Module, steps: int, *args: Any, **more: Any) -> Any:
        """Train in place, see `PlainTrainer.train`."""
        begin = more.get("start", 0)
        self.batch_numbers += range(begin, begin + steps)
        return super().train(model, steps, *args, **more)


def compressed(architecture: str, method: str = "svd", dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model compressed 2x."""
    model = random_model(architecture, dtype=dtype)
    data, compressor = RandomData(), create_method(method)
    compressor.compress(model, compressor.fit(model, data), Budget(2.0), None, data)
    return model


class RecoveryContract:
    """Derive a class named ``Test…`` from this one and set ``recovery``.

    Attributes:
        recovery: registered name.
        options: options to test it with.
    """

    recovery: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    def make(self) -> Recovery:
        """Build the recovery with the suite's options."""
        return create_recovery(self.recovery, self.options)

    def run(self, model: nn.Module, steps: int = STEPS, **settings: Any) -> tuple[list[Phase], RecordingTrainer]:
        """Recover a model in place."""
        trainer = RecordingTrainer(**settings)
        return self.make().recover(model, trainer, steps, 1.0, SEED), trainer

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_keeps_names_shapes_and_dtypes(self, architecture: str) -> None:
        """A checkpoint is the same size as before, all parameters require a gradient again, and logits are finite."""
        model = compressed(architecture)
        before, modules = weights(model), [(name, type(module)) for name, module in model.named_modules()]
        state = {name: value.shape for name, value in model.state_dict().items()}
        self.run(model)
        after = weights(model)
        assert {name: (v.shape, v.dtype) for name, v in after.items()} == {
            name: (v.shape, v.dtype) for name, v in before.items()
        }
        assert state == {name: value.shape for name, value in model.state_dict().items()}
        assert modules == [(name, type(module)) for name, module in model.named_modules()], "modules were left behind"
        assert all(p.requires_grad and p.grad is None for p in model.parameters()), "a parameter was left frozen"
        assert torch.isfinite(logits(model)).all(), "logits are not finite"
        assert same(before, after) != self.make().trains, "nothing was trained, or something that should not have been"

    @pytest.mark.parametrize("method", ["basis-sharing", "afm"])
    def test_takes_shared_factors_and_added_biases(self, method: str) -> None:
        """Factors that several layers share stay one tensor, and added biases stay."""
        model = compressed("llama", method)
        names = list(weights(model))
        self.run(model)
        assert list(weights(model)) == names
        assert torch.isfinite(logits(model)).all()

    def test_uses_the_steps_and_batches_of_the_budget(self) -> None:
        """The phases read the batches of one run in their order, so all recoveries have equal tokens."""
        phases, trainer = self.run(compressed("llama"))
        if not self.make().trains:
            assert not phases
            assert not trainer.batch_numbers
            return
        assert trainer.batch_numbers == list(range(STEPS))
        assert sum(phase.log.steps for phase in phases) == STEPS
        whole = PlainTrainer().train(compressed("llama"), STEPS)
        assert sum(phase.log.tokens for phase in phases) == whole.tokens
        assert all(phase.trained_parameters > 0 for phase in phases)

    def test_a_learning_rate_of_zero_changes_nothing(self) -> None:
        """What is added starts as nothing: after steps of size zero every weight has the same bits."""
        model = compressed("qwen2")
        before = weights(model)
        self.run(model, lr=0.0)
        assert same(before, weights(model))

    @pytest.mark.parametrize("steps", [0, 1])
    def test_takes_few_steps(self, steps: int) -> None:
        """No step changes nothing; one is a whole budget too."""
        model = compressed("llama")
        before = weights(model)
        phases, _ = self.run(model, steps)
        assert sum(phase.log.steps for phase in phases) == (steps if self.make().trains else 0)
        assert steps or same(before, weights(model))

    def test_is_deterministic(self) -> None:
        """Two runs agree in every bit, whatever the global random state."""
        runs: list[dict[str, Tensor]] = []
        for seed in (1, 2):
            model = compressed("llama")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed if not self.draws else 3)
                self.run(model)
            runs.append(weights(model))
        assert same(*runs), "two runs differ"

    draws: ClassVar[bool] = False
    """Whether a training itself draws random numbers, as dropout does; a sweep seeds them before each training."""

    def test_is_saved_as_what_was_compressed(self, tmp_path: Path) -> None:
        """A recovered model is loaded from its folder with the same logits."""
        model = compressed("qwen2")
        self.run(model)
        save_checkpoint(model, None, tmp_path / "small")
        torch.testing.assert_close(logits(load_model(tmp_path / "small")), logits(model))

    def test_estimates_what_it_trains(self) -> None:
        """The skeleton of the estimates has as many trained parameters as the largest phase."""
        model = compressed("llama")
        skeleton = copy.deepcopy(model).to("meta")
        trained = self.make().trained_skeleton(skeleton)
        phases, _ = self.run(model)
        if self.make().trains:
            counted = sum(p.numel() for p in trained.parameters() if p.requires_grad)
            assert counted == max(phase.trained_parameters for phase in phases)
        assert same_names(skeleton, model), "the model of the estimate was changed"


def same_names(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models have parameters of the same names."""
    return [name for name, _ in first.named_parameters()] == [name for name, _ in second.named_parameters()]
