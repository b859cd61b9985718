"""What an engine is: token ids in, completions and log-probabilities out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...foundation.errors import UserError
from ...foundation.progress import Progress
from ...foundation.registry import Registry
from ..continuation import decode, decode_continuation


@dataclass(frozen=True)
class Sampling:
    """How to continue a prompt.

    Attributes:
        max_new_tokens: most tokens to generate.
        temperature: 0 is greedy.
        top_p: nucleus share, 1 is off.
        stop: strings that end a completion; the text is cut before the first of them.
        seed: seed of sampling.
        stop_ids: token ids that end a completion besides the model's own, such as the end of a turn.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 42
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One continuation: its tokens (end-of-sequence left out), its text cut at the stop string, and why it ended."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Scored:
    """How likely the last ids of a sequence are.

    Attributes:
        logprobs: natural-log probability of each id.
        greedy: whether each of them is the likeliest id at its place.
    """

    logprobs: list[float]
    greedy: bool


class Engine(ABC):
    """A loaded model that continues prompts and scores sequences. Use it as a context manager.

    Args of every engine: ``checkpoint`` (folder or hub id), ``dtype`` (``float32``/``bfloat16``/``auto``), ``device``,
    ``revision`` (commit of a hub id, or None).
    """

    name: ClassVar[str]
    reserves: ClassVar[bool] = False
    """Whether it is made with ``longest`` too: the most tokens of a sequence that will be asked for, or None."""
    unread: ClassVar[int] = 0
    """Ids by which a sequence may exceed the context in `score_continuations`: 1 where the last id is not read."""
    tokenizer: Any
    context_length: int

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Continue each prompt. Raises a `UserError` before work starts if a prompt plus limit exceeds the context."""

    @abstractmethod
    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Return, for each sequence of n ids, the n-1 natural-log probabilities of ids 1..n-1 given those before."""

    def continuation_logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Return the natural-log probabilities of the last ids of each sequence alone.

        An engine that can save work where few tokens are scored defines it; else they are cut out of `logprobs`.

        Args:
            sequences: ids.
            starts: for each, the index of the first id that is scored, 1 or more.
            batch_size, progress: as in `logprobs`.
        """
        longest = max(map(len, sequences), default=1)
        scored = self.logprobs(sequences, max(1, min(batch_size, BATCH_TOKENS // longest)), progress)
        return [row[start - 1 :] for row, start in zip(scored, starts, strict=True)]

    def score_continuations(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Scored]:
        """Return how likely the last ids of each sequence are, and whether greedy decoding would choose them.

        An engine that sees both in one pass defines it; else each head is continued greedily as well. Since decoding
        ends at the end of a text, a continuation with that id in it then never counts as greedy.

        Args:
            sequences: ids.
            starts: for each, the index of the first id that is scored, 1 or more.
            batch_size, progress: as in `logprobs`.
        """
        scores = self.continuation_logprobs(sequences, starts, batch_size, progress)
        tails = [tuple(ids[start:]) for ids, start in zip(sequences, starts, strict=True)]
        greedy = [False] * len(tails)
        # One call for each length, because the limit of new tokens holds for all prompts of a call.
        for length in sorted(set(map(len, tails))):
            some = [index for index, tail in enumerate(tails) if len(tail) == length]
            heads = [sequences[index][: starts[index]] for index in some]
            for index, completion in zip(some, self.generate(heads, Sampling(length), batch_size), strict=True):
                greedy[index] = completion.token_ids == tails[index]
        return [Scored(row, best) for row, best in zip(scores, greedy, strict=True)]

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


NOT_FINITE = (
    "the model's probabilities are not finite numbers, because its weights hold NaN or infinite values or its "
    "arithmetic overflows; try --dtype float32, and if that gives the same, make the checkpoint again"
)

BATCH_TOKENS = 16384
"""Most tokens, padding included, that go through a model at once when sequences are scored."""

engines: Registry[Engine] = Registry(
    "engine", "lowrank_bench.evals.engines", Path(__file__).parent, "lowrank_bench.engines"
)


def token_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of sequences that are scored together, longest first.

    Args:
        lengths: of each sequence, in tokens.
        batch_size: most sequences of a batch; with padding it has at most `BATCH_TOKENS` tokens, or one sequence.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        # The first one is the longest of its batch, and the others are padded to its length.
        size = max(1, min(batch_size, BATCH_TOKENS // max(1, lengths[order[start]])))
        yield order[start : start + size]
        start += size


def check_lengths(sequences: Sequence[Sequence[int]], new_tokens: int, context: int) -> None:
    """Raise a `UserError` if the longest sequence and what is to be generated do not fit into the context."""
    longest = max(map(len, sequences), default=0)
    if longest + new_tokens > context:
        raise UserError(
            f"the longest prompt has {longest} tokens and {new_tokens} new ones are asked for, but the model's context "
            f"is {context}; lower --max-new-tokens, or use a model with a longer context"
        )
    if any(not sequence for sequence in sequences):
        raise ValueError("an empty prompt cannot be continued; it needs at least a beginning-of-sequence token")


def check_finite(scores: Sequence[Sequence[float]]) -> None:
    """Raise a `UserError` if a log-probability is no finite number: no score can be made of it.

    Args:
        scores: log-probabilities in nats, of each sequence.
    """
    if not all(math.isfinite(score) for row in scores for score in row):
        raise UserError(NOT_FINITE)


def eos_ids(tokenizer: Any, generation_config: Any) -> set[int]:
    """Return every id that ends a sequence, of the tokenizer and of the generation config."""
    configured = getattr(generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None}


def stop_found(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Return whether a stop string is in the text of the ids behind a prompt; quick where none is near their end.

    Engines ask after every token, so a stop string that came earlier need not be found.
    """
    if not stops:
        return False
    window = max(len(stop.encode()) for stop in stops) + 4  # a token is at least one byte, a character at most four
    last = [*prompt[-window:], *ids[-window:]][-window:]
    text = decode(tokenizer, last)
    if not any(stop in text for stop in stops):
        return False
    return _first(decode_continuation(tokenizer, prompt, ids), stops) is not None


def finish(
    tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], stops: Sequence[str], eos: set[int]
) -> Completion:
    """Make a completion of generated ids: cut at the first end-of-sequence token, then at the first stop string.

    What an engine generated behind either, until it noticed, has no effect. The text is what the ids add to the prompt
    (`continuation.decode_continuation`).
    """

    def text_of(ids: Sequence[int]) -> str:
        return decode_continuation(tokenizer, prompt, ids)

    end = next((index for index, token in enumerate(ids) if token in eos), None)
    before_end = tuple(ids[:end])
    text = text_of(before_end)
    cut = _first(text, stops)
    if cut is None:
        return Completion(before_end, text, "length" if end is None else "stop")
    # Bisection for the fewest tokens that have a stop string: more tokens never lose one, and each decoding is dear.
    low, high = 1, len(before_end)
    while low < high:
        middle = (low + high) // 2
        if _first(text_of(before_end[:middle]), stops) is None:
            low = middle + 1
        else:
            high = middle
    return Completion(before_end[:low], text[:cut], "stop")


def _first(text: str, stops: Sequence[str]) -> int | None:
    return min((text.find(stop) for stop in stops if stop in text), default=None)
