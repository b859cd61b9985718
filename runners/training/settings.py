"""How one training run is done, and what of that is part of a stage's identity."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...foundation.errors import UserError

Placement = Literal["device", "fsdp2", "host-moments", "8-bit"]
"""Where a training keeps what belongs to its weights.

    device          weights, gradients and moments on the device, in float32
    fsdp2           each of several GPUs holds a share of the three
    host-moments    weights and gradients on the GPU, AdamW's moments in pinned host memory, the same arithmetic
    8-bit           AdamW's moments in 8 bits on the GPU; other arithmetic, so another stage key
"""
HASHED_PLACEMENTS: tuple[Placement, ...] = ("8-bit",)


class TrainSettings(BaseModel):
    """How one training run is done; every field of it is part of the stage's identity.

    Attributes:
        steps: optimizer steps; takes precedence over ``epochs``. 0 leaves the run out.
        epochs: passes over the training set, used where ``steps`` is None.
        learning_rate: peak of the schedule.
        batch_size: examples per optimizer step, over all devices.
        micro_batch_size: examples per forward pass; smaller than ``batch_size`` accumulates gradients.
        schedule: transformers' name of the learning-rate schedule.
        warmup: share of the steps with a rising learning rate.
        optimizer: transformers' name of the optimizer; recipes say ``adamw_torch``, on a GPU ``adamw_torch_fused``.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        max_length: longest example in tokens; longer ones are left out and counted. None takes the task's own.
        gradient_checkpointing: trade time for memory.
        precision: ``float32``, ``bfloat16`` (autocast over float32 weights) or ``auto``: bfloat16 on a GPU.
        placement: where weights, gradients and moments are (`placement`); a plan chooses it by the machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=0)
    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int = Field(default=8, ge=1)
    schedule: str = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    optimizer: str = "adamw_torch"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int | None = Field(default=None, ge=8)
    gradient_checkpointing: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    placement: Placement = "device"

    def hashed(self) -> dict[str, Any]:
        """Return what is part of a stage's key: all but placements that leave the numbers as they are."""
        return self.model_dump(exclude=set() if self.placement in HASHED_PLACEMENTS else {"placement"})

    def unplaced(self) -> TrainSettings:
        """Return the settings without a placement that leaves the numbers as they are."""
        return self if self.placement in HASHED_PLACEMENTS else self.model_copy(update={"placement": "device"})

    def total_steps(self, examples: int) -> int:
        """Return the optimizer steps over a training set of that many examples."""
        if self.steps is not None:
            return self.steps
        per_epoch = -(-examples // self.batch_size)
        return max(1, round(per_epoch * self.epochs))

    def split(self, processes: int = 1) -> tuple[int, int]:
        """Return (examples per forward pass of a process, passes before an update) that make up the batch of them all.

        Raises:
            UserError: the batch cannot be divided.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest:
            fitting = ", ".join(str(n) for n in range(2, 17) if self.batch_size % n == 0)
            raise UserError(
                f"the batch size {self.batch_size} cannot be divided among {processes} processes; set num_processes to "
                f"a divisor ({fitting or 'none'}), or --batch-size to a multiple of {processes}"
            )
        micro = min(self.micro_batch_size, share)
        if processes > 1:
            micro = max(size for size in range(1, micro + 1) if share % size == 0)
        if share % micro:
            raise UserError(
                f"the batch size {self.batch_size} is no multiple of the micro batch size {micro}; choose a divisor"
            )
        return micro, share // micro
