"""Training with transformers' Trainer under the sweep's common rules."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..evals.prompts import Encoded
from ..foundation.errors import UserError
from ..methods.base import TrainingLog
from ..methods.shrinking import shrink_parameter
from .data import TaskData, collate
from .recipes import TrainSettings

Progress = Callable[[int, int], None]


class _Examples(Dataset[Encoded]):
    def __init__(self, items: list[Encoded]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Encoded:
        return self.items[index]


class _Hooks(transformers.TrainerCallback):
    """Counts tokens by update, reports progress, and calls back before each update with gradients in place."""

    def __init__(self, on_gradients: Callable[[int, int], None] | None, progress: Progress | None) -> None:
        self.on_gradients, self.progress = on_gradients, progress
        self.tokens = self.tokens_done = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_gradients:
            self.on_gradients(state.global_step, self.tokens_done)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tokens_done = self.tokens
        if self.progress:
            self.progress(state.global_step, state.max_steps)


class _CheckedTrainer(transformers.Trainer):
    """A Trainer that counts tokens and stops at the first loss that is not a number."""

    hooks: _Hooks
    where: str
    last_loss = math.nan

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.hooks.tokens += int(inputs["attention_mask"].sum())
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        value = float(loss)
        if not math.isfinite(value):
            raise UserError(
                f"the loss became {value} at step {self.state.global_step + 1} of {self.state.max_steps} in "
                f"{self.where}; lower the learning rate (now {self.args.learning_rate:g}) with --lr, or check the "
                "training data"
            )
        self.last_loss = value
        return loss


class TaskTrainer:
    """Trains models on one task's data (a `methods.base.Trainer`).

    Args:
        data: encoded examples; their order is drawn anew from ``seed`` in each run, the same for every method.
        settings: optimizer, schedule, batch.
        extra_steps: steps that training methods get on top of the common budget.
        device: torch device.
        seed: of the data order.
        where: the stage's name, for messages.
        progress: called with (steps done, steps in all).

    Attributes:
        log: of the last run, None before the first.
    """

    def __init__(
        self,
        data: TaskData,
        settings: TrainSettings,
        extra_steps: int = 0,
        device: str = "cpu",
        seed: int = 42,
        where: str = "training",
        progress: Progress | None = None,
    ) -> None:
        self.data, self.settings, self.device, self.seed = data, settings, device, seed
        self.where, self.progress = where, progress
        self.extra_steps = extra_steps
        self.total_steps = settings.total_steps(len(data.items))
        self.log: TrainingLog | None = None
        self._running: _CheckedTrainer | None = None

    def train(
        self,
        model: Any,
        steps: int,
        lr_scale: float = 1.0,
        on_gradients: Callable[[int, int], None] | None = None,
    ) -> TrainingLog:
        """Train in place for ``steps`` updates, with one warm-up and one decay; see `methods.base.Trainer.train`."""
        if steps == 0:
            return TrainingLog(0, 0, 0.0, math.nan)
        chosen = self.settings
        micro = min(chosen.micro_batch_size, chosen.batch_size)
        if chosen.batch_size % micro:
            raise UserError(
                f"the batch size {chosen.batch_size} is no multiple of the micro batch size {micro}; choose a divisor"
            )
        wide = chosen.precision == "bfloat16" or (chosen.precision == "auto" and self.device.startswith("cuda"))
        hooks = _Hooks(on_gradients, self.progress)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=str(Path(folder)),
                max_steps=steps,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=chosen.batch_size // micro,
                learning_rate=chosen.learning_rate * lr_scale,
                lr_scheduler_type=chosen.schedule,
                warmup_steps=math.ceil(chosen.warmup * steps),
                optim=chosen.optimizer,
                weight_decay=chosen.weight_decay,
                max_grad_norm=chosen.max_grad_norm,
                gradient_checkpointing=chosen.gradient_checkpointing,
                bf16=wide,
                use_cpu=self.device == "cpu",
                seed=self.seed,
                data_seed=self.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=self.device != "cpu",
                remove_unused_columns=False,
            )
            trainer = _CheckedTrainer(
                model=model,
                args=arguments,
                train_dataset=_Examples(self.data.items),
                data_collator=lambda items: collate(items, self.data.pad_token_id),
                callbacks=[hooks],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.hooks, trainer.where = hooks, self.where
            use_cache, model.config.use_cache = model.config.use_cache, False
            clock = time.perf_counter()
            self._running = trainer
            try:
                trainer.train()
            finally:
                self._running = None
                model.config.use_cache = use_cache
        torch.manual_seed(self.seed)
        model.eval()
        self.log = TrainingLog(steps, hooks.tokens_done, time.perf_counter() - clock, trainer.last_loss)
        return self.log

    def shrink(self, parameter: nn.Parameter, index: Tensor) -> bool:
        """Shrink a parameter and its optimizer's state, in one process alone; see `methods.base.Trainer.shrink`."""
        if self._running is None:
            return shrink_parameter(parameter, index)
        if self._running.accelerator.num_processes > 1:
            return False  # others hold copies or parts of it, and buckets of its gradients
        return shrink_parameter(parameter, index, self._running.optimizer)
