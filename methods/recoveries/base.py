"""What a recovery is: a small frozen configuration and one verb, `recover`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict
from torch import nn

from ...foundation.strict_numbers import StrictNumbers
from ..base import Trainer, TrainingLog
from ..configured import create_part
from ..registry import recoveries

__all__ = ["Phase", "Recovery", "count_trained", "create_recovery", "recoveries"]


@dataclass(frozen=True)
class Phase:
    """One training of a recovery.

    Attributes:
        name: of what is trained.
        trained_parameters: numbers that the optimizer keeps a state for.
        log: what it used.
    """

    name: str
    trained_parameters: int
    log: TrainingLog

    def plain(self) -> dict[str, Any]:
        """Return plain data for the record."""
        log = asdict(self.log)
        used = {key: log[key] for key in ("steps", "tokens", "seconds", "loss")}
        return {"name": self.name, "trained_parameters": self.trained_parameters} | used


class Recovery(StrictNumbers, ABC):
    """What is trained of a compressed model, and how; its fields are its options.

    The model keeps its modules, shapes and dtypes, so that checkpoints of all recoveries are alike. It is trained for
    exactly the steps that are left of the common budget, on the same batches in the same order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    trains: ClassVar[bool] = True
    """Whether there is a training at all; else the compressed model itself is measured."""
    trains_sharded: ClassVar[bool] = False
    """Whether a trainer may leave only a share of the model in each process (FSDP2)."""
    freezes: ClassVar[bool] = False
    """Whether nearly all weights are frozen, so that a backward pass computes half of the products, for estimates."""

    def check(self) -> None:
        """Refuse what cannot run here, before any work.

        Raises:
            UserError: a library is missing.
        """

    @abstractmethod
    def recover(self, model: nn.Module, trainer: Trainer, steps: int, lr_scale: float, seed: int) -> list[Phase]:
        """Train in place; which parameters require a gradient is afterwards as before.

        Args:
            model: compressed, all of its parameters requiring a gradient.
            trainer: the sweep's, with data and settings.
            steps: optimizer steps in all.
            lr_scale: factor on the common learning rate.
            seed: of new numbers.
        """

    def trained_skeleton(self, model: nn.Module) -> nn.Module:
        """Return what is trained of a compressed model on the meta device, for estimates; the model is not changed.

        By default all of it. Parameters that are not trained require no gradient.
        """
        return model


def count_trained(model: nn.Module) -> int:
    """Count the parameters that require a gradient, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def create_recovery(name: str, options: Mapping[str, Any] | None = None) -> Recovery:
    """Build a recovery from its name and options.

    Raises:
        UserError: unknown recovery, unknown option or unusable value, with the nearest name or what is allowed.
    """
    recovery: Recovery = create_part(recoveries, Recovery, name, options)
    return recovery
