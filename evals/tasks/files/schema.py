"""What a task file may say: every field, validated, with one sentence about each."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ....foundation.strict_numbers import StrictNumbers

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PLACEHOLDER = re.compile(r"\{([^{}\n]+)\}")
STYLES = ("auto", "chat", "alpaca", "question", "plain")

_EXAMPLE = "such as tickets or my-task"


class Part(StrictNumbers):
    """Base of all parts: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Data(Part):
    """Where rows come from."""

    data: str = Field(
        min_length=1,
        description="File beside the task file (.jsonl, .csv, .tsv, .parquet; text files also .gz), or id of a hub "
        "dataset.",
    )
    revision: str | None = Field(default=None, description="Commit of a hub dataset, 40 digits; a file has none.")
    config: str | None = Field(default=None, description="Configuration of a hub dataset that has several.")
    split: str | None = Field(default=None, description="Split of a hub dataset; without it train, or test for tests.")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="Between the fields of a CSV file; without it a comma."
    )

    @field_validator("revision")
    @classmethod
    def _commit(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError(f"'{value}' is no commit; write its 40 digits, for a branch's data may change")
        return value


class TrainColumns(Part):
    """Columns of the training data."""

    text: str | None = Field(default=None, description="Column with a whole text, all of which is learnt.")
    prompt: str | None = Field(default=None, description="Column with what is asked; without it prompt.")
    completion: str | None = Field(default=None, description="Column with the answer; without it completion.")
    messages: str | None = Field(
        default=None, description="Column with a list of role and content; without it messages."
    )


class Train(Data):
    """The training data."""

    columns: TrainColumns = Field(default=TrainColumns(), description="Which column holds what.")
    form: Literal["auto", "text", "prompt-completion", "messages"] = Field(
        default="auto", description="text, prompt-completion or messages; auto goes by the columns that are there."
    )


class BenchmarkColumns(Part):
    """Columns of a benchmark's data."""

    prompt: str | None = Field(default=None, description="Column with what is asked; without it the training data's.")
    answer: str | None = Field(
        default=None, description="Column with the reference answer; without it the training data's completion."
    )
    messages: str | None = Field(default=None, description="Column with messages that end in the reference answer.")
    text: str | None = Field(default=None, description="Column with a text whose perplexity is measured.")
    choices: str | None = Field(
        default=None, description="Column with the choices: a list, JSON text, or text with | between them."
    )
    tests: str | None = Field(default=None, description="Column with asserts, as text or a list.")


class BenchmarkPart(Part):
    """What benchmarks of every kind have."""

    name: str = Field(description="Short name; in records it is TASK-NAME.")
    data: str | None = Field(
        default=None,
        description="File or hub dataset with the problems; without it the held-out part of the training data.",
    )
    revision: str | None = Field(default=None, description="Commit of a hub dataset, 40 digits.")
    config: str | None = Field(default=None, description="Configuration of a hub dataset that has several.")
    split: str | None = Field(default=None, description="Split of a hub dataset; without it test.")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="Between the fields of a CSV file; without it a comma."
    )
    columns: BenchmarkColumns = Field(default=BenchmarkColumns(), description="Which column holds what.")
    instruction: str | None = Field(
        default=None, description="Instruction with {column} for a column's text; without it the task's."
    )

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        return _checked_name(value)

    @model_validator(mode="after")
    def _source(self) -> BenchmarkPart:
        if self.data is not None:
            self.source("test")
        elif self.revision or self.config or self.split or self.delimiter:
            raise ValueError(
                "revision, config, split and delimiter are about data; name them with 'data', or leave out"
            )
        return self

    def source(self, split: str) -> Data | None:
        """Return where the problems come from, None for the held-out part."""
        if self.data is None:
            return None
        return Data(
            data=self.data,
            revision=self.revision,
            config=self.config,
            split=self.split or split,
            delimiter=self.delimiter,
        )


class GeneratedPart(BenchmarkPart):
    """What benchmarks have whose answers are generated."""

    max_new_tokens: int = Field(default=128, ge=1, le=1 << 20, description="Longest completion in tokens.")
    stop: tuple[str, ...] = Field(
        default=(), description="Texts that end a completion; the end of a text or turn does so anyhow."
    )
    extract: str | None = Field(
        default=None,
        description="Regular expression that cuts the answer out of a completion: its last match, or that match's "
        "first group.",
    )

    @field_validator("extract")
    @classmethod
    def _regular(cls, value: str | None) -> str | None:
        if value is not None:
            import regex

            try:
                regex.compile(value)
            except regex.error as error:
                raise ValueError(
                    f"'{value}' is no regular expression ({error}); write one such as 'Answer: (.+)'"
                ) from None
        return value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would end every completion at once; leave it out")
        return value


class Exact(GeneratedPart):
    """The answer equals the reference, outer spaces apart."""

    kind: Literal["exact"]


class Match(GeneratedPart):
    """The answer equals the reference without case, punctuation and spacing."""

    kind: Literal["match"]


class Regex(GeneratedPart):
    """What a regular expression finds equals the reference, compared as `match` does."""

    kind: Literal["regex"]

    @model_validator(mode="after")
    def _needs_extract(self) -> Regex:
        if self.extract is None:
            raise ValueError("a benchmark of kind regex needs 'extract', such as extract: 'Answer: (.+)'")
        return self


class F1(GeneratedPart):
    """Mean F1 of the words that answer and reference share."""

    kind: Literal["f1"]


class Rouge(GeneratedPart):
    """Mean ROUGE-L, with ROUGE-1 and ROUGE-2 beside it (rouge-score), over words of any script."""

    kind: Literal["rouge"]


class Bleu(GeneratedPart):
    """BLEU of the whole set (sacrebleu), in 0..1."""

    kind: Literal["bleu"]
    tokenize: Literal["13a", "intl", "zh", "char"] = Field(
        default="13a", description="sacrebleu's tokenizer: 13a, intl, zh (Chinese) or char."
    )


class Json(GeneratedPart):
    """The answer is JSON that a schema allows."""

    kind: Literal["json"]
    schema_: dict[str, Any] | str = Field(
        alias="schema", description="JSON schema, written here or in a file beside the task file."
    )

    model_config = ConfigDict(populate_by_name=True)


class Code(GeneratedPart):
    """The answer is a Python program that passes the row's asserts in the sandbox."""

    kind: Literal["code"]
    max_new_tokens: int = Field(default=512, ge=1, le=1 << 20, description="Longest completion in tokens.")

    @model_validator(mode="after")
    def _no_extract(self) -> Code:
        if self.extract is not None:
            raise ValueError("a program is cut out of its Markdown block by itself; leave 'extract' out")
        return self


class Choice(BenchmarkPart):
    """The likeliest of several given answers is the right one."""

    kind: Literal["choice"]
    choices: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="The choices, where all rows have the same; else name columns.choices."
    )
    headline: Literal["acc", "acc_norm"] = Field(
        default="acc", description="acc compares likelihoods, acc_norm likelihoods per character."
    )


class Perplexity(BenchmarkPart):
    """Perplexity of texts, each read from its beginning."""

    kind: Literal["perplexity"]
    window: int = Field(
        default=512, ge=2, le=1 << 20, description="Longest part of a text in tokens; the rest is left out."
    )


AnyBenchmark = Annotated[
    Exact | Match | Regex | F1 | Rouge | Bleu | Json | Code | Choice | Perplexity, Field(discriminator="kind")
]
KINDS = ("exact", "match", "regex", "f1", "rouge", "bleu", "json", "code", "choice", "perplexity")


class TaskFile(Part):
    """A whole task file."""

    name: str = Field(description="Name of the task in tables and records, such as tickets.")
    summary: str = Field(default="", max_length=200, description="One line about the task.")
    train: Train = Field(description="The training data.")
    instruction: str | None = Field(
        default=None, description="Instruction with {column} for a column's text; without it the prompt column."
    )
    system: str | None = Field(
        default=None, description="System message; in prompts that are no conversation it comes before the instruction."
    )
    prompt: str = Field(
        default="auto",
        min_length=1,
        description="How instructions become prompts: chat (the tokenizer's template), alpaca, question, plain, a text "
        "with {instruction}, or auto: chat where the tokenizer has a template, else alpaca.",
    )
    loss: Literal["answer", "all"] = Field(
        default="answer", description="What is learnt: answer (of messages: all the assistant says), or all tokens."
    )
    max_length: int = Field(
        default=512, ge=8, le=1 << 20, description="Longest example in tokens; longer ones are left out, texts are cut."
    )
    test_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of the training rows, chosen by the hash of the prompt, that benchmarks without data keep.",
    )
    benchmarks: tuple[AnyBenchmark, ...] = Field(
        min_length=1, description="What the model is measured by; the first one is the task's headline."
    )

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        return _checked_name(value)

    @field_validator("prompt")
    @classmethod
    def _style(cls, value: str) -> str:
        if value not in STYLES and "{instruction}" not in value:
            raise ValueError(
                f"'{value}' is no prompt; write one of {', '.join(STYLES)}, or a text with {{instruction}}"
            )
        unknown = [name for name in PLACEHOLDER.findall(value) if name.isidentifier() and name != "instruction"]
        if unknown:
            raise ValueError(
                f"a prompt knows {{instruction}} alone, and this one has {{{unknown[0]}}}; write columns into "
                "'instruction', which the prompt surrounds"
            )
        return value

    @model_validator(mode="after")
    def _distinct(self) -> TaskFile:
        names = [part.name for part in self.benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two benchmarks are called '{name}'; name each once")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether a part of the training data is kept for benchmarks."""
        return any(part.data is None for part in self.benchmarks)

    def benchmark_name(self, part: BenchmarkPart) -> str:
        """Return the name in records of one of the benchmarks."""
        return f"{self.name}-{part.name}"


def _checked_name(value: str) -> str:
    if not NAME.fullmatch(value) or len(value) > 60:
        raise ValueError(f"the name '{value}' is not usable; use lower-case words joined by '-', {_EXAMPLE}")
    return value
