"""Training with transformers' Trainer under the sweep's common rules."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from accelerate.utils import AutocastKwargs, broadcast_object_list, gather_object, set_seed
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...evals.tasks.prompts import Encoded
from ...foundation.environment import launcher_ignored
from ...foundation.memory import peak_memory_bytes
from ...foundation.progress import Progress
from ...methods.base import Stateful, TrainingLog
from ...methods.shrinking import shrink_parameter
from ..tracking.names import Tracking
from ..tracking.training import MOST_POINTS, TrackedTraining, tracked
from .batches import Examples, StepSampler
from .data import TaskData, collate
from .divergence import Diverged, advice, require_finite
from .host_moments import HostMomentsAdamW
from .later import begin_later, begins_later
from .one_device import OneDeviceArguments
from .placement import optimizer_name
from .resuming import Resumable, RunFacts, RunUse
from .schedules import schedule_arguments
from .settings import TrainSettings
from .sharding import collect, fit_settings, is_main, is_sharded, process_count, shards, skeleton, use_fsdp2_on_cpus

_STATE = "method.pt"
"""In a checkpoint, what a method changes beside the model."""


class _Hooks(transformers.TrainerCallback):
    """Counts what all processes did by update, stops at the first loss that is not a number, calls back.

    It calls back with gradients and progress, and asks for checkpoints.
    """

    trainer: _CheckedTrainer

    def __init__(
        self,
        on_gradients: Callable[[int, int], None] | None,
        progress: Progress | None,
        resumable: Resumable | None,
        state: Stateful | None,
        reports: bool = False,
        on_step: Callable[[int, int], None] | None = None,
        start: int = 0,
    ) -> None:
        self.on_gradients, self.progress, self.resumable, self.state = on_gradients, progress, resumable, state
        self.reports, self.on_step, self.start = reports, on_step, start
        self.sums: Tensor | None = None  # loss and tokens since the last update, on the device
        self.tokens = self.loss = self.seconds_before = 0.0
        self.peak_before = 0
        self.tokens_done, self.last_loss = 0, math.nan
        self.started = self.saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def count(self, loss: Tensor, tokens: Tensor) -> None:
        """Add a pass to the sums without waiting for the device."""
        here = torch.stack([loss.double(), tokens.sum().double()])
        self.sums = here if self.sums is None else self.sums + here

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.on_step:
            self.on_step(state.global_step - self.start, self.tokens_done)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.sums is not None
        # Waits for the device once for all passes of an update, before the optimizer applies a loss that is not finite.
        self.loss, self.tokens = self.sums.tolist()
        self.sums = None
        if not math.isfinite(self.loss):
            raise Diverged(
                f"the loss became {self.loss} at step {state.global_step + 1} of {state.max_steps} in "
                f"{self.trainer.title}; {advice(args.learning_rate)}",
                state.global_step - self.start,
                self.tokens_done,
            )
        if self.on_gradients:
            self.on_gradients(state.global_step - self.start, self.tokens_done)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The clocks of processes differ, and all have to write a checkpoint together: if one asks for it, all do.
        due = self.resumable is not None and time.perf_counter() - self.saved >= 60 * self.resumable.minutes
        tokens, self.last_loss, asking = self._of_all(self.tokens, self.loss, due)
        self.tokens_done += round(tokens)
        control.should_save = asking > 0 and state.global_step < state.max_steps
        if self.reports and (
            state.global_step % max(1, state.max_steps // MOST_POINTS) == 0 or state.global_step == state.max_steps
        ):
            rate = kwargs["lr_scheduler"].get_last_lr()[0]
            self.trainer.log({"loss": self.last_loss, "learning_rate": rate, "tokens": tokens})
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def _of_all(self, tokens: float, loss: float, due: bool) -> tuple[float, float, float]:
        """Return the sum of tokens, the mean loss, and how many ask for a checkpoint."""
        count = process_count()
        if count == 1:
            return tokens, loss, due
        here = torch.tensor([tokens, loss / count, due], dtype=torch.float64, device=self.trainer.args.device)
        total, mean, asking = self.trainer.accelerator.reduce(here, "sum").tolist()
        return total, mean, asking

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.resumable is not None
        peaks = gather_object([peak_memory_bytes()])  # waits for everyone
        if args.should_save:
            checkpoint = self.resumable.checkpoint_folder(state.global_step)
            if self.state is not None:
                torch.save(self.state.state_dict(), checkpoint / _STATE)
            used = RunUse(self.tokens_done, self.seconds, max(self.peak_before, *peaks))
            self.resumable.seal(checkpoint, self.facts, used)
        self.saved = time.perf_counter()

    @property
    def facts(self) -> RunFacts:
        """Facts that a checkpoint of this run has."""
        return RunFacts(self.trainer.layout, self.state is not None)


class _CheckedTrainer(transformers.Trainer):
    """A Trainer that counts tokens and losses, sorts each step by length, and keeps names in checkpoints."""

    hooks: _Hooks
    title: str
    moments_on_host = False
    start = 0
    """Steps of the data's order that lie before this training."""

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        # `max_steps` counts the steps before this training too; the schedule covers its own alone.
        return super().create_scheduler(num_training_steps - self.start, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.gradient_checkpointing:
            # The recomputation makes bfloat16 copies of the weights again; to keep those of the forward pass is waste.
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # else DDP holds each gradient twice
        use_fsdp2_on_cpus(self.accelerator)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
        if self.is_fsdp_enabled:
            fit_settings(self.accelerator, self.model)

    @property
    def layout(self) -> str:
        """How the tensors of a checkpoint lie."""
        if not self.is_fsdp_enabled:
            return "whole tensors"
        return f"FSDP2, {self.accelerator.state.fsdp_plugin.state_dict_type.name}"

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        count, passes = process_count(), self.args.gradient_accumulation_steps
        together = self.args.per_device_train_batch_size * count
        # Other losses are means of each pass, which another division into passes would change.
        step = together * passes if passes > 1 and self.model_accepts_loss_kwargs else None
        if count == 1 and step is None:
            return super()._get_train_sampler(train_dataset)
        return StepSampler(self.train_dataset, self.args.data_seed, together if count > 1 else 1, step)

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        kind, options = super().get_optimizer_cls_and_kwargs(args, model)
        return (HostMomentsAdamW if self.moments_on_host else kind), options

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.args.should_save and self.hooks.resumable is not None:
            # What lies here is of an attempt that was cut off, and would be sealed with what is written over it.
            shutil.rmtree(self.hooks.resumable.checkpoint_folder(self.state.global_step), ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(*args, **kwargs)

    # Trainer's own two would save under the names of the hub's format and leave out what they do not find again.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.is_fsdp_enabled and output_dir is not None:
            os.makedirs(output_dir, exist_ok=True)
            save_model(self.model, os.path.join(output_dir, "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if begins_later(resume_from_checkpoint):
            return  # it holds a number of steps alone
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.model, os.path.join(resume_from_checkpoint, "model.safetensors"))

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        tokens = inputs.pop("tokens")
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self.hooks.count(loss, tokens)
        return loss


_COMPRESS_ORDER = 1_000_003


def compress_order(seed: int) -> int:
    """Return the seed of the data order for a method that trains while compressing.

    It is another one than the recovery's, or the method would see the same first batches twice where the others go on
    to new ones.
    """
    return seed + _COMPRESS_ORDER


class TaskTrainer:
    """Trains models on one task's data (a `methods.base.Trainer`).

    Args:
        data: encoded examples; their order is drawn from ``seed`` in each run, the same for every method.
        settings: optimizer, schedule, batch.
        extra_steps: steps that training methods get on top of the common budget.
        device: torch device.
        seed: of the data order.
        title: the stage's name, for messages.
        progress: called with (steps done, steps in all).
        resumable: where runs keep checkpoints, and go on from one that is there; None keeps none.
        tracking: where curves are reported to; None reports to nobody.

    Attributes:
        log: of all runs so far, with the loss of the last; None before the first.
    """

    def __init__(
        self,
        data: TaskData,
        settings: TrainSettings,
        extra_steps: int = 0,
        device: str = "cpu",
        seed: int = 42,
        title: str = "training",
        progress: Progress | None = None,
        resumable: Resumable | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.data, self.settings, self.device, self.seed = data, settings, device, seed
        self.title, self.progress, self.resumable = title, progress, resumable
        self.tracking = tracking
        self.extra_steps = extra_steps
        self.total_steps = settings.total_steps(len(data.items))
        self.log: TrainingLog | None = None
        self._runs = 0
        self._running: _CheckedTrainer | None = None
        self._skeleton: nn.Module | None = None

    @property
    def shards(self) -> bool:
        """Whether training leaves only a share of the model in this process; see `methods.base.Trainer.shards`."""
        return shards()

    def train(
        self,
        model: Any,
        steps: int,
        lr_scale: float = 1.0,
        on_gradients: Callable[[int, int], None] | None = None,
        state: Stateful | None = None,
        on_step: Callable[[int, int], None] | None = None,
        min_lr_rate: float = 0.0,
        start: int = 0,
    ) -> TrainingLog:
        """Train in place for ``steps`` updates, with one warm-up and one decay; see `methods.base.Trainer.train`."""
        if steps == 0:
            return TrainingLog(0, 0, 0.0, math.nan)
        schedule = schedule_arguments(self.settings.schedule, min_lr_rate)
        # Taken while the model is still whole; `whole` gathers the shards in it.
        if self.shards and not is_sharded(model):
            self._skeleton = skeleton(model)
        chosen = self.settings
        micro, accumulated = chosen.split(process_count())
        wide = chosen.precision == "bfloat16" or (chosen.precision == "auto" and self.device.startswith("cuda"))
        # What callbacks of a method change is in a checkpoint only where it hands over its state.
        resumable = self.resumable if (on_gradients is None and on_step is None) or state is not None else None
        resumable = resumable.of_run(self._runs) if resumable else None
        self._runs += 1
        run = self.title if self._runs == 1 else f"{self.title}, training {self._runs}"
        reports: list[TrackedTraining] = tracked(self.tracking, run) if is_main() else []
        hooks = _Hooks(on_gradients, self.progress, resumable, state, self.tracking is not None, on_step, start)
        examples = Examples(self.data)
        # Only processes that accelerate started for this training (`parallel.rank`) read its settings there.
        alone = launcher_ignored() if process_count() == 1 else nullcontext()
        with alone, tempfile.TemporaryDirectory() as folder:
            kind: Any = transformers.TrainingArguments
            if process_count() == 1:
                kind = partial(OneDeviceArguments, named_device=self.device)
            arguments = kind(
                output_dir=folder,
                max_steps=start + steps,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=accumulated,
                learning_rate=chosen.learning_rate * lr_scale,
                **schedule,
                warmup_steps=math.ceil(chosen.warmup * steps),
                optim=optimizer_name(chosen),
                weight_decay=chosen.weight_decay,
                max_grad_norm=chosen.max_grad_norm,
                gradient_checkpointing=chosen.gradient_checkpointing,
                bf16=wide,
                use_cpu=self.device == "cpu",
                seed=self.seed,
                data_seed=self.seed,
                # `_Hooks` decides instead: checkpoints by time, and a limited number of points of a curve.
                save_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,  # it would wait for the device at each pass
                report_to=[],  # the callbacks of trackers come below, so that a tracker that fails ends no training
                disable_tqdm=True,
                dataloader_pin_memory=self.device != "cpu",
                accelerator_config={
                    "non_blocking": self.device != "cpu",
                    # Between passes FSDP2 would else keep whole float32 gradients in each process.
                    "gradient_accumulation_kwargs": {"sync_each_batch": True} if self.shards else None,
                },
                remove_unused_columns=False,
                average_tokens_across_devices=True,
                **(self.tracking.arguments(run) if self.tracking else {}),
            )
            trainer = _CheckedTrainer(
                model=model,
                args=arguments,
                train_dataset=examples,
                data_collator=lambda items: self._batch(items, examples.blank),
                callbacks=[hooks, *reports],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.hooks, trainer.title, hooks.trainer = hooks, self.title, trainer
            trainer.start = start
            trainer.moments_on_host = chosen.placement == "host-moments"
            assert trainer.args.n_gpu <= 1, "DataParallel would multiply the batch"
            if resumable:
                trainer.args.output_dir = str(resumable.folder)  # only now, or the Trainer would make it at once
            if process_count() > 1:
                # All load the same buffers; DDP would send them at each pass and keep those that a method has replaced.
                names = [name for name, _ in model.named_buffers()]
                DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
                set_seed(self.seed, device_specific=True)  # or dropout would hit the same places in every process
            use_cache, model.config.use_cache = model.config.use_cache, False
            hooks.started = hooks.saved = time.perf_counter()
            self._running = trainer
            try:
                checkpoint = self._resumed(trainer)
                if checkpoint is None and start:
                    checkpoint = begin_later(trainer, start, folder)
                trainer.train(resume_from_checkpoint=checkpoint)
            finally:
                for report in reports:
                    report.close()
                self._running = None
                model.config.use_cache = use_cache
        torch.manual_seed(self.seed)
        model.eval()
        after = f"the last of {steps} steps of {self.title}"
        require_finite(model, after, chosen.learning_rate, steps, hooks.tokens_done)
        log = TrainingLog(
            steps, hooks.tokens_done, hooks.seconds, hooks.last_loss, hooks.seconds_before, hooks.peak_before
        )
        self.log = self.log + log if self.log else log
        return log

    def _batch(self, items: list[Encoded], blank: Encoded) -> dict[str, Tensor]:
        tokens = sum(len(item.input_ids) for item in items if item is not blank)
        return collate(items, self.data.pad_token_id) | {"tokens": torch.tensor([tokens])}

    def _resumed(self, trainer: _CheckedTrainer) -> str | None:
        """Return the checkpoint to go on from, the same in all processes, after taking all but the Trainer's own."""
        hooks = trainer.hooks
        if hooks.resumable is None:
            return None
        main = trainer.args.process_index == 0
        newest = [hooks.resumable.newest(hooks.facts) if main else None]
        if main:
            hooks.resumable.clear(newest[0][0] if newest[0] else None)
        if process_count() > 1:
            broadcast_object_list(newest)
        if newest[0] is None:
            return None
        path, used = newest[0]
        hooks.tokens_done, hooks.seconds_before = used.tokens, used.seconds
        hooks.peak_before = used.peak_memory_bytes
        if hooks.state is not None:
            hooks.state.load_state_dict(torch.load(path / _STATE, map_location="cpu", weights_only=True))
        if main:
            hooks.resumable.put_back(path)
        return str(path)

    def whole(self, model: Any) -> Any:
        """Return the model that was trained last, or None; see `methods.base.Trainer.whole`."""
        if not is_sharded(model):
            return model
        if self._skeleton is None:
            raise TypeError("the sharded model was not trained here")
        gathered: Any = collect(model, self._skeleton)
        if gathered is not None:
            gathered.config, gathered.generation_config = model.config, model.generation_config
        return gathered

    def shrink(self, parameter: nn.Parameter, index: Tensor) -> bool:
        """Shrink a parameter and its optimizer's state, in one process alone; see `methods.base.Trainer.shrink`."""
        if self._running is None:
            return shrink_parameter(parameter, index)
        if self._running.accelerator.num_processes > 1:
            return False  # others hold copies or parts of it, and buckets of its gradients
        return shrink_parameter(parameter, index, self._running.optimizer)
