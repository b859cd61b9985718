"""What the contract suite works with: task data, a trainer, a budget of equal ranks. Needs no pytest."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import Stateful, TrainingLog
from .ranks.budget import Allocation, Budget
from .ranks.policies.base import Policy
from .ranks.units import ModelShape
from .shrinking import shrink_parameter

VOCABULARY = 96
"""Of `models.architectures.random_model`."""


class RandomData:
    """Right-padded random token sequences of unequal length whose first three positions carry no loss.

    Args:
        examples: how many.
        seed: of lengths and tokens.
    """

    def __init__(self, examples: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(6, 13, (examples,), generator=generator)
        self.mask = (torch.arange(12) < lengths[:, None]).long()
        self.ids = torch.randint(3, VOCABULARY, (examples, 12), generator=generator) * self.mask
        self.labels = torch.where((self.mask == 1) & (torch.arange(12) >= 3), self.ids, -100)

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield ``input_ids``, ``attention_mask`` and ``labels`` (b, 12), see `CalibrationData`."""
        rows = torch.arange(len(self.ids))[:samples]
        for part in rows.split(batch_size):
            yield {"input_ids": self.ids[part], "attention_mask": self.mask[part], "labels": self.labels[part]}


class CountedData(RandomData):
    """Counts how often it is read."""

    reads = 0

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield what `RandomData` yields."""
        self.reads += 1
        return super().batches(samples, batch_size)


class PlainTrainer:
    """The smallest real `Trainer`: AdamW, batches of two in a fixed order, linear decay after one warm-up step.

    Args:
        total_steps: steps that compress and recover share.
        lr: learning rate; 0 runs every step and changes nothing.
        data: what to train on.
    """

    def __init__(self, total_steps: int = 8, lr: float = 2e-3, data: RandomData | None = None) -> None:
        self.total_steps, self.extra_steps, self.lr = total_steps, 0, lr
        self.data = data or RandomData()
        self.optimizer: torch.optim.Optimizer | None = None
        self.shards = False

    def train(
        self,
        model: nn.Module,
        steps: int,
        lr_scale: float = 1.0,
        on_gradients: Callable[[int, int], None] | None = None,
        state: Stateful | None = None,
        on_step: Callable[[int, int], None] | None = None,
        min_lr_rate: float = 0.0,
        start: int = 0,
    ) -> TrainingLog:
        """Train in place, see `Trainer.train`; keeps no checkpoints."""
        if steps == 0:
            return TrainingLog(0, 0, 0.0, math.nan)
        begin, tokens, loss = time.perf_counter(), 0, torch.zeros(())
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = self.optimizer = torch.optim.AdamW(trained, lr=self.lr * lr_scale, weight_decay=0.0)
        low = min_lr_rate
        warm_up = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: min(1.0, (done + 1) / 2, low + (1 - low) * (1 - done / steps))
        )
        batches = list(self.data.batches(None, 2))
        training = model.training
        model.train()
        for step in range(steps):
            if on_step is not None:
                on_step(step, tokens)
            batch = batches[(start + step) % len(batches)]
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            loss = loss.detach()  # who holds a graph holds its parameters' shapes
            if on_gradients is not None:
                on_gradients(step, tokens)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()
            tokens += int(batch["attention_mask"].sum())
        model.train(training)
        return TrainingLog(steps, tokens, time.perf_counter() - begin, float(loss))

    def shrink(self, parameter: nn.Parameter, index: Tensor) -> bool:
        """Shrink a parameter and its optimizer's state, see `Trainer.shrink`."""
        return shrink_parameter(parameter, index, self.optimizer)

    def whole(self, model: nn.Module) -> nn.Module:
        """Return the model, see `Trainer.whole`."""
        return model


@dataclass(frozen=True)
class FixedRank(Budget):
    """Gives every unit the same rank, or its own full rank where that is less, whatever it costs."""

    ratio: float = 1.000001
    guard: bool = False
    rank: int = sys.maxsize

    def allocate(self, shape: ModelShape, policy: Policy, *evidence: Any) -> Allocation:
        """Return min(rank, full rank) for every unit."""
        ranks = {unit.name: max(min(self.rank, unit.max_rank), unit.min_rank) for unit in shape.units}
        cost = sum(unit.factorised(ranks[unit.name]) for unit in shape.units)
        return Allocation(ranks, shape.untouched + cost, 1.0)
