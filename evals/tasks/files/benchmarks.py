"""Benchmarks that a task file describes, put together from the parts that built-in ones are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

from ....foundation.errors import UserError
from ....foundation.progress import Progress
from ...base import Benchmark, EvalSettings, Metric, Outcome, benchmarks
from ...data.datasets import Rows
from ...engines.base import Engine
from ...grading import text as grading
from ...grading.metrics import Verdict, rate
from ...grading.sandbox.programs import Job
from ...kinds.choice import ChoiceBenchmark, Judged
from ...kinds.code import CodeBenchmark, tested_names, unfence
from ...kinds.generative import GenerativeBenchmark, Scored
from ...kinds.likelihood import Likelihood, Pair
from ...kinds.perplexity import PerplexityBenchmark
from ..chat import Conversation
from ..prompts import encode_prompt
from .problems import card_of, problems
from .prompting import asked, style_name, uses_chat
from .schema import AnyBenchmark, Bleu, Code, GeneratedPart, Json, TaskFile

RULES_VERSION = 1
CONVERSATIONS_VERSION = 2
"""Of choices behind conversations; version 1 scored them behind the messages' JSON."""


class FileBenchmark(Benchmark):
    """What benchmarks of task files share.

    Attributes:
        definition, part: the task file, and the benchmark's part of it.
    """

    definition: ClassVar[TaskFile]
    part: ClassVar[Any]

    def data(self, settings: EvalSettings) -> Rows:
        """Return the problems."""
        return problems(self.definition, self.part)

    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Measure, and keep the data card."""
        outcome = super().evaluate(engine, settings, progress)  # type: ignore[safe-super]
        outcome.details["data"] = asdict(card_of(self.data(settings)))
        return outcome

    def prompt_of(self, row: Mapping[str, Any], settings: EvalSettings) -> str:
        """Return the prompt of a problem, the same at both stages."""
        return asked(self.definition, Conversation(row["messages"]), settings.chat)

    def part_identity(self) -> dict[str, Any]:
        """Return what of the part decides a result besides the problems; no path is in it."""
        # What these decide is in the problems, whose hash is part of the identity, or in the benchmark's name.
        left_out = {"name", "data", "revision", "config", "split", "delimiter", "columns", "instruction"}
        fields: dict[str, Any] = self.part.model_dump(mode="json", exclude=left_out, by_alias=True)
        return fields | {"prompt": self.definition.prompt, "version": RULES_VERSION}

    def problem_id(self, row: Mapping[str, Any], index: int) -> str:
        """Return the line or row of the file."""
        return str(row["id"])


class _Generated(FileBenchmark, GenerativeBenchmark):
    """A benchmark of generated answers with one scorer, named as its kind."""

    part: ClassVar[GeneratedPart]

    def variant(self, settings: EvalSettings) -> str:
        """Name shots and prompt."""
        return f"{self.name}-0shot-{style_name(self.definition, settings.chat)}"

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return one prompt per problem."""
        return [self.prompt_of(row, settings) for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """Return the part's."""
        return self.part.stop

    def max_new_tokens(self, settings: EvalSettings) -> int:
        """Return the limit of a completion's tokens."""
        return settings.max_new_tokens or self.part.max_new_tokens

    def headline(self, settings: EvalSettings) -> str:
        """Return the one scorer."""
        return str(self.part_kind())

    def part_kind(self) -> str:
        """Return the kind of the part, which names the scorer."""
        kind: str = self.part.kind  # type: ignore[attr-defined]
        return kind

    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return the part's fields and versions."""
        return self.part_identity() | {"text": grading.RULES_VERSION}

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem without a prompt."""
        return {"id": "", "messages": [{"role": "user", "content": ""}], "answers": [gold]}

    def score(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], settings: EvalSettings
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Score one text after the other."""
        return [self._score(row, text) for row, text in zip(rows, texts, strict=True)], {}

    def _score(self, row: Mapping[str, Any], text: str) -> Scored:
        kind, gold = self.part_kind(), [self._reference(answer) for answer in row["answers"]]
        extra = {"gold": gold[0] if len(gold) == 1 else " | ".join(gold)}
        try:
            answer = grading.extract(self.part.extract, text)
        except TimeoutError:
            return Scored({kind: None}, {kind: "timeout"}, extra | self._graded("", gold))
        verdict = self._verdict(answer, gold)
        return Scored({kind: answer}, {kind: verdict}, extra | self._graded(answer or "", gold))

    def _reference(self, answer: str) -> str:
        try:
            return grading.extract(self.part.extract, answer) or answer.strip()
        except TimeoutError:
            return answer.strip()

    def _verdict(self, answer: str | None, gold: Sequence[str]) -> Verdict:
        if answer is None:
            return "no-answer"
        same: Callable[[str], str] = str.strip if self.part_kind() == "exact" else grading.normalise
        return "correct" if same(answer) in map(same, gold) else "wrong"

    def _graded(self, answer: str, gold: Sequence[str]) -> dict[str, Any]:
        return {}


class TextBenchmark(_Generated):
    """Answers that equal a reference: exactly, normalised, or what a regular expression finds."""


class GradedBenchmark(_Generated):
    """Answers with a score in 0..1: F1, ROUGE or BLEU; the verdict says whether they equal a reference, normalised."""

    names: ClassVar[tuple[str, ...]] = ("f1",)
    """Metrics; the first one is the headline."""

    def _graded(self, answer: str, gold: Sequence[str]) -> dict[str, Any]:
        return {"scores": {"f1": max(grading.f1(answer, reference) for reference in gold)}}

    def _metrics(self, rows: Sequence[Any], scored: Sequence[Scored], count: int, headline: str) -> list[Metric]:
        metrics = [replace(metric, headline=False) for metric in super()._metrics(rows, scored, count, headline)]
        return [*self._means(scored, count), *metrics]

    def _means(self, scored: Sequence[Scored], count: int) -> list[Metric]:
        means = []
        for index, name in enumerate(self.names):
            values = [float(result.extra["scores"][name]) for result in scored]
            per_problem = [sum(values[i : i + count]) / count for i in range(0, len(values), count)]
            means.append(rate(name, per_problem, headline=index == 0))
        return means


class RougeBenchmark(GradedBenchmark):
    """ROUGE-L, and ROUGE-1 and ROUGE-2 beside it."""

    names = ("rougeL", "rouge1", "rouge2")

    def _graded(self, answer: str, gold: Sequence[str]) -> dict[str, Any]:
        return {"scores": grading.rouge(answer, gold)}


class BleuBenchmark(GradedBenchmark):
    """BLEU of all answers together; of several samples, the first of each problem counts."""

    part: ClassVar[Bleu]

    def _graded(self, answer: str, gold: Sequence[str]) -> dict[str, Any]:
        return {"hypothesis": answer, "references": list(gold)}

    def _means(self, scored: Sequence[Scored], count: int) -> list[Metric]:
        first = scored[::count]
        answers, references = zip(*((r.extra["hypothesis"], r.extra["references"]) for r in first), strict=True)
        value, low, high = grading.bleu(answers, references, self.part.tokenize)
        return [Metric("bleu", value, low, high, len(first))]


class JsonBenchmark(_Generated):
    """JSON that the schema allows; where rows have a reference answer, `equal` says whether it is the same value."""

    part: ClassVar[Json]

    def _score(self, row: Mapping[str, Any], text: str) -> Scored:
        assert isinstance(self.part.schema_, dict)
        try:
            answer = grading.extract(self.part.extract, text if self.part.extract else grading.json_block(text))
        except TimeoutError:
            return Scored({"json": None}, {"json": "timeout"}, {})
        verdict, why = grading.json_verdict(answer or "", self.part.schema_)
        verdicts: dict[str, Any] = {"json": verdict}
        extra: dict[str, Any] = {"detail": why}
        if row["answers"]:
            verdicts["equal"] = _equal_json(answer, row["answers"][0])
            extra["gold"] = row["answers"][0]
        return Scored({"json": answer} | ({"equal": answer} if row["answers"] else {}), verdicts, extra)

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem without a prompt."""
        return {**super().reference_row(gold), "answers": [gold] if gold else []}


def _equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, but true is not 1, as Python has it."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _equal_json(answer: str | None, reference: str) -> Verdict:
    try:
        return "correct" if _equal(grading.load_json(answer or ""), grading.load_json(reference)) else "wrong"
    except (ValueError, RecursionError):
        return "no-answer"


class ProgramBenchmark(FileBenchmark, CodeBenchmark):
    """Python programs that pass the row's asserts, in the sandbox."""

    part: ClassVar[Code]

    variant = _Generated.variant
    prompts = _Generated.prompts
    stops = _Generated.stops
    max_new_tokens = _Generated.max_new_tokens

    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return the part's fields and what programs are judged by."""
        return {**super().rules(settings), **self.part_identity()}

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem with these asserts."""
        tested_names(gold)
        return {"id": "", "messages": [{"role": "user", "content": ""}], "tests": gold}

    def job(self, row: Mapping[str, Any], text: str, settings: EvalSettings) -> Job:
        """Judge the code by the row's asserts."""
        return Job(unfence(text), row["tests"] + "\n", tested_names(row["tests"]))


class LikeliestBenchmark(FileBenchmark, ChoiceBenchmark):
    """Multiple choice by likelihood, after the prompt that generation would have."""

    def variant(self, settings: EvalSettings) -> str:
        """Name shots and prompt."""
        return f"{self.name}-0shot-{style_name(self.definition, settings.chat)}"

    def scorer(self) -> str:
        """Return the headline's."""
        return str(self.part.headline)

    def rules(self) -> Mapping[str, Any]:
        """Return the part's fields too."""
        return {**super().rules(), **self.part_identity()}

    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return what a result depends on; conversations have a version of their own."""
        chat = {"conversations": CONVERSATIONS_VERSION} if uses_chat(self.definition, settings.chat) else {}
        return {**super().identity(settings), **chat}

    def requests(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[list[Pair]]:
        """Return each problem's prompt with each choice, behind a space where the prompt ends in none."""
        requests = []
        for row in rows:
            prompt = self.prompt_of(row, settings)
            apart = "" if isinstance(prompt, Conversation) or prompt[-1:].isspace() else " "
            requests.append([(prompt, apart + choice) for choice in row["choices"]])
        return requests

    def judge_rows(self, rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[Likelihood]]) -> list[Judged]:
        """Take the likeliest choice, and the likeliest per character."""
        judged = []
        for row, row_scores in zip(rows, scores, strict=True):
            values = [score.value for score in row_scores]
            per_character = [v / len(c) for v, c in zip(values, row["choices"], strict=True)]
            chosen = {"acc": _largest(values), "acc_norm": _largest(per_character)}
            verdicts = {name: "correct" if index == row["gold"] else "wrong" for name, index in chosen.items()}
            judged.append(Judged(verdicts, chosen[self.scorer()], row["gold"], {}))
        return judged

    def metrics(self, rows: Sequence[Mapping[str, Any]], judged: Sequence[Judged]) -> list[Metric]:
        """Return shares of right answers."""
        return [
            rate(name, [float(p.verdicts[name] == "correct") for p in judged], headline=name == self.scorer())
            for name in ("acc", "acc_norm")
        ]


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


class TextsBenchmark(FileBenchmark, PerplexityBenchmark):
    """Perplexity, one window a text: BOS and the text's tokens, cut to the window."""

    def describe(self, window: int) -> str:
        """Name the window."""
        return f"{self.name}-bos-{window}"

    def windows(self, tokenizer: Any, texts: Sequence[str], window: int) -> list[list[int]]:
        """Cut each text."""
        return [encode_prompt(tokenizer, text)[:window] for text in texts]


_CLASSES: dict[str, type[FileBenchmark]] = {
    **dict.fromkeys(("exact", "match", "regex"), TextBenchmark),
    "f1": GradedBenchmark,
    "rouge": RougeBenchmark,
    "bleu": BleuBenchmark,
    "json": JsonBenchmark,
    "code": ProgramBenchmark,
    "choice": LikeliestBenchmark,
    "perplexity": TextsBenchmark,
}


def add_benchmark(definition: TaskFile, part: AnyBenchmark) -> None:
    """Make a task file's benchmark known in this process.

    Raises:
        UserError: another benchmark has its name.
    """
    base, name = _CLASSES[part.kind], definition.benchmark_name(part)
    fields: dict[str, Any] = {"definition": definition, "part": part, "__doc__": f"{part.kind} of a task file."}
    if part.kind == "perplexity":
        fields["window"] = part.window
    try:
        benchmarks.add_made(name, type(base.__name__, (base,), {**fields, "__module__": __name__}))
    except UserError as error:
        raise UserError(f"{error} for the task or for its benchmark '{part.name}'") from error


def task_files(chosen: Iterable[Benchmark]) -> tuple[str, ...]:
    """Return the task files of benchmarks as JSON with absolute paths, one for each task; built-in ones have none."""
    definitions = [benchmark.definition for benchmark in chosen if isinstance(benchmark, FileBenchmark)]
    return tuple(dict.fromkeys(definition.model_dump_json(by_alias=True) for definition in definitions))
