"""Failures of generated answers by kind, with a few examples whose prompts are made again from the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evals.base import EvalSettings, benchmarks
from ...evals.samples import Sample
from ...evals.tasks.chat import is_chat_variant
from ...evals.tasks.prompts import prompt_sha256
from ...foundation.errors import UserError
from ...runners.task_files import know_task_of
from .answers import CORRECT, Answers
from .data import Counted, Example, Failures
from .lineage import Lineage, Rows

EXAMPLES = 2
"""Examples of each kind of failure on the page."""
KINDS_WITH_EXAMPLES = 6
LONGEST = 1500
"""Characters of a prompt or completion on the page; longer ones lose their middle."""


@dataclass(frozen=True)
class _Source:
    """Where a failing line came from."""

    label: str
    ratio: float
    seed: int
    key: str
    line: Sample


def failures(rows: Rows, answers: Mapping[str, Answers], lineage: Lineage, data: Path | None) -> tuple[Failures, ...]:
    """Count failures of every row and ratio, and choose examples.

    Examples of a kind come from the rows where it is most frequent, each from another row where there are several.

    Args:
        rows: headline records.
        answers: by evaluate key.
        lineage: the stages, for the folder of the data.
        data: folder with local datasets; None takes the run's own.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["stage_key"] in answers and answers[row["stage_key"]].counts and answers[row["stage_key"]].graded:
            title = f"{row['variant']} ({row['scorer']})" if row["scorer"] else row["variant"]
            groups.setdefault(title, []).append(row)
    return tuple(_counted(title, part, answers, lineage, data) for title, part in groups.items())


def _counted(title: str, rows: Rows, answers: Mapping[str, Answers], lineage: Lineage, data: Path | None) -> Failures:
    counts: dict[tuple[str, float], Counter[str]] = {}
    sources: dict[str, list[_Source]] = {}
    for row in rows:
        part, column = answers[row["stage_key"]], (row["shown"], row["ratio_target"])
        counts.setdefault(column, Counter()).update(part.counts)
        for kind, lines in part.examples.items():
            sources.setdefault(kind, []).extend(_Source(*column, row["seed"], row["stage_key"], line) for line in lines)
    total: Counter[str] = sum(counts.values(), Counter())
    kinds = tuple(kind for kind, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])) if kind != CORRECT)
    counted = tuple(Counted(*column, part.total(), dict(sorted(part.items()))) for column, part in counts.items())
    some = kinds[:KINDS_WITH_EXAMPLES]
    chosen = [(kind, source) for kind in some for source in _choose(sources[kind], kind, counts)]
    return Failures(title, kinds, counted, tuple(_examples(chosen, lineage, data)))


def _choose(sources: Sequence[_Source], kind: str, counts: Mapping[tuple[str, float], Counter[str]]) -> list[_Source]:
    def negative_share(source: _Source) -> float:
        part = counts[source.label, source.ratio]
        return -part[kind] / part.total()

    ordered = sorted(sources, key=negative_share)
    chosen: list[_Source] = []
    for source in ordered:
        new_row = all(source.label != other.label for other in chosen)
        new_problem = all(source.line["problem"] != other.line["problem"] for other in chosen)
        if len(chosen) < EXAMPLES and new_row and new_problem:
            chosen.append(source)
    # Where too few rows or problems have the kind, an example of the same one is better than none.
    chosen += [source for source in ordered if source not in chosen][: EXAMPLES - len(chosen)]
    return chosen


def _examples(chosen: Sequence[tuple[str, _Source]], lineage: Lineage, data: Path | None) -> list[Example]:
    prompts = _prompts([source for _, source in chosen], lineage, data)
    examples = []
    for (kind, source), prompt in zip(chosen, prompts, strict=True):
        line = source.line
        completion = str(line.get("completion", ""))
        answer = line.get("answers", {}).get(line["scorer"])
        verdict = " · ".join(str(text) for text in (line["verdicts"][line["scorer"]], line.get("detail")) if text)
        texts = (prompt, completion, str(line.get("gold", "")), str(answer or ""), verdict)
        prompt, completion, gold, answer, verdict = (_shortened(text) for text in texts)
        problem = str(line["problem"])[:100]
        examples.append(
            Example(kind, source.label, source.ratio, source.seed, problem, prompt, completion, gold, answer, verdict)
        )
    return examples


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _prompts(sources: Sequence[_Source], lineage: Lineage, data: Path | None) -> list[str]:
    """Return the prompt of each line, or an empty text where today's data do not give the very prompt.

    Lines of lm-evaluation-harness's tasks have the end of their prompt with them.
    """
    prompts_of: dict[tuple[str, str, str, str], dict[str, str]] = {}
    texts = []
    for source in sources:
        line = source.line
        folder = str(data or _data_folder(lineage, source.key))
        group = str(line["benchmark"]), str(line["variant"]), str(line["stage"]), folder
        if group not in prompts_of:
            problems = {str(s.line["problem"]) for s in sources if s.line["benchmark"] == line["benchmark"]}
            know_task_of(lineage.root / source.key)
            prompts_of[group] = _prompts_of_stage(*group, problems)
        text = prompts_of[group].get(str(line["problem"]), "")
        texts.append(text if text and _same(text, line) else str(line.get("prompt", "")))
    return texts


def _same(text: str, line: Sample) -> bool:
    # A likelihood's requests are hashed in parts, so their joined text cannot be checked.
    return "loglikelihoods" in line or prompt_sha256([text]) == line["prompt_sha256"]


def _data_folder(lineage: Lineage, key: str) -> str:
    record = lineage.stage(key)
    return str(record.execution.data or "") if record else ""


def _prompts_of_stage(name: str, variant: str, stage: str, folder: str, problems: set[str]) -> dict[str, str]:
    from ...runners.training.data import DATA_SEED

    try:
        benchmark: Any = benchmarks.get(name)()
        # A folder that is not there, rather than None, which would ask the hub: a report never reads the network.
        settings = EvalSettings(
            data_dir=Path(folder or "no-data-folder"),
            stage="pretrained" if stage == "pretrained" else "finetuned",
            seed=DATA_SEED,
            chat=is_chat_variant(variant),
        )
        rows = benchmark.data(settings).rows
        chosen = {benchmark.problem_id(row, index): row for index, row in enumerate(rows)}
        return {key: str(benchmark.prompts([chosen[key]], settings)[0]) for key in sorted(problems & chosen.keys())}
    except (UserError, AttributeError):
        return {}
