"""Log-probabilities of given tokens, without the logits of a whole batch at once.

At a vocabulary of 262,144 the float32 logits of one window of 2,048 tokens are 2 GiB. Here the body of the model runs
once for a batch, and its head for a block of positions at a time, only at positions whose next token is scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOGIT_BYTES = 128 << 20
"""Most bytes of a block of logits, counted in float32; products of few rows are slower a row."""

_SOFTMAX_BYTES = 4 << 20  # of float32 logits that go through softmax at once on a CPU: what its caches hold
_PROBE = 2, 8  # sequences and tokens on which both ways are compared


def block_rows(config: Any) -> int:
    """Return how many positions have their logits made at once, from a model's transformers configuration."""
    return max(1, LOGIT_BYTES // (4 * int(config.get_text_config().vocab_size)))


class TokenScorer:
    """Scores tokens with one causal language model.

    The body's hidden states are made once. Then the model's own ``forward`` runs for each block of positions, with the
    body replaced by one that returns these positions' hidden states: a head of any kind, its bias, soft caps and scales
    are the model's own code. That needs logits which depend on the body's last hidden state, position by position, and
    on nothing else. It is checked once, on a few tokens, against the logits of an ordinary forward pass; a model that
    fails has all its logits made at once.

    Args:
        model: a transformers model in evaluation mode. It is changed while it scores, and restored afterwards.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._body: nn.Module | None = None
        self._checked = False

    @property
    def in_blocks(self) -> bool:
        """Whether logits are made block by block; known after the first `score`."""
        return self._body is not None

    def score(self, ids: Tensor, mask: Tensor, scored: Tensor) -> Tensor:
        """Return natural-log probabilities of tokens, float32 (number of scored tokens,); see `judge`."""
        return self.judge(ids, mask, scored)[0]

    def judge(self, ids: Tensor, mask: Tensor, scored: Tensor, context: int | None = None) -> tuple[Tensor, Tensor]:
        """Return natural-log probabilities of tokens given those before them, and whether each is the likeliest.

        The softmax is computed in float32, whatever dtype the model's logits have.

        Args:
            ids: int64 (sequences, tokens), padded on the right.
            mask: int64 of that shape, 1 where a token is no padding.
            scored: bool of that shape, which tokens are scored; a sequence's first token cannot be.
            context: most tokens of a sequence that the model reads; one more can be scored, which is not read.

        Returns:
            float32 and bool, each (number of scored tokens,), sequence by sequence.
        """
        sequence, token = scored.nonzero(as_tuple=True)
        if not len(sequence):
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        targets = ids[sequence, token]
        ids, mask = ids[:, :context], mask[:, :context]
        if not self._checked:
            self._body, self._checked = self._find_body(ids, mask), True
        # The logits at one position are those of the next token; a row is a position of the flattened batch.
        rows = sequence * ids.shape[1] + token - 1
        if self._body is None:
            logits = self._logits(ids, mask)
            return _gather(logits, rows, targets)
        size = block_rows(self.model.config)
        blocks: list[tuple[Tensor, Tensor]] = []
        with _in_blocks(self._body) as shown:
            for block, expected in zip(rows.split(size), targets.split(size), strict=True):
                shown.rows = block
                blocks.append(_gather(self._logits(ids, mask), None, expected))
        return _joined(blocks)

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits of a forward pass, sequence by sequence: (positions, vocabulary)."""
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits.flatten(0, 1)

    def _find_body(self, ids: Tensor, mask: Tensor) -> nn.Module | None:
        """Return the module whose last hidden state alone makes the logits, None where no module does."""
        ids, mask = ids[: _PROBE[0], : _PROBE[1]], mask[: _PROBE[0], : _PROBE[1]]
        expected = self._logits(ids, mask)
        # Neither in order nor all at once, so that a model that mixes positions behind its body shows it.
        rows = mask.flatten().nonzero()[:, 0].flip(0)
        for body in _bodies(self.model):
            try:
                with _in_blocks(body) as shown:
                    parts = []
                    for block in rows.split(max(1, len(rows) // 2)):
                        shown.rows = block
                        parts.append(self._logits(ids, mask))
                    # Another number of calls means that a pass does not run this module exactly once.
                    fine = shown.calls == len(parts) and _agree(torch.cat(parts), expected[rows])
            except Exception:  # foreign code may do anything with a body's output
                continue
            if fine:
                return body
        return None


class _Shown:
    """What a replaced body returns: of its one real output, the hidden states of `rows` as one sequence.

    Attributes:
        rows: positions in the flattened batch, int64.
        calls: how often the body was called.
    """

    def __init__(self, forward: Any) -> None:
        self._forward = forward
        self._output: Any = None
        self.rows, self.calls = torch.zeros(0, dtype=torch.long), 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self._output is None:
            self._output = self._forward(*args, **options)
        hidden = self._output.last_hidden_state.flatten(0, 1)[self.rows]
        return type(self._output)(**{**self._output, "last_hidden_state": hidden[None]})


@contextmanager
def _in_blocks(body: nn.Module) -> Iterator[_Shown]:
    """Context: the module runs once, and each call returns the rows that are asked for by then."""
    own = body.__dict__.get("forward")  # accelerate puts one there
    shown = _Shown(body.forward)
    body.forward = shown
    try:
        yield shown
    finally:
        if own is None:
            del body.forward
        else:
            body.forward = own


def _bodies(model: Any) -> Iterator[nn.Module]:
    """Yield modules that may be all of a model but its head: OPT calls its decoder, most others their base model."""
    decoder, base = getattr(model, "get_decoder", lambda: None)(), getattr(model, "base_model", None)
    for body in dict.fromkeys([decoder, base, *model.children()]):
        if isinstance(body, nn.Module) and body is not model:
            yield body


def _agree(blocks: Tensor, whole: Tensor) -> bool:
    """Whether logits are equal up to the rounding of products of other shapes."""
    if blocks.shape != whole.shape:
        return False
    eps = torch.finfo(whole.dtype).eps
    # NaN and infinite logits must not make the tolerance; they are compared below as they are.
    scale = whole.float().nan_to_num(0, 0, 0).abs().max()
    tolerance = float(scale) * (64 * eps if eps < 1e-5 else 4 * eps)
    return torch.allclose(blocks.float(), whole.float(), rtol=0, atol=tolerance, equal_nan=True)


def _gather(logits: Tensor, rows: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of one token a row, in float32, and whether it is the row's likeliest.

    Few rows are in float32 at a time.

    Args:
        logits: (positions, vocabulary), any floating-point dtype.
        rows: which positions, None for all in order.
        targets: int64, a token for each.
    """
    most = _SOFTMAX_BYTES if logits.device.type == "cpu" else LOGIT_BYTES
    size = max(1, torch.get_num_threads(), most // (4 * logits.shape[-1]))
    some = logits.split(size) if rows is None else (logits[chosen] for chosen in rows.split(size))
    parts = []
    for part, tokens in zip(some, targets.split(size), strict=True):
        scores = part.float().log_softmax(-1)
        parts.append((scores.gather(1, tokens[:, None])[:, 0], _is_argmax(scores, tokens)))
    return _joined(parts)


def _is_argmax(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return whether a row's `argmax` is its token.

    On a CPU `argmax` takes longer than the softmax, and the largest value alone a tenth of it. Of equal scores, which
    are common in bfloat16, `argmax` takes the first, so that those before the token decide.

    Args:
        scores: float32 (rows, vocabulary).
        tokens: int64 (rows,).
    """
    if scores.device.type != "cpu":
        return scores.argmax(-1) == tokens
    largest = scores.amax(-1)
    best = scores.gather(1, tokens[:, None])[:, 0] == largest
    for row in best.nonzero()[:, 0].tolist():
        token = int(tokens[row])
        best[row] = token == 0 or bool(scores[row, :token].amax() < largest[row])
    return best


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    scores, best = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(best)
