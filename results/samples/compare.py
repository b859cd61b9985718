"""Whether two sets of samples of the same problems really differ: paired tests over problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ...evals.grading.metrics import Verdict
from ...evals.samples import Sample
from ...foundation.errors import UserError, unknown
from ...records.intervals import mean_interval
from ...records.paired import Floats, mcnemar, paired_interval, sign_flips

SIGNIFICANCE = 0.05
_SAME = 1e-9
"""Differences of shares that are nearer to each other are equal but for rounding."""
VERDICTS = get_args(Verdict)

Lines = Iterable[Sample]


@dataclass(frozen=True)
class Comparison:
    """Result of a paired comparison of A and B.

    Attributes:
        benchmark, variant, scorer: what was compared.
        problems: problems that both have; the units.
        a, b: share of right answers of each (mean over problems).
        difference: b - a.
        low, high: ends of the difference's 95 % interval.
        p_value: two-sided.
        only_a, only_b: problems that only A, only B solves (greedy samples), or solves more often.
        test: ``McNemar, exact`` or ``sign flips over problems``.
        left_out: problems that only one of them has.
        verb: what is counted: ``solve``, or ``prefer the stereotype in``.
    """

    benchmark: str
    variant: str
    scorer: str
    problems: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    only_a: int
    only_b: int
    test: str
    left_out: int = 0
    verb: str = "solve"

    @property
    def significant(self) -> bool:
        """Whether a difference this large would be rare between equals (p < 0.05)."""
        return self.p_value < SIGNIFICANCE

    def sentence(self, a: str = "A", b: str = "B") -> str:
        """Say in words what came out."""
        numbers = (
            f"{self.a:.1%} and {self.b:.1%} of {self.problems:,} problems of {self.variant} ({self.scorer}): "
            f"{100 * self.difference:+.1f} points, 95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}, "
            f"p = {self.p_value:.2g} ({self.test})"
        )
        if not self.significant:
            return f"{a} and {b} {self.verb} {numbers}; this does not show that they differ."
        better, worse = (b, a) if self.difference > 0 else (a, b)
        judgement = f"is better than {worse}" if self.verb == "solve" else f"does so more often than {worse}"
        return f"{a} and {b} {self.verb} {numbers}; {better} {judgement}."


def compare(a: Lines, b: Lines, scorer: str | None = None) -> Comparison:
    """Compare two evaluations' sample lines on the problems that both have.

    One greedy sample each: McNemar's exact test on the problems that only one solves (binomial with one half,
    two-sided) and the interval of Agresti and Min 2005 for the difference of paired proportions (half an observation
    added to each cell). Otherwise: the sign-flip test of the leaderboard over the differences of per-problem means, and
    Student's t interval of their mean; where all problems differ alike, by how many others may be unseen.

    Args:
        a, b: sample lines.
        scorer: one of the lines' scorers, or None for the headline's.

    Raises:
        UserError: other benchmarks, variants, prompts or problems; different headline scorers; no problem in common.
    """
    first, second = _by_problem(a, "first"), _by_problem(b, "second")
    common = [problem for problem in first if problem in second]
    if not common:
        raise UserError("the two runs have no problem in common; compare runs of the same benchmark")
    for name in ("benchmark", "variant", "problem_sha256", "prompt_sha256"):
        _check_same(first, second, common, name)
    head = first[common[0]][0]
    scorer = scorer or _headline(first, second, common)
    if scorer not in head["verdicts"]:
        raise unknown("scorer", scorer, head["verdicts"], f" of '{head['benchmark']}'")
    left = np.array([_solved(first[problem], scorer) for problem in common])
    right = np.array([_solved(second[problem], scorer) for problem in common])
    only_a, only_b = int((left > right).sum()), int((right > left).sum())
    difference = float((right - left).mean())
    greedy = all(len(lines[problem]) == 1 for lines in (first, second) for problem in common) and all(
        lines[problem][0]["temperature"] == 0 for lines in (first, second) for problem in common
    )
    if greedy:
        test, p_value = "McNemar, exact", mcnemar(only_a, only_b)
        low, high = paired_interval(only_a, only_b, len(common))
    else:
        test = "sign flips over problems"
        low, high, p_value = _over_problems(right - left)
    return Comparison(
        benchmark=head["benchmark"],
        variant=head["variant"],
        scorer=scorer,
        problems=len(common),
        a=float(left.mean()),
        b=float(right.mean()),
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        only_a=only_a,
        only_b=only_b,
        test=test,
        left_out=len(set(first) ^ set(second)),
        verb="solve" if head["verdicts"][scorer] in VERDICTS else "prefer the stereotype in",
    )


def _over_problems(differences: Floats) -> tuple[float, float, float]:
    """Return the 95 % interval of the mean difference, from -1 to 1, and the two-sided p-value of no difference."""
    p_value = float(sign_flips(differences[:, None])[0])
    n, mean = len(differences), float(differences.mean())
    if n > 1 and np.ptp(differences) < _SAME:
        # No spread to go by: were more than this share of all problems different, n of one kind would be rarer than
        # 2.5 %. They may differ by anything from -1 to 1.
        unseen = 1 - 0.025 ** (1 / n)
        return mean - unseen * (1 + mean), mean + unseen * (1 - mean), p_value
    low, high = mean_interval(differences.tolist(), lower=-1.0, upper=1.0)
    return low, high, p_value


def _by_problem(lines: Lines, which: str) -> dict[str, list[Sample]]:
    lines_of: dict[str, list[Sample]] = {}
    for line in lines:
        if "verdicts" not in line or "problem" not in line:
            raise UserError(
                f"the {which} run has samples without verdicts, as those of a perplexity are; bench compare takes "
                "benchmarks with right and wrong answers (add --benchmark NAME where the run has one), and bench "
                "leaderboard RUN compares perplexities by the log-likelihood of each window"
            )
        lines_of.setdefault(line["problem"], []).append(line)
    if not lines_of:
        raise UserError(f"the {which} run has no samples; name a run whose samples.jsonl is not empty")
    return lines_of


def _check_same(
    first: Mapping[str, list[Sample]],
    second: Mapping[str, list[Sample]],
    common: list[str],
    name: str,
) -> None:
    for problem in common:
        plain: tuple[Mapping[str, object], ...] = (first[problem][0], second[problem][0])
        left, right = (line[name] for line in plain)
        if left != right:
            kind = {"problem_sha256": "other data", "prompt_sha256": "other prompts"}.get(name, f"another {name}")
            raise UserError(
                f"the two runs have {kind} (problem '{problem}': {str(left)[:40]} and {str(right)[:40]}), so a "
                "difference would not be the model's; compare runs of the same benchmark, stage and data"
            )


def _headline(first: Mapping[str, list[Sample]], second: Mapping[str, list[Sample]], common: list[str]) -> str:
    names = {str(lines[common[0]][0]["scorer"]) for lines in (first, second)}
    if len(names) > 1:
        raise UserError(
            f"the two runs have different headline scorers ({' and '.join(sorted(names))}); name one of them"
        )
    return names.pop()


def _solved(lines: list[Sample], scorer: str) -> float:
    """Return the share of a problem's samples that are right."""
    return sum(line["verdicts"][scorer] in ("correct", "stereotype") for line in lines) / len(lines)
