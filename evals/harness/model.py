"""A model of lm-evaluation-harness over any engine of this package.

Texts become ids, sequences are cut and completions end as in the harness's own `hf` models
(`lm_eval/models/huggingface.py`), so that answers are the same item by item.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...foundation.errors import UserError
from ...foundation.progress import Progress
from ..engines.base import Engine, Sampling, Scored, check_finite
from ..kinds.harness import harness_version

NEW_TOKENS = 256
"""Longest completion where a task says nothing, as the harness's `hf` models."""

SEED = 1234
"""Of sampling, as the harness seeds torch."""

_SETTINGS = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}


def engine_model(
    engine: Engine,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> Any:
    """Return an ``lm_eval.api.model.TemplateLM`` over an engine.

    Its ``notes`` say, by task and number of the problem, what became of each request in order: ``tokens`` of the
    continuation or completion, how many ids were ``cut`` from the left, and ``finish_reason``.

    Args:
        engine: a loaded model.
        batch_size: sequences at once.
        max_new_tokens: longest completion; None takes the task's.
        progress: returns what is called for requests of a kind: ``loglikelihood``, ``loglikelihood_rolling``,
            ``generate_until``.
    """
    harness_version()
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    class EngineModel(TemplateLM):
        tokenizer = engine.tokenizer

        def __init__(self) -> None:
            super().__init__()
            self.notes: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
            self._kind = "loglikelihood"
            self._cuts: list[tuple[int, int]] = []

        @property
        def max_length(self) -> int:
            # A window of the harness has one id more than this: the token that starts its context.
            return engine.context_length + engine.unread - 1

        @property
        def eot_token_id(self) -> int:
            return int(engine.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            return start_token(engine.tokenizer)

        @property
        def tokenizer_name(self) -> str:
            return str(engine.tokenizer.name_or_path)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
            return encode(engine.tokenizer, string, add_special_tokens)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return render_chat(engine.tokenizer, chat_history, add_generation_prompt)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            self._kind = "loglikelihood"
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            for request, (tokens, cut) in zip(requests, self._cuts, strict=True):
                self._note(request, tokens, cut, "scored")
            return answers

        def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
            limit = engine.context_length + engine.unread
            sequences, starts, self._cuts = [], [], []
            for _, head, tail in requests:
                if not tail or len(tail) >= limit:
                    raise UserError(
                        f"a continuation has {len(tail)} tokens and the model's context is {engine.context_length}; "
                        "use a model with a longer context, or leave this task out"
                    )
                ids = [*head, *tail]
                cut = max(len(ids) - limit, 0)
                self._cuts.append((len(tail), cut))
                sequences.append(ids[cut:])
                starts.append(len(ids) - cut - len(tail))
            scored = _once(engine, sequences, starts, batch_size, progress(self._kind))
            check_finite([score.logprobs for score in scored])
            return [(math.fsum(score.logprobs), score.greedy) for score in scored]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            self._kind = "loglikelihood_rolling"
            windows, counts = [], []
            for request in requests:
                ids = self.tok_encode(request.args[0])
                cut = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
                mine = [(None, *utils.make_disjoint_window(window)) for window in cut]
                windows += mine
                counts.append(len(mine))
                self._note(request, len(ids), 0, "scored")
            answers = iter(self._loglikelihood_tokens(windows))
            return [sum(next(answers)[0] for _ in range(count)) for count in counts]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            groups: dict[str, list[int]] = defaultdict(list)
            for index, request in enumerate(requests):
                groups[json.dumps(request.args[1], sort_keys=True)].append(index)
            texts = [""] * len(requests)
            report, done = progress("generate_until"), 0
            for settings, members in groups.items():
                sampling = sampling_of(json.loads(settings), engine.context_length, max_new_tokens)
                # At least 1, which `sampling_of` checks: with 0 the slice below would keep the whole prompt.
                room = engine.context_length - sampling.max_new_tokens
                prompts = [self.tok_encode(requests[index].args[0]) for index in members]
                part = _part(report, done, len(requests))
                completions = engine.generate(
                    [ids[-room:] or [self.prefix_token_id] for ids in prompts], sampling, batch_size, part
                )
                done += len(members)
                for index, ids, completion in zip(members, prompts, completions, strict=True):
                    texts[index] = completion_text(engine.tokenizer, completion.token_ids, sampling.stop)
                    cut = max(len(ids) - room, 0)
                    self._note(requests[index], len(completion.token_ids), cut, completion.finish_reason)
            return texts

        def _note(self, request: Any, tokens: int, cut: int, finish_reason: str) -> None:
            note = {"tokens": tokens, "cut": cut, "finish_reason": finish_reason}
            self.notes[request.task_name, request.doc_id].append(note)

    return EngineModel()


def start_token(tokenizer: Any) -> int:
    """Return the id that comes before a text without a context: BOS, or the end-of-sequence token.

    Raises:
        UserError: the tokenizer has neither.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError("this tokenizer has neither a BOS nor an end-of-sequence token to start a text with")
    return int(start)


def encode(tokenizer: Any, text: str, add_special_tokens: bool | None = None) -> list[int]:
    """Return a text's ids with what the tokenizer adds by itself; no second BOS before a text that begins with one.

    Chat templates write the BOS.
    """
    if add_special_tokens is None:
        begun = text.startswith(tokenizer.decode(start_token(tokenizer)))
        options = {"add_special_tokens": False} if begun else {}
    else:
        options = {"add_special_tokens": add_special_tokens}
    return list(tokenizer.encode(text, verbose=False, **options))


def render_chat(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return a conversation as text; without its system message where the template takes none."""
    import jinja2

    options = {
        "tokenize": False,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": not add_generation_prompt,
    }
    try:
        return str(tokenizer.apply_chat_template(messages, **options))
    except jinja2.exceptions.TemplateError:
        turns = [message for message in messages if message["role"] != "system"]
        return str(tokenizer.apply_chat_template(turns, **options))


def sampling_of(settings: Mapping[str, Any], context: int, max_new_tokens: int | None) -> Sampling:
    """Return how a task's completions are drawn.

    Args:
        settings: ``generation_kwargs`` of the task.
        context: of the model, in tokens.
        max_new_tokens: replaces the task's own.

    Raises:
        UserError: settings that the engines do not have, or no room for a prompt.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    plain = dict(normalize_gen_kwargs(dict(settings), NEW_TOKENS))
    greedy = not plain["do_sample"] or plain.get("temperature", 0.0) == 0
    extra = sorted(plain.keys() - _SETTINGS)
    if extra:
        raise UserError(
            f"this task draws completions with {', '.join(extra)}, which the engines here do not have; they take "
            f"{', '.join(sorted(_SETTINGS))}: change generation_kwargs in a copy of its YAML and name its folder with "
            "--include-path"
        )
    new = max_new_tokens or int(plain["max_gen_toks"])
    if new >= context:
        raise UserError(
            f"this task's completions may have {new} tokens and the model's context is {context}, which leaves no room "
            "for a prompt; give a smaller --max-new-tokens"
        )
    stops = tuple(str(stop) for stop in plain["until"] if stop)
    temperature = 0.0 if greedy else float(plain["temperature"])
    return Sampling(new, temperature, float(plain.get("top_p", 1.0)), stops, SEED)


def completion_text(tokenizer: Any, ids: Sequence[int], stops: Sequence[str]) -> str:
    """Return a completion as the harness reads it: decoded alone, without special tokens, cut at the stop strings."""
    special = set(tokenizer.all_special_ids)
    # A special token may hold a stop string and is left out of the text, so that it has to be looked for among the ids.
    end = next(
        (
            index
            for index, token in enumerate(ids)
            if token in special and any(stop in tokenizer.decode([token]) for stop in stops)
        ),
        None,
    )
    text = str(tokenizer.decode(list(ids[:end]), skip_special_tokens=True))
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _once(
    engine: Engine, sequences: list[list[int]], starts: list[int], batch_size: int, progress: Progress | None
) -> list[Scored]:
    """Score each pair of a sequence and its start once."""
    positions: dict[tuple[int, tuple[int, ...]], int] = {}
    asked = [
        positions.setdefault((start, tuple(ids)), len(positions)) for ids, start in zip(sequences, starts, strict=True)
    ]
    scored = engine.score_continuations(
        [list(ids) for _, ids in positions], [start for start, _ in positions], batch_size, progress
    )
    return [scored[position] for position in asked]


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)
