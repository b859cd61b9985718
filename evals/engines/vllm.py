"""Generation and scoring with vLLM: continuous batching and a paged cache; the fastest engine on a GPU."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.memory import free_memory, free_share
from ...models.configs import load_config
from ...models.footprint import Footprint, footprint
from ...models.generation_defaults import read_generation_defaults
from ...models.hub import fetch_model
from ...models.loading import load_tokenizer
from .base import (
    Completion,
    Engine,
    Progress,
    Sampling,
    Scored,
    check_finite,
    check_lengths,
    engines,
    eos_ids,
    finish,
    stop_found,
)

_CPU_SEQUENCES, _GPU_SEQUENCES = 64, 1024  # most that run side by side; two cores gain nothing from more
_QUEUE = 1024  # most requests that vLLM holds at a time: as many as run, so that its scheduler always has the next one
_BLOCK_TOKENS = 128  # at least vLLM's block size: a sequence's last block may be nearly empty
_CPU_CACHE_BYTES = 4 << 30
_LOGIT_BYTES = 1 << 30
_OWN_BYTES = 3 << 30  # activations, graphs and copies of logits beside weights and cache

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine has a process of its own already
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores: OMP_NUM_THREADS says how many each has
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # see max_model_len
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@engines.register("vllm")
class VllmEngine(Engine):
    """vLLM inside this process, whose environment it changes; run it through `HostedEngine`.

    Args:
        checkpoint: folder or hub id.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (the checkpoint's own; vLLM's own ``auto`` would halve float32).
        device: ``cpu`` or ``cuda``; vLLM takes the first GPU that it sees, so `HostedEngine` shows it one.
        revision: commit of a hub id.
        longest: most tokens of a sequence that will be asked for; memory is reserved for that, and more is not taken.
            None is the model's context.
    """

    reserves = True

    def __init__(
        self,
        checkpoint: str | Path,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        longest: int | None = None,
    ) -> None:
        os.environ.update(_ENVIRONMENT)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the size given below
        from vllm import LLM

        from ...models.vllm_plugin import register

        register()
        config = load_config(checkpoint, revision or "").get_text_config()
        needs = footprint(checkpoint, revision or "", dtype, None if _positions_depend_on_length(config) else longest)
        self.tokenizer = load_tokenizer(checkpoint, revision or "")
        self.context_length, self._longest = needs.context, needs.sequence
        self._eos = eos_ids(self.tokenizer, read_generation_defaults(checkpoint, revision or "")[0])
        self._llm: Any = LLM(
            model=str(fetch_model(checkpoint, revision or "", weights=True)),
            trust_remote_code=False,
            skip_tokenizer_init=True,
            dtype=needs.dtype,
            **reservation(needs, device),
            # The logits of every prompt token of a step are held at once when they are scored.
            max_num_batched_tokens=max(512, min(8192, _LOGIT_BYTES // (4 * config.vocab_size))),
            # An upper bound: a sequence starts where its tokens have room in the cache. There are two copies of the
            # logits of the next tokens.
            max_num_seqs=min(_sequences(device), max(1, _LOGIT_BYTES // (8 * config.vocab_size))),
            enable_prefix_caching=True,
            generation_config="vllm",  # what authors ship, such as a repetition penalty, must have no effect
            enforce_eager=device == "cpu",  # compiling takes half a minute there and gains nothing
            seed=0,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Continue each prompt; vLLM decides how many side by side, not ``batch_size``. Sampling is seeded per prompt.

        What is drawn for a prompt depends on the seed, its tokens and how often they came before, not on the others.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._check(prompts, sampling.max_new_tokens)
        stops, eos = sampling.stop, self._eos | {*sampling.stop_ids}
        kind = RequestOutputKind.DELTA if stops else RequestOutputKind.FINAL_ONLY
        seeds = _seeds(prompts, sampling.seed)

        def params(index: int) -> Any:
            greedy = sampling.temperature == 0
            choice = {} if greedy else {"top_p": sampling.top_p, "seed": seeds[index]}
            return SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_new_tokens,
                ignore_eos=True,  # `stop_token_ids` has them all
                stop_token_ids=sorted(eos),
                detokenize=False,
                logprobs=0,  # of the chosen token alone, to be checked
                output_kind=kind,
                **choice,
            )

        results: list[Completion | None] = [None] * len(prompts)
        generated: dict[int, list[int]] = {}
        done = 0
        for index, output, cancel in self._run(prompts, params):
            ids = generated.setdefault(index, [])
            new_output = output.outputs[0]
            ids.extend(new_output.token_ids)
            check_finite(
                [[entry[token].logprob for entry, token in zip(new_output.logprobs, new_output.token_ids, strict=True)]]
            )
            if not output.finished:
                if not stop_found(self.tokenizer, prompts[index], ids, stops):
                    continue
                cancel()
            results[index] = finish(self.tokenizer, prompts[index], generated.pop(index), stops, eos)
            done += 1
            if progress:
                progress(done, len(prompts))
        return [completion for completion in results if completion is not None]

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Score sequences; softmax in float32. As in `generate`, ``batch_size`` has no effect."""
        scored = self.score_continuations(sequences, [1] * len(sequences), batch_size, progress)
        return [score.logprobs for score in scored]

    def score_continuations(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Scored]:
        """Score the last ids of sequences, of which vLLM says the rank too; see `logprobs`."""
        from vllm import SamplingParams

        self._check(sequences, 0)
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        results = [Scored([], True) for _ in sequences]
        done = 0
        for index, output, _ in self._run(sequences, lambda _: params):
            if output.finished:
                start = starts[index]
                pairs = zip(output.prompt_logprobs[start:], sequences[index][start:], strict=True)
                entries = [entry[token] for entry, token in pairs]
                results[index] = Scored(
                    [float(entry.logprob) for entry in entries], all(entry.rank == 1 for entry in entries)
                )
                done += 1
                if progress:
                    progress(done, len(sequences))
        return results

    def _check(self, sequences: Sequence[Sequence[int]], new_tokens: int) -> None:
        check_lengths(sequences, new_tokens, self.context_length)
        most = max(map(len, sequences), default=0) + new_tokens
        if most > self._longest:
            raise ValueError(f"{most} tokens were asked for, but memory was reserved for {self._longest} (`longest`)")

    def _run(
        self, prompts: Sequence[Sequence[int]], params: Callable[[int], Any]
    ) -> Iterator[tuple[int, Any, Callable[[], None]]]:
        """Yield (index of the prompt, its new output, what cancels it) until all are finished or cancelled."""
        from vllm import TokensPrompt

        engine = self._llm.llm_engine
        waiting, running = deque(range(len(prompts))), set[int]()

        def cancel(index: int) -> None:
            engine.abort_request([str(index)])
            running.discard(index)

        try:
            while waiting or running:
                while waiting and len(running) < _QUEUE:
                    index = waiting.popleft()
                    engine.add_request(str(index), TokensPrompt(prompt_token_ids=list(prompts[index])), params(index))
                    running.add(index)
                for output in engine.step():
                    index = int(output.request_id)
                    if index not in running:
                        continue
                    if output.finished:
                        running.discard(index)
                    yield index, output, lambda index=index: cancel(index)  # type: ignore[misc]
        finally:
            if running:
                engine.abort_request([str(index) for index in running])

    def close(self) -> None:
        """Free the model and the cache."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()


def reservation(needs: Footprint, device: str) -> dict[str, Any]:
    """Return vLLM's arguments that say how much memory it takes.

    Raises:
        UserError: see `cache_bytes`.
    """
    settings = {
        # vLLM wants room for one new token behind every prompt, also where a full window is only scored. That token is
        # never fed back, so no position beyond the context is used.
        "max_model_len": needs.sequence + 1,
        "kv_cache_memory_bytes": cache_bytes(needs, device),
    }
    # Before it loads, vLLM refuses a GPU of which less than this share is free, 0.92 by default, whatever it will take.
    return settings if device == "cpu" else settings | {"gpu_memory_utilization": free_share(device)}


def cache_bytes(needs: Footprint, device: str) -> int:
    """Return the size of the key-value cache: all sequences side by side at full length, within free memory.

    Raises:
        UserError: not even one sequence of the longest length that will be asked for fits.
    """
    # One block more than the tokens: a sequence's last block may be nearly empty and is still taken whole.
    sequence = needs.token * (needs.sequence + 1 + _BLOCK_TOKENS)
    free = free_memory(device)
    if device == "cpu":
        room = min(_CPU_CACHE_BYTES, (free - needs.weights) // 2)
    else:
        room = int(0.9 * free) - needs.weights - _OWN_BYTES
    # Half of what is free is a courtesy to others on the machine, not a need: one long sequence may take it all.
    if device == "cpu" and room < sequence <= free - needs.weights:
        room = sequence
    if room < sequence:
        raise UserError(
            f"vLLM needs {sequence / 2**30:.1f} GiB for keys and values of one sequence of {needs.sequence} tokens, "
            f"but {max(room, 0) / 2**30:.1f} GiB are left on {device} beside the weights; use fewer --workers, --dtype "
            "bfloat16 or --engine transformers"
        )
    return min(room, _sequences(device) * sequence)


def _positions_depend_on_length(config: Any) -> bool:
    """Whether vLLM's rotary embedding of a model is another for another ``max_model_len`` (LongRoPE, dynamic NTK)."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope_settings = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any((part.get("rope_type") or part.get("type")) in ("longrope", "su", "dynamic") for part in rope_settings)


def _sequences(device: str) -> int:
    return _CPU_SEQUENCES if device == "cpu" else _GPU_SEQUENCES


def _seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return a seed for each prompt."""
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in prompts:
        ids = tuple(prompt)
        text = f"{seed}:{seen[ids]}:{','.join(map(str, ids))}"
        seeds.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1)
        seen[ids] += 1
    return seeds
