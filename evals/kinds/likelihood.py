"""How likely a model finds a continuation after a context, through any engine.

Texts become ids as lm-evaluation-harness makes them for its `hf` models (`lm_eval/api/model.py`, `TemplateLM`, and
`lm_eval/models/huggingface.py`), so that numbers can be compared with published ones:

- spaces that end the context belong to the continuation;
- context and continuation are tokenised as one text, and the continuation's ids are those behind as many ids as the
  context alone has;
- the tokenizer adds what it adds by itself: one BOS for Llama, Mistral, OPT, Gemma; none for GPT-2, Pythia, Qwen. That
  differs from this package's other prompts, which get a BOS wherever the tokenizer has one;
- an empty context becomes one BOS, or the end-of-sequence token where there is no BOS;
- what does not fit the model's context is cut from the left, BOS included. Here a sequence fits if all of it does; the
  reference needs no place for the last id, so that it cuts one id less.

A context that is a conversation is encoded as for generation instead: what the tokenizer's chat template makes of it,
and the continuation apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...foundation.errors import UserError
from ..base import Progress
from ..continuation import encode_continuation
from ..engines.base import Engine, check_finite
from ..tasks.chat import Conversation, encode_conversation

ENCODING_VERSION = 1
"""Raised whenever texts become other ids; part of every stage's identity."""

Pair = tuple[str, str]
"""A context, which may be empty, and a continuation, which may not."""


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a continuation in nats, the number of its tokens, and how many ids were cut from the left."""

    value: float
    tokens: int
    cut: int = 0

    @property
    def per_token(self) -> float:
        """Mean log-likelihood of a token."""
        return self.value / self.tokens


def encode_pair(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of its continuation; the first list is never empty.

    Raises:
        UserError: the continuation has no token, or an empty context cannot be written with this tokenizer.
    """
    if isinstance(context, Conversation):
        answer = encode_continuation(tokenizer, continuation)
        return _checked(encode_conversation(tokenizer, context), answer, continuation)
    if not context:
        return _behind_start(tokenizer, continuation)
    stripped = context.rstrip()
    if not stripped:
        raise ValueError("a context must not be all spaces; pass an empty one")
    # As lm-evaluation-harness: the border lies where the context alone, without its closing spaces, ends in tokens, so
    # that a space goes to the continuation, whose first token usually has it.
    whole = tokenizer.encode(context + continuation, verbose=False)
    start = len(tokenizer.encode(stripped, verbose=False))
    return _checked(whole[:start], whole[start:], continuation)


def _behind_start(tokenizer: Any, continuation: str) -> tuple[list[int], list[int]]:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("this tokenizer has neither a BOS nor an end-of-sequence token to start a text with")
    ids = tokenizer.encode(continuation, add_special_tokens=False, verbose=False)
    # As lm-evaluation-harness: a continuation that begins with this token by itself gives it to the context.
    return _checked([start], ids[1:] if ids[:1] == [start] else ids, continuation)


def _checked(context: list[int], continuation: list[int], text: str) -> tuple[list[int], list[int]]:
    if not continuation:
        raise UserError(f"this tokenizer makes no token of its own out of {text[:40]!r}; the text cannot be scored")
    return context, continuation


def likelihoods(
    engine: Engine, pairs: Sequence[Pair], batch_size: int, progress: Progress | None = None
) -> list[Likelihood]:
    """Score each continuation after its context; equal sequences are sent once.

    Args:
        engine: the model.
        pairs: contexts and continuations.
        batch_size: most sequences at once; fewer where they are long.
        progress: called with (sequences done, sequences in all).

    Raises:
        UserError: a continuation alone is longer than the model's context, or the model gives no finite numbers.
    """
    limit = engine.context_length
    sequences: dict[tuple[int, ...], int] = {}
    positions: list[tuple[int, int, int]] = []
    for context, continuation in pairs:
        head, tail = encode_pair(engine.tokenizer, context, continuation)
        # Equal is too long as well: the first id of a continuation needs one before it.
        if len(tail) >= limit:
            raise UserError(
                f"a continuation has {len(tail)} tokens but the model's context is {limit}: {continuation[:60]!r}; "
                "use a model with a longer context"
            )
        ids = head + tail
        cut = max(len(ids) - limit, 0)
        position = sequences.setdefault(tuple(ids[cut:]), len(sequences))
        positions.append((position, len(tail), cut))
    # Of equal sequences that were cut in two at other places, the longest continuation is scored.
    scored = [0] * len(sequences)
    for position, count, _ in positions:
        scored[position] = max(scored[position], count)
    starts = [len(ids) - count for ids, count in zip(sequences, scored, strict=True)]
    scores = engine.continuation_logprobs(list(sequences), starts, batch_size, progress)
    check_finite(scores)
    return [Likelihood(math.fsum(scores[position][-count:]), count, cut) for position, count, cut in positions]
