"""What the tasks of lm-evaluation-harness ask a model for, before it is asked: the longest request, and the sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..base import EvalSettings
from .loading import Loaded
from .model import encode, render_chat, sampling_of


class Counted(NamedTuple):
    """Of an evaluation; see `runners.estimates.lengths.EvaluationLengths`.

    Attributes:
        requests: prompts, windows, or options with their contexts.
        tokens: of all of them.
        scored: tokens of all of them whose likelihood is asked for.
        written: most tokens of all completions.
    """

    requests: float
    tokens: float
    scored: float
    written: float


def request_texts(
    loaded: Loaded, settings: EvalSettings, chat: bool, tokenizer: Any, context: int
) -> Iterator[tuple[str, int | None]]:
    """Yield each request's text, and how many tokens are generated behind it; None for a text read in windows."""
    for task in loaded.tasks["tasks"].values():
        for request in _requests(task, chat, tokenizer, settings.limit):
            if request.request_type == "loglikelihood_rolling":
                yield request.args[0], None
            elif request.request_type == "generate_until":
                yield request.args[0], sampling_of(request.args[1], context, settings.max_new_tokens).max_new_tokens
            else:
                yield "".join(request.args), 0


def count_tokens(
    loaded: Loaded, settings: EvalSettings, chat: bool, tokenizer: Any, context: int, problems: int
) -> Counted:
    """Return what an evaluation reads, scores and generates, by its first problems.

    Args:
        loaded: what is evaluated.
        settings: how.
        chat: whether prompts are rendered with the chat template.
        tokenizer: the model's.
        context: of the model, in tokens.
        problems: how many are looked at in all, at least one of each member.
    """
    tasks = loaded.tasks["tasks"]
    few, sums = max(1, problems // len(tasks)), [0.0, 0.0, 0.0, 0.0]
    for task in tasks.values():
        count = min(len(task.eval_docs), settings.limit or len(task.eval_docs))
        share = count / max(1, min(few, count))
        for request in _requests(task, chat, tokenizer, min(few, count)):
            times = share * (request.repeats or 1)
            for position, tokens in enumerate(_counted(request, settings, tokenizer, context)):
                sums[position] += times * tokens
    return Counted(*sums)


def _counted(request: Any, settings: EvalSettings, tokenizer: Any, context: int) -> Counted:
    prompt_tokens = len(encode(tokenizer, request.args[0]))
    if request.request_type == "loglikelihood_rolling":
        return Counted(-(-prompt_tokens // context), prompt_tokens, prompt_tokens, 0)
    if request.request_type == "generate_until":
        new = sampling_of(request.args[1], context, settings.max_new_tokens).max_new_tokens
        return Counted(1, min(prompt_tokens, context - new), 0, new)
    both = min(len(encode(tokenizer, "".join(request.args))), context)
    # Tokenised together, context and option may have no more tokens than the context alone.
    return Counted(1, both, max(1, both - prompt_tokens), 0)


def _requests(task: Any, chat: bool, tokenizer: Any, limit: int | None) -> list[Any]:
    task.build_all_requests(
        limit=limit,
        rank=0,
        world_size=1,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=(
            (lambda messages, add_generation_prompt=True: render_chat(tokenizer, messages, add_generation_prompt))
            if chat
            else None
        ),
        tokenizer_name=str(tokenizer.name_or_path) if chat else "",
    )
    requests: list[Any] = task.instances
    return requests
