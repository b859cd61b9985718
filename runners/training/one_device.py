"""Training on one device, however many are visible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import transformers


@dataclass
class OneDeviceArguments(transformers.TrainingArguments):
    """Training arguments of a process that trains alone on the device that was named, and on no other.

    transformers would take ``cuda:0`` whatever was asked for, and where it sees several GPUs wrap the model in
    DataParallel, which multiplies the batch.
    """

    named_device: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        super()._setup_devices  # noqa: B018 - builds the state that is corrected here
        kind, _, index = self.named_device.partition(":")
        device, self._n_gpu = torch.device(kind), 0
        if kind == "cuda":
            device, self._n_gpu = torch.device(kind, int(index or 0)), 1
            torch.cuda.set_device(device)
        self.distributed_state.device = device  # accelerate's
        return device
