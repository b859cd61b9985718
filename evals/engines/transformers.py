"""Generation and scoring with transformers: any causal model, on CPU or GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ...foundation.errors import UserError
from ...models.footprint import check_batch, context_length
from ...models.loading import load_model, load_tokenizer
from ...models.token_scores import TokenScorer
from .base import (
    NOT_FINITE,
    Completion,
    Engine,
    Progress,
    Sampling,
    Scored,
    check_lengths,
    engines,
    eos_ids,
    finish,
    stop_found,
    token_batches,
)


@engines.register("transformers")
class TransformersEngine(Engine):
    """Batched generation with a key-value cache; log-probabilities in float32.

    Args:
        checkpoint: folder or hub id.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (the checkpoint's own).
        device: a torch device such as ``cpu`` or ``cuda``.
        revision: commit of a hub id.
    """

    unread = 1

    def __init__(
        self, checkpoint: str | Path, dtype: str = "auto", device: str = "cpu", revision: str | None = None
    ) -> None:
        self._files = checkpoint, revision or ""
        self._take(load_model(*self._files, dtype, device))

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> TransformersEngine:
        """Wrap a loaded model where it is; training mode is switched off while the engine works and then restored."""
        engine = cls.__new__(cls)
        engine._take(model)
        engine.tokenizer = tokenizer
        return engine

    def _take(self, model: Any) -> None:
        self.model = model
        self.context_length = context_length(model.config)
        self._scorer = TokenScorer(model)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's, loaded when something is generated: a large one takes seconds, and scoring needs none."""
        return load_tokenizer(*self._files)

    def close(self) -> None:
        """Free the model."""
        self.model = None
        del self._scorer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Continue each prompt; batches are made of prompts of similar length, longest first."""
        check_lengths(prompts, sampling.max_new_tokens, self.context_length)
        longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
        config, kind = self.model.config, self.model.dtype
        check_batch(config, kind.itemsize, str(self.model.device), min(batch_size, len(prompts)), longest)
        torch.manual_seed(sampling.seed)
        eos = eos_ids(self.tokenizer, self.model.generation_config) | {*sampling.stop_ids}
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        results: dict[int, Completion] = {}
        with _evaluating(self.model):
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                completions = self._generate_batch([prompts[i] for i in batch], sampling, eos)
                results.update(zip(batch, completions, strict=True))
                if progress:
                    progress(len(results), len(prompts))
        return [results[index] for index in range(len(prompts))]

    def _generate_batch(self, prompts: list[Sequence[int]], sampling: Sampling, eos: set[int]) -> list[Completion]:
        device = self.model.device
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad_id(), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            # Padded on the left: generation continues from the last column, which has to be every prompt's end.
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        greedy = sampling.temperature == 0
        # Without top_k 0, transformers would sample from the 50 likeliest tokens only.
        choice = {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        stops = [_StopStrings(self.tokenizer, prompts, sampling.stop, width)] if sampling.stop else []
        output = self.model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=not greedy,
            num_beams=1,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(eos) or None,
            pad_token_id=self._pad_id(),
            stopping_criteria=StoppingCriteriaList(stops),
            logits_processor=LogitsProcessorList([_FiniteLogits()]),
            use_cache=True,
            **choice,
        )
        generated = zip(prompts, output[:, width:].tolist(), strict=True)
        return [finish(self.tokenizer, prompt, ids, sampling.stop, eos) for prompt, ids in generated]

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Score every token but the first; see `continuation_logprobs`."""
        return self.continuation_logprobs(sequences, [1] * len(sequences), batch_size, progress)

    @torch.inference_mode()
    def continuation_logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Score sequences in right-padded batches of similar length; softmax in float32, logits block by block.

        Which tokens are scored decides where logits are made at all; see `TokenScorer`.
        """
        check_lengths(sequences, 0, self.context_length)
        return [scored.logprobs for scored in self._scored(sequences, starts, batch_size, progress)]

    @torch.inference_mode()
    def score_continuations(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Scored]:
        """Score as `continuation_logprobs` does; a sequence may have one id more than the context, its last one."""
        check_lengths(sequences, 0, self.context_length + self.unread)
        return self._scored(sequences, starts, batch_size, progress)

    def _scored(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int, progress: Progress | None
    ) -> list[Scored]:
        results: dict[int, Scored] = {}
        with _evaluating(self.model):
            for batch in token_batches(list(map(len, sequences)), batch_size):
                scored = self._score_batch([sequences[i] for i in batch], [starts[i] for i in batch])
                results.update(zip(batch, scored, strict=True))
                if progress:
                    progress(len(results), len(sequences))
        return [results[index] for index in range(len(sequences))]

    def _score_batch(self, sequences: list[Sequence[int]], starts: list[int]) -> list[Scored]:
        device = self.model.device
        width = max(map(len, sequences))
        ids = torch.zeros(len(sequences), width, dtype=torch.long)  # padded with any token: none that is scored sees it
        mask, is_scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
            # Padded on the right: under a causal mask no token sees what follows, so positions stay those of one row.
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
            is_scored[row, start : len(sequence)] = True
        inputs = ids.to(device), mask.to(device), is_scored.to(device)
        scores, best = self._scorer.judge(*inputs, context=self.context_length)
        counts = is_scored.sum(1).tolist()
        parts = zip(scores.cpu().split(counts), best.cpu().split(counts), strict=True)
        return [Scored(part.tolist(), bool(likeliest.all())) for part, likeliest in parts]

    def _pad_id(self) -> int:
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(pad if pad is not None else eos if eos is not None else 0)


class _FiniteLogits(LogitsProcessor):
    """Refuses logits from which no token can be chosen: the largest of NaN is always token 0, without an error."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch × vocabulary) as they are; a `UserError` where a row's largest is not finite."""
        if not torch.isfinite(scores.amax(-1)).all():
            raise UserError(NOT_FINITE)
        return scores


class _StopStrings(StoppingCriteria):
    """Ends a row once a stop string is in its completion.

    Args:
        tokenizer: the model's.
        prompts: ids of each row's prompt, without padding.
        stops: the stop strings.
        width: of the padded prompts; what is behind it is generated.
    """

    def __init__(self, tokenizer: Any, prompts: Sequence[Sequence[int]], stops: tuple[str, ...], width: int) -> None:
        self.tokenizer, self.prompts, self.stops, self.width = tokenizer, prompts, stops, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return one bool per row of ``input_ids`` (batch × tokens): whether it is done."""
        generated = zip(self.prompts, input_ids[:, self.width :].tolist(), strict=True)
        done = [stop_found(self.tokenizer, prompt, ids, self.stops) for prompt, ids in generated]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _evaluating:
    """Context: the model in evaluation mode and without the generation settings that its authors ship.

    Those may hold a temperature or a repetition penalty, and what is generated has to depend on `Sampling` alone.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was_training, self.shipped = self.model.training, self.model.generation_config
        self.model.generation_config = GenerationConfig()
        self.model.eval()

    def __exit__(self, *exc: object) -> None:
        self.model.train(self.was_training)
        self.model.generation_config = self.shipped
