"""transformers' ``generate`` with a static cache, timed."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers

from ...models.loading import load_model, load_skeleton
from .spec import SpeedSpec, Timing


def prepare(spec: SpeedSpec) -> None:
    """Import what loading the model imports."""
    load_skeleton(spec.folder)


class TransformersRun:
    """A loaded model whose greedy generation is timed; end-of-sequence tokens do not end a completion.

    Args:
        spec: what to load, and the lengths.
    """

    def __init__(self, spec: SpeedSpec) -> None:
        self._spec = spec
        self._model: Any = load_model(spec.folder, dtype=spec.dtype, device=spec.device)
        self._model.generation_config = transformers.GenerationConfig()  # what its authors ship decides nothing here
        self.version = str(transformers.__version__)

    def warm_up(self, batch: int) -> None:
        """Run a batch untimed; on a GPU at full length, since `generate` compiles for the cache's size."""
        self._generate(batch, self._spec.new_tokens if self._spec.device.startswith("cuda") else 2)

    def time(self, batch: int) -> Timing:
        """Time one batch."""
        started, first, ended = self._generate(batch, self._spec.new_tokens)
        # The first token of each row is part of the time to the first token.
        tokens = batch * (self._spec.new_tokens - 1)
        return Timing(batch, first - started, tokens / (ended - first))

    @torch.inference_mode()
    def _generate(self, batch: int, new_tokens: int) -> tuple[float, float, float]:
        ids = torch.tensor(self._spec.prompts(batch, self._model.config.vocab_size)).to(self._spec.device)
        static = getattr(self._model, "_can_compile_fullgraph", False)
        clock = _FirstToken(self._synchronize)
        # Kernels run behind the program: without waiting on both sides the clock would measure their launch.
        self._synchronize()
        started = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
            cache_implementation="static" if static else None,
        )
        self._synchronize()
        return started, clock.at, time.perf_counter()

    def _synchronize(self) -> None:
        if self._spec.device.startswith("cuda"):
            torch.cuda.synchronize(self._spec.device)


class _FirstToken(transformers.StoppingCriteria):
    """Stops nothing; notes when the first token of every row was there."""

    def __init__(self, synchronize: Any) -> None:
        self._synchronize, self.at = synchronize, 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if not self.at:
            self._synchronize()
            self.at = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
