"""Scores of free text against references: equality, F1, ROUGE, BLEU, JSON schemas. Words of any script count."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import regex

RULES_VERSION = 2
"""Raised whenever a text gets another score."""

MATCH_SECONDS = 1.0
"""Longest search of a user's regular expression in one completion; beyond it the verdict is ``timeout``."""

_PUNCTUATION = regex.compile(
    r"""(?<![\p{L}\p{N}])[-\u2212\u2013](?=[.,]?\p{N})(*SKIP)(*FAIL)   # the minus of a number stays
    | (?<=\p{N})[.,:/](?=\p{N})(*SKIP)(*FAIL)                         # so does what is inside one,
    | (?<=\p{N})%(*SKIP)(*FAIL) | (?<=\p{L})\#(*SKIP)(*FAIL)          # a percent sign, the # of C#,
    | [\p{P}\p{Sk}]                                                  # and symbols: +, <, =, $, emoji""",
    regex.VERBOSE,
)
_MINUS = regex.compile(r"(?<![\p{L}\p{N}])[\u2212\u2013](?=[.,]?\p{N})")
_WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}]|[\p{L}\p{M}\p{N}]+")
"""Scripts without spaces between words count by characters."""


def normalise(text: str) -> str:
    """Return text without case, punctuation and superfluous spaces (NFKC, case folded).

    What makes another answer of it stays: symbols (``C++``, ``<``, ``$``), and of numbers the sign, the percent sign
    and what is between digits. A text of nothing but punctuation is itself.
    """
    folded = _MINUS.sub("-", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_PUNCTUATION.sub(" ", folded).split()) or "".join(folded.split())


def words(text: str) -> list[str]:
    """Return the words of a text, normalised."""
    return [str(word) for word in _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())]


def extract(pattern: str | None, text: str) -> str | None:
    """Return the last match of a regular expression, or of its first group; without one the text, stripped.

    Raises:
        TimeoutError: the search takes too long.
    """
    if pattern is None:
        return text.strip() or None
    last = None
    for match in regex.finditer(pattern, text, timeout=MATCH_SECONDS):
        last = match
    if last is None:
        return None
    group = last[1] if last.re.groups else last[0]
    return (group or "").strip() or None


def f1(answer: str, reference: str) -> float:
    """Return the F1 of the words that both have, as SQuAD counts them; where one has none, whether both are equal."""
    left, right = Counter(words(answer)), Counter(words(reference))
    if not left or not right:
        return float(normalise(answer) == normalise(reference))
    shared = (left & right).total()
    return 2 * shared / (left.total() + right.total())


class _Words:
    def tokenize(self, text: str) -> list[str]:
        """Return the words, for rouge-score, whose own tokenizer knows Latin letters alone."""
        return words(text)


ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, each of the reference that suits best."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(list(ROUGE), tokenizer=_Words()).score_multi(list(references), answer)
    return {name: float(scores[name].fmeasure) for name in ROUGE}


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> tuple[float, float, float]:
    """Return the BLEU of a whole set in 0..1 and its 95 % interval by sacrebleu's bootstrap over the problems.

    Args:
        answers: one for each problem.
        references: of each problem, one or more.
        tokenize: sacrebleu's tokenizer.
    """
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, references))
    # A stream has a reference for each answer. Repeating one changes neither clipped counts nor the closest length.
    streams = [[row[min(index, len(row) - 1)] for row in references] for index in range(most)]
    metric = BLEU(tokenize=tokenize)
    value = min(metric.corpus_score(list(answers), streams).score / 100, 1.0)  # a perfect one is a last bit above
    if len(answers) < 2:
        return value, 0.0, 1.0
    resampled: Any = metric.corpus_score(list(answers), streams, n_bootstrap=1000)
    half = resampled._ci / 100  # sacrebleu prints it and offers it in no other way
    if value in (0.0, 1.0):  # each resample is as the set; of so many problems 5 % would show another with this chance
        half = max(half, 1.0 - 0.05 ** (1 / len(answers)))
    return value, max(0.0, min(value, value - half)), min(1.0, value + half)


def json_block(text: str) -> str:
    """Return the content of the first Markdown code block, whose language is none or JSON; the text where none is."""
    _, fence, behind = text.partition("```")
    language, line_end, block = behind.partition("\n")
    if not fence or not line_end or language.strip().lower() not in ("", "json"):
        return text
    return block.partition("```")[0]


def load_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none; NaN and infinities, which Python reads, are none.
        RecursionError: it is nested too deeply.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def json_verdict(text: str, schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return a verdict on a text as JSON, and why it is not right: ``no-answer`` where it is none."""
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = load_json(text)
    except (ValueError, RecursionError) as error:
        return "no-answer", str(error)[:200]
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        # An empty registry, so that a schema fetches nothing.
        broken = next(iter(kind(schema, registry=Registry()).iter_errors(value)), None)
    except (Unresolvable, RecursionError) as problem:
        return "wrong", f"the schema cannot be applied: {problem}"[:200]
    return ("correct", "") if broken is None else ("wrong", f"{broken.json_path}: {broken.message}"[:200])


def _points(schema: Any, reference: str) -> bool:
    """Return whether a reference such as ``#/$defs/name`` (RFC 6901, in the form of a URI) leads to a part."""
    part = schema
    for name in unquote(reference[2:]).split("/"):
        key = name.replace("~1", "/").replace("~0", "~")
        if isinstance(part, Mapping) and key in part:
            part = part[key]
        elif isinstance(part, list) and key.isdigit() and int(key) < len(part):
            part = part[int(key)]
        else:
            return False
    return True


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise a `ValueError` where a JSON schema is none, or needs another document."""
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"at {error.json_path} {error.message}") from None
    waiting: list[Any] = [schema]
    inside, has_parts_of_their_own = list[str](), False
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            has_parts_of_their_own |= item is not schema and "$id" in item  # what references there are relative to
            reference = item.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise ValueError(f"it refers to another document ({reference}), which is not fetched")
            if isinstance(reference, str) and reference.startswith("#/"):
                inside.append(reference)
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    missing = next((ref for ref in inside if not has_parts_of_their_own and not _points(schema, ref)), None)
    if missing:
        raise ValueError(f"it refers to {missing}, which it does not have")
