"""LoRA on one factor of every layer, then on the other, merged into the factors (SVD-LLM's two phases)."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import nn

from ...foundation.errors import UserError
from ...models.factor_pairs import FactorPairs
from ..base import Trainer
from .base import Phase, Recovery, count_trained, recoveries

PHASES = (("factor_b", "lr_b"), ("factor_a", "lr_a"))
"""The linear layers of a `FactorPair` that are adapted one after the other, and the factors that they hold."""


@recoveries.register("lora")
class Lora(Recovery):
    """SVD-LLM (arXiv 2403.07378; AIoT-MLSys-Lab/SVD-LLM: ``utils/LoRA.py``, ``compress_llama.sh``).

    Phase 1 trains adapters of all second factors B with everything else frozen and merges them, phase 2 those of all
    first factors A. Half of the steps go to each phase, with a warm-up and a decay of its own, and phase 2 goes on with
    the batches that phase 1 did not come to: together they read what `full` reads. The change of a factor has at most
    rank r. Embeddings, norms, biases and matrices that stayed dense are not trained.

    Adapters are peft's. Options have its names, and the authors' values.

    Args:
        r: rank of the adapters.
        lora_alpha: their product is scaled by lora_alpha / r.
        lora_dropout: on their inputs.
        lr_scale: factor on the sweep's learning rate; the authors train at 1e-4.
    """

    freezes = True

    r: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16, gt=0, allow_inf_nan=False)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    lr_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def check(self) -> None:
        """Refuse to begin without peft."""
        if importlib.util.find_spec("peft") is None:
            raise UserError(
                "the recovery lora needs peft, which is not installed; pip install 'lowrank-bench[peft]', or take "
                "--recovery full"
            )

    def recover(self, model: nn.Module, trainer: Trainer, steps: int, lr_scale: float, seed: int) -> list[Phase]:
        """Train in place, see `Recovery.recover`."""
        phases, before = [], 0
        for number, (part, factor) in enumerate(PHASES):
            # The last phase gets the odd step; with a single step the first phase has none.
            of_phase = (steps - before) // (len(PHASES) - number)
            if of_phase == 0:
                continue
            with self._adapted(model, part, seed + number) as adapters:
                trained = count_trained(model)
                log = trainer.train(model, of_phase, lr_scale * self.lr_scale, start=before)
                adapters.merge_and_unload()
            phases.append(Phase(factor, trained, log))
            before += of_phase
        return phases

    def trained_skeleton(self, model: nn.Module) -> nn.Module:
        """Return a copy with adapters of the second factors, which take more memory than those of the first."""
        skeleton = copy.deepcopy(model)
        pairs = FactorPairs(skeleton)
        _require_factors(pairs)
        pairs.install()
        self._adapters(skeleton, pairs.names(PHASES[0][0]))
        return skeleton

    @contextmanager
    def _adapted(self, model: nn.Module, part: str, seed: int) -> Iterator[Any]:
        """Put adapters beside one factor of every factorised layer, and freeze all else, for the time of a training."""
        required = {parameter: parameter.requires_grad for parameter in model.parameters()}
        pairs = FactorPairs(model)
        _require_factors(pairs)
        pairs.install()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                adapters = self._adapters(model, pairs.names(part))
            yield adapters
        finally:
            pairs.remove()
            if hasattr(model, "peft_config"):
                del model.peft_config
            for parameter, value in required.items():
                parameter.requires_grad_(value)
                parameter.grad = None

    def _adapters(self, model: nn.Module, names: list[str]) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        chosen = LoraConfig(
            r=self.r, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout, target_modules=names, bias="none"
        )
        return LoraModel(model, {"default": chosen}, "default")


def _require_factors(pairs: FactorPairs) -> None:
    if not pairs.names(PHASES[0][0]):
        raise UserError(
            "the recovery lora trains the factors of linear layers, and this model has none (its method left all "
            "matrices dense); take --recovery full"
        )
