"""vLLM's engine in this process, stepped and timed."""

from __future__ import annotations

import time
from typing import Any

from ...foundation.memory import free_share
from ...models.configs import load_config
from ...models.footprint import token_bytes
from ...models.loading import DTYPES
from .spec import SpeedSpec, Timing

_BLOCK_TOKENS = 128
_SPARE_BYTES = 32 << 20


def prepare(spec: SpeedSpec) -> None:
    """Import what loading the model imports, and make factorised folders known."""
    from vllm import LLM  # noqa: F401 - vllm imports its parts when they are asked for

    from ...models import vllm_plugin

    vllm_plugin.register()  # where the package is only on the path, no entry point leads to it


class VllmRun:
    """A vLLM engine whose steps are timed.

    Prefix caching is off, since the prompts of warm-up and measurement are the same. The key-value cache has room for
    the largest batch and no more, so that the peak memory is the model's. On a CPU nothing is compiled, which there
    costs half a minute and gains nothing; elsewhere vLLM decides.

    Args:
        spec: what to load, and the lengths.
    """

    def __init__(self, spec: SpeedSpec) -> None:
        import vllm

        self._spec, self._vllm, self._runs = spec, vllm, 0
        config = load_config(spec.folder)
        self._vocabulary = config.vocab_size
        length, batch = spec.prompt_tokens + spec.new_tokens, max(spec.batch_sizes)
        self._engine: Any = vllm.LLM(
            model=spec.folder,
            trust_remote_code=False,
            dtype=spec.dtype,
            skip_tokenizer_init=True,
            enforce_eager=spec.device == "cpu",
            enable_prefix_caching=False,
            max_model_len=length,
            max_num_seqs=batch,
            # All prompts of the largest batch fit into one step.
            max_num_batched_tokens=max(2048, batch * spec.prompt_tokens),
            kv_cache_memory_bytes=_cache_bytes(config, spec, batch),
            **({} if spec.device == "cpu" else {"gpu_memory_utilization": free_share(spec.device)}),
            disable_log_stats=True,
            seed=0,
        ).llm_engine
        self.version = str(vllm.__version__)

    def warm_up(self, batch: int) -> None:
        """Run a batch untimed."""
        self._steps(batch, min(3, self._spec.new_tokens))

    def time(self, batch: int) -> Timing:
        """Time one batch."""
        started, first, ended, before = self._steps(batch, self._spec.new_tokens)
        return Timing(batch, first - started, (batch * self._spec.new_tokens - before) / (ended - first))

    def _steps(self, batch: int, new_tokens: int) -> tuple[float, float, float, int]:
        """Return start, first tokens of all, end, and how many tokens there were when all had their first."""
        from vllm.sampling_params import RequestOutputKind

        params = self._vllm.SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._runs += 1
        counts: dict[str, int] = {}
        first, before = 0.0, 0
        started = time.perf_counter()
        for number, ids in enumerate(self._spec.prompts(batch, self._vocabulary)):
            self._engine.add_request(f"{self._runs}-{number}", {"prompt_token_ids": ids}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                counts[output.request_id] = counts.get(output.request_id, 0) + len(output.outputs[0].token_ids)
            # vLLM mixes prompts and decoding in one step: the clock of decoding starts when every prompt has its token.
            if not first and len(counts) == batch:
                first, before = time.perf_counter(), sum(counts.values())
        if sum(counts.values()) != batch * new_tokens:
            raise RuntimeError(f"vLLM gave {sum(counts.values())} tokens, {batch * new_tokens} were asked for")
        return started, first, time.perf_counter(), before


def _cache_bytes(config: Any, spec: SpeedSpec, batch: int) -> int:
    token = token_bytes(config, DTYPES[spec.dtype].itemsize)
    blocks = -(-(spec.prompt_tokens + spec.new_tokens) // _BLOCK_TOKENS) + 1
    return token * batch * blocks * _BLOCK_TOKENS + _SPARE_BYTES
