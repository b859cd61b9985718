"""Readings of an answer, against hand-checked cases and the projects that they reproduce."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading import extract
from lowrank_bench.evals.kinds.answers import READINGS, score_number


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "answer_is", "boxed"),
    [
        ("So 9*2=18.\n#### 18", "18", "18", None, None),
        ("#### 1,800\n#### 7", "1,800", "7", None, None),
        ("The answer is: 5", None, "5", "5", None),
        ("The answer is $18.00.", None, "$18.00.", "18.00", None),
        ("Thus \\boxed{\\frac{1}{2}} is it", None, "2", None, "\\frac{1}{2}"),
        ("\\boxed{3} or \\boxed{4", None, "4", None, "3"),
        ("no number at all", None, None, None, None),
        ("", None, None, None, None),
        ("The answer is: ", None, None, None, None),
        ("the final answer is: -3", None, "-3", "-3", None),
    ],
)
def test_readings(text, strict, flexible, answer_is, boxed):
    assert [reading.extract(text) for reading in READINGS.values()] == [strict, flexible, answer_is, boxed]


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("18.00", "18", True),
        ("1,800", "1800", True),
        ("$18 dollars", "18", True),
        ("-0", "0", True),
        ("007", "7", True),
        ("3.4", "3", False),
        ("1.80", "1.8", True),
        (".5", "0.5", True),
        ("180", "18", False),
        ("-5", "5", False),
        ("five", "5", False),
        # other minus signs, and signs before a currency or a bracket
        ("−5", "5", False),
        ("−5", "-5", True),
        ("–5", "-5", True),
        ("－5", "-5", True),
        ("- 5", "-5", True),
        ("−$5", "-5", True),
        ("-\\$5", "5", False),
        ("\\boxed{-€5}", "-5", True),
        ("x = −5", "-5", True),
        ("—5", "5", True),
        ("apples - 5", "5", True),
        ("10–5", "10", True),
        # digits in groups, and other digits
        ("1{,}800", "1800", True),
        ("1{,}800", "1", False),
        ("1,\\!800", "1800", True),
        ("1\u202f800", "1800", True),
        ("1\u00a0800", "1", False),
        ("1’800", "1800", True),
        ("\u00a018\u00a0dollars", "18", True),
        ("5\u00a012", "5", True),
        ("１，８００", "1800", True),
        # fractions
        ("3/4", "3", False),
        ("3/4", "0.75", True),
        ("18/2", "9", True),
        ("\\frac{3}{4}", "3", False),
        ("\\frac34", "34", False),
        ("2 1/2", "2.5", True),
        ("2½", "2", False),
        ("1\\dfrac{1}{2}", "1.5", True),
        ("5/0", "5", False),
        ("\\cfrac{1}{2}", "0.5", True),
        ("\\nicefrac{3}{4}", "0.75", True),
        ("\\sfrac12", "0.5", True),
        ("\\frac{3}{-4}", "-0.75", True),
        ("\\frac{-3}{-4}", "0.75", True),
        ("-\\frac{3}{ -4 }", "0.75", True),
        ("3/-4", "-0.75", True),
        ("3/(-4)", "-0.75", True),
        ("3/(4)", "3", False),
        # powers of ten
        ("1e3", "1000", True),
        ("1e3", "1", False),
        ("2.5E-3", "0.0025", True),
        ("1.2e+06", "1,200,000", True),
        ("-1e3", "-1000", True),
        ("3 \\times 10^{5}", "300000", True),
        ("3×10^-2", "0.03", True),
        ("3 each", "3", True),
        ("3e", "3", True),
        ("1e1000", "1", False),
        ("1e" + "9" * 400, "1", False),
        ("1e0003", "1000", True),
        # dots before a number
        ("...5", "5", True),
        ("...5", ".5", False),
        ("wait..5", "5", True),
        (". . .5", "5", True),
        ("…5", "5", True),
        ("...0.5", "0.5", True),
        ("= .5", "0.5", True),
        # commas that are no groups
        ("3,4 and 5", "34", False),
        ("3,4 and 5", "3", False),
        ("1,2,3", "123", False),
        ("3,5", "3", False),
        ("3{,}5", "3", False),
        ("0,500", "500", False),
        ("1,2345", "12345", False),
        ("1,234,56", "1234", False),
        ("18, as before", "18", True),
        ("3, 4 and 5", "3", True),
        ("18,000, in all", "18000", True),
        ("1,234,567.50", "1234567.5", True),
        ("1,00,000", "100000", True),
        ("12,34,567", "1234567", True),
        ("1,800/2", "900", True),
        # hyphens after words
        ("April-5", "-5", False),
        ("April-5", "5", True),
        ("Covid–19", "19", True),
        ("größe-5", "5", True),
        ("April -5", "-5", True),
        ("\\approx-5", "-5", True),
        ("x=-5", "-5", True),
        ("**-5**", "-5", True),
    ],
)
def test_numbers_are_compared_exactly(answer, gold, same):
    assert extract.same_number(answer, gold) == same


@given(st.text())
def test_no_completion_breaks_a_reading(text):
    verdicts = score_number(text, "#### 12").verdicts
    assert set(verdicts) == set(READINGS)


@given(st.integers(-(10**9), 10**9))
def test_every_reading_finds_its_own_form(number):
    forms = {
        "strict": f"#### {number}",
        "flexible": f"so {number}",
        "answer-is": f"The answer is: {number}",
        "boxed": f"\\boxed{{{number:,}}}",
    }
    for name, text in forms.items():
        assert score_number(text, f"#### {number}").verdicts[name] == "correct"


LEADS = ("\n#### ", "\n####", "\n#### $", "\n#### -", " The answer is ", " = $", " so ", "\n#### 7\n#### ", " $1,2")
MARKS = (".", ",", "$", "%", "*", " ", "\n", "-", "...", ".$", "$.", ".,", ",.", "$.$", ",$.", ".\n", ".00", "x")


def completions(gold, count, draw):
    """Ends of completions: the number in several forms, right or one more, behind a lead and before trailing marks."""
    number = gold.replace(",", "")
    for _ in range(count):
        value = draw.choice((number, number, f"{int(number):,}", str(int(number) + 1)))
        marks = "".join(draw.choice(MARKS) for _ in range(draw.randrange(3)))
        yield draw.choice(LEADS) + value + marks + draw.choice(("", "", "", "\n\nQuestion: 3 + 4?\n#### 7", " dollars"))


def by_the_harness(texts, golds):
    """lm-eval's own filters and metric, as its task file sets them: {scorer: ([answers], [verdicts])}."""
    import lm_eval
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    (metric,) = config["metric_list"]
    options = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    results = {}
    for part in config["filter_list"]:
        settings = {key: value for key, value in part["filter"][0].items() if key != "function"}
        answers = [answer for (answer,) in RegexFilter(**settings).apply([[t] for t in texts], [{}] * len(texts))]
        verdicts = [
            exact_match_fn(predictions=[answer], references=[gold], **options)["exact_match"] == 1
            for answer, gold in zip(answers, golds, strict=True)
        ]
        results[{"strict-match": "strict", "flexible-extract": "flexible"}[part["name"]]] = answers, verdicts
    return results


def test_strict_and_flexible_agree_with_the_harness(data_dir):
    """A missing answer is wrong there. Twenty completions for each problem of the test split."""
    draw = random.Random(0)
    texts, golds = ["", "none", ".. ,"], ["#### 1"] * 3
    for row in load_rows("gsm8k", "test", data_dir).rows:
        solution, _, number = row["answer"].rpartition("#### ")
        for end in completions(number, 20, draw):
            texts.append(solution + end)
            golds.append(row["answer"])
    scored = [score_number(text, gold) for text, gold in zip(texts, golds, strict=True)]
    for name, (answers, verdicts) in by_the_harness(texts, golds).items():
        assert [score.answers[name] or "[invalid]" for score in scored] == answers
        assert [score.verdicts[name] == "correct" for score in scored] == verdicts
        assert 0.05 < sum(verdicts) / len(verdicts) < 0.9


@pytest.mark.parametrize("end", ["The answer is $27.$", "so 27.,", "#### 27.,", "#### 27.$", "$27,.", "#### ,27."])
def test_trailing_marks_are_taken_off_one_after_another(end):
    (scorer,) = {"strict", "flexible"} & ({"strict"} if "####" in end else {"flexible"})
    assert score_number(end, "#### 27").verdicts[scorer] == "correct"
    assert by_the_harness([end], ["#### 27"])[scorer][1] == [True]


@given(st.text(alphabet="0123.,$-# \n", max_size=20), st.sampled_from(["12", "-3", "1,230", "0.5"]))
def test_strict_and_flexible_agree_with_the_harness_on_marks(text, gold):
    scored = score_number(text, f"#### {gold}")
    for name, (answers, verdicts) in by_the_harness([text], [f"#### {gold}"]).items():
        assert [scored.answers[name] or "[invalid]"] == answers
        assert [scored.verdicts[name] == "correct"] == verdicts
