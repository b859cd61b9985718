"""The finetuning prompts, one for training and evaluation alike, and how text becomes token ids.

Prompt and answer are tokenised apart and joined as ids, so that generation starts from exactly the ids that training
saw, whatever the tokenizer would have merged across the border. For the same reason every template ends in a newline:
no tokenizer in use merges across it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from ...foundation.errors import UserError, unknown
from ...foundation.files import digest
from ..continuation import encode_continuation
from .chat import ASSISTANT, Conversation, Instructed, as_conversation, encode_conversation, encode_turns

PROMPT_VERSION = 2
"""Raised whenever a template or a rule of this module changes; part of every stage's identity."""

IGNORED = -100
"""Label of a token that is not learnt (torch's `ignore_index`)."""

Template = Literal["alpaca", "question", "plain"]

TEMPLATES: dict[str, str] = {
    # The wording of Stanford Alpaca, which MetaMath and Basel's finetuning use as well; the newline at its end is ours.
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
    # For small models, whose context the preamble above would fill.
    "question": "Question: {instruction}\nAnswer:\n",
    # For instructions that are a beginning to be continued, such as a function's signature and docstring.
    "plain": "{instruction}",
}


_UNBOUNDED = 2**62


class Encoded(NamedTuple):
    """One training example: token ids and labels of equal length; labels are `IGNORED` where nothing is learnt."""

    input_ids: list[int]
    labels: list[int]


def finetuning_prompt(instruction: str, template: str = "alpaca", chat: bool = False) -> str:
    """Return the prompt that a finetuned model is trained and evaluated with.

    Args:
        instruction: what is asked for.
        template: one of `TEMPLATES`.
        chat: as a conversation for the tokenizer's chat template; a ``plain`` instruction, which is continued rather
            than answered, never is one.
    """
    if template not in TEMPLATES:
        raise unknown("prompt template", template, TEMPLATES)
    if template == "plain":
        return TEMPLATES[template].replace("{instruction}", instruction)
    stripped = instruction.strip()
    prompt = Instructed(TEMPLATES[template].replace("{instruction}", stripped), stripped)
    return as_conversation(prompt) if chat else prompt


def prompt_sha256(prompts: Iterable[str]) -> str:
    """Return the sha256 over all prompts in order, as text."""
    return digest(list(prompts))


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text with exactly one beginning-of-sequence token, if the tokenizer has one.

    A conversation is what the tokenizer's chat template makes of it.
    """
    if isinstance(text, Conversation):
        return encode_conversation(tokenizer, text)
    ids = encode_plain(tokenizer, text)
    # A text may begin with the token's own name, which a tokenizer reads as the token: one is enough.
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while ids and ids[0] == bos:
        ids.pop(0)
    return [bos, *ids]


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without what the tokenizer puts around it."""
    # verbose=False: whether a text fits is checked where it is used, against the model's own context.
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def most_tokens(texts: Iterable[str], count: Callable[[str], int], limit: float = math.inf) -> int:
    """Return the most tokens of any text that has at most ``limit``; 0 where none has.

    Only texts that could have more tokens than the longest so far are tokenised.

    Args:
        texts: in any order.
        count: returns the number of tokens of a text.
        limit: texts with more tokens are passed over.
    """
    most = 0
    # By the bound, largest first: as soon as a bound is not above the longest so far, none of the rest can be longer.
    for bound, text in sorted(((_token_bound(text), text) for text in texts), reverse=True):
        if bound <= most:
            break
        length = count(text)
        most = max(most, length) if length <= limit else most
    return most


def _token_bound(text: str) -> int:
    """Return a number of tokens that no tokenizer exceeds: one a byte, and what it puts around a text.

    Normalising (NFKC) makes at most eleven bytes of one that is not ASCII (Unicode Annex 15, table 4). What a chat
    template adds to a conversation is not known.
    """
    if isinstance(text, Conversation):
        return _UNBOUNDED
    return 8 + (len(text) if text.isascii() else 11 * len(text.encode("utf-8", "surrogatepass")))


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of an answer behind its prompt, then the end-of-sequence token, if the tokenizer has one.

    Behind a prompt they read as exactly the answer, whatever the tokenizer puts before a text's first word.
    """
    ids = encode_continuation(tokenizer, text)
    return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def encode_example(tokenizer: Any, prompt: str, answer: str, max_length: int, cut: bool = False) -> Encoded | None:
    """Encode a prompt and its answer; only the answer and its end-of-sequence token are learnt.

    Returns None if the example has more than ``max_length`` tokens: a cut answer would teach a wrong ending. With
    ``cut``, for statistics, its first ``max_length`` tokens are returned instead.
    """
    if isinstance(prompt, Conversation):
        ids, labels = encode_turns(tokenizer, [*prompt.messages, {"role": ASSISTANT, "content": answer}], IGNORED)
    else:
        head, tail = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, answer)
        ids, labels = head + tail, [IGNORED] * len(head) + tail
    if len(ids) > max_length and not cut:
        return None
    return Encoded(ids[:max_length], labels[:max_length])


def encode_documents(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """Encode texts for language modelling, one example a text: BOS, text, EOS, cut to ``max_length``; all is learnt."""
    result = []
    for text in texts:
        ids = encode_prompt(tokenizer, text)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        result.append(_language_example(tokenizer, ids[:max_length]))
    return result


def encode_joined(tokenizer: Any, texts: Sequence[str], max_length: int, separator: str = "\n\n") -> list[Encoded]:
    """Encode the parts, joined by ``separator``, as examples of exactly ``max_length`` tokens; the rest is dropped.

    There is one BOS, at the very start.
    """
    ids = encode_prompt(tokenizer, separator.join(texts))
    return [_language_example(tokenizer, part) for part in _full_parts(ids, max_length)]


def joined_windows(
    tokenizer: Any, texts: Sequence[str], window: int, separator: str = "\n\n", bos: bool = False
) -> list[list[int]]:
    """Cut the parts, joined by ``separator``, into windows of exactly ``window`` token ids; the rest is dropped.

    As in GPTQ's evaluation code the text begins with a BOS where the tokenizer puts one, and later windows have none.

    Args:
        tokenizer: the model's.
        texts: the parts.
        window: length in tokens.
        separator: between two parts.
        bos: begin each window with a BOS instead, followed by ``window`` - 1 tokens of the text.

    Raises:
        UserError: ``bos`` is asked for and the tokenizer has none.
    """
    start, text = [], separator.join(texts)
    if bos:
        check_has_bos(tokenizer)
        start = [tokenizer.bos_token_id]
    ids = encode_prompt(tokenizer, text) if adds_bos(tokenizer) else encode_plain(tokenizer, text)
    if bos and ids[:1] == start:
        ids = ids[1:]
    return [start + part for part in _full_parts(ids, window - len(start))]


def _full_parts(ids: list[int], length: int) -> list[list[int]]:
    return [ids[position : position + length] for position in range(0, len(ids) - length + 1, length)]


def check_has_bos(tokenizer: Any) -> None:
    """Raise a `UserError` if a tokenizer has no beginning-of-sequence token."""
    if tokenizer.bos_token_id is None:
        raise UserError("this model's tokenizer has no BOS token to begin a window with; use --bos auto, or never")


def adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer by itself puts a beginning-of-sequence token before a text.

    Read off what it does: fast tokenizers add it by a rule of their own, whatever their ``add_bos_token`` says. Of an
    empty text one could not tell a BOS from an end-of-sequence token that is the same token.
    """
    ids = tokenizer.encode("a", verbose=False)
    return tokenizer.bos_token_id is not None and list(ids[:1]) == [tokenizer.bos_token_id]


def _language_example(tokenizer: Any, ids: list[int]) -> Encoded:
    """Learn every token but a leading BOS, which nothing predicts."""
    skip = 1 if ids and ids[0] == tokenizer.bos_token_id else 0
    return Encoded(ids, [IGNORED] * skip + ids[skip:])
