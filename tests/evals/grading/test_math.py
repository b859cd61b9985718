"""MATH answers: hand-checked pairs, every reference answer against itself, and the projects that are reproduced."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.hendrycks_math import utils as hendrycks
from lm_eval.tasks.minerva_math import utils as minerva

from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading import extract
from lowrank_bench.evals.grading.extract import last_boxed
from lowrank_bench.evals.grading.math import pool as math_pool
from lowrank_bench.evals.grading.math import rules as math_rules
from lowrank_bench.evals.grading.math import worker as math_worker
from lowrank_bench.evals.grading.math.latex import put_in_dollars
from lowrank_bench.evals.grading.math.pool import Reply, Request, Worker, compare_all
from lowrank_bench.evals.grading.math.rules import EXTRACTORS, SCORERS, compare_minerva, equivalent, score_texts
from lowrank_bench.evals.grading.math.text import exact_number, normalize_minerva, normalize_original, same_original

from . import harness

PAIRS = [
    line.split("\t")
    for line in (Path(__file__).parent / "math_pairs.tsv").read_text().splitlines()
    if not line.startswith("#")
]
MARKS = {"=": "correct", "x": "wrong", "-": "no-answer"}
MEGABYTES = (
    "",
    "\n",
    "\\boxed{" * 150_000,
    "{" * 1_000_000,
    "$" * 1_000_000,
    "1" * 1_000_000,
    "The answer is: " + "9" * 1_000_000,
    "The answer is " * 70_000,
    "Final Answer: The final answer is" * 30_000,
    "#### " + "9" * 1_000_000,
    "\\boxed{" + "(" * 10_000 + "}",
    "\\boxed{\\frac{\\frac{" + "\\sqrt{" * 100 + "2" + "}" * 103,
    "?" * 1_000_000,
)
DELIMITED = (
    (r"The answer is \[18\]", "18"),
    (r"**The answer is \(18\)**", "18"),
    (r"Final Answer: The final answer is \(18\). I hope it is correct.", "18"),
    (r"The answer is \frac{3}{4} of the total.", r"\frac{3}{4}"),
    (r"The answer is \sqrt{2} times the side.", r"\sqrt{2}"),
    (r"The answer is the fraction \frac{3}{4}.", r"\frac{3}{4}"),
    ("The answer is:\n\\[\n\\frac{3}{4}\n\\]", r"\frac{3}{4}"),
    (r"The answer is \boxed{18}", "18"),
)
BOXED = (
    (r"The final answer is: $\boxed{42}$. I hope it is correct.", "42", "correct"),
    (r"The answer is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", "correct"),
    (r"The answer is: \(\fbox{x+1}\)", "x+1", "correct"),
    (r"The answer is \boxed{7}", "8", "wrong"),
    (r"The answer is $\boxed{1}$ or $\boxed{2}$.", "1", "wrong"),
    (r"The answer is \boxed{1", "1", "wrong"),
)
ADVERSARIAL = ("The answer is" * 153 + "\\" * 2000 + "$", "$" * 4000, "The answer is \\frac{" * 200)


@pytest.fixture(scope="module")
def rows(data_dir):
    return load_rows("math", "test", data_dir).rows


@pytest.fixture(scope="module")
def golds(rows):
    return [last_boxed(row["solution"]) for row in rows]


@pytest.fixture(scope="module")
def scored_singly(golds):
    """What single texts are scored as, by text and reference: in one call, for each starts workers."""
    cases = [*((text, golds[0]) for text in MEGABYTES), *DELIMITED, *((text, "18") for text in ADVERSARIAL)]
    cases += [(text, gold) for text, gold, _ in BOXED]
    return dict(zip(cases, score_texts(*zip(*cases, strict=True)), strict=True))


def wrap(answer):
    """A completion in which every extractor finds this answer."""
    return f"\\boxed{{{answer}}}\nFinal Answer: The final answer is ${answer}$. I hope it is correct."


def test_hand_checked_pairs():
    scored = score_texts([f"\\boxed{{{answer}}}" for answer, *_ in PAIRS], [pair[1] for pair in PAIRS])
    requests = [compare_minerva(answer, gold) for answer, gold, *_ in PAIRS]
    algebra = iter(compare_all([comparison.request for comparison in requests if comparison.request]))
    wrong = []
    for (answer, gold, _, *expected), boxed, comparison in zip(PAIRS, scored, requests, strict=True):
        verdicts = [
            comparison.verdict or next(algebra).verdict,
            "correct" if same_original(answer, gold) else "wrong",
            boxed.verdicts["math-verify"],
        ]
        if verdicts != [MARKS[mark] for mark in expected]:
            wrong.append((answer, gold, verdicts))
    assert wrong == []
    assert len(PAIRS) > 130
    assert {pair[2] for pair in PAIRS} == {"=", "x"}


def test_pairs_agree_with_the_projects_that_the_rules_reproduce():
    """lm-eval's minerva and hendrycks comparisons, run on the same pairs, give the expected column."""
    for answer, gold, _, by_minerva, by_original, _ in PAIRS:
        theirs = minerva.is_equiv(minerva.normalize_final_answer(answer), minerva.normalize_final_answer(gold))
        assert (by_minerva == "=") == theirs, (answer, gold)
        assert (by_original == "=") == hendrycks.is_equiv(answer, gold), (answer, gold)


def test_normalisations_agree_on_all_reference_answers(golds):
    for gold in golds:
        for answer in (gold, f" {gold} ", f"x = {gold}", f"{gold} dollars", f"${gold}$", gold.replace("{", "")):
            assert normalize_minerva(answer) == minerva.normalize_final_answer(answer)
            for other in (gold, golds[0]):
                assert same_original(answer, other) == hendrycks.is_equiv(answer, other)


@given(
    st.text(alphabet='012a/.,=$ \\{}[]^%"\n', max_size=12), st.sampled_from(["\\frac", "\\sqrt", "\\text{ m", "cm", ""])
)
def test_normalisations_agree_on_arbitrary_text(text, word):
    answer = text[:6] + word + text[6:]
    assert normalize_minerva(answer) == minerva.normalize_final_answer(answer)
    assert same_original(answer, text) == hendrycks.is_equiv(answer, text)


def test_every_reference_answer_equals_itself_under_every_scorer(golds):
    scored = score_texts([f"\\boxed{{{gold}}}" for gold in golds], golds)
    assert [gold for gold, score in zip(golds, scored, strict=True) if score.verdicts["math-verify"] != "correct"] == []
    assert [gold for gold in golds if compare_minerva(gold, gold).verdict != "correct"] == []
    assert [gold for gold in golds if not same_original(gold, gold)] == []


def test_extractors_lose_two_reference_answers_as_their_references_do(golds):
    """A full stop that belongs to the answer, and a line break in it."""
    scored = score_texts([wrap(gold) for gold in golds], golds)
    lost = [
        (gold, name, score.verdicts[name])
        for gold, score in zip(golds, scored, strict=True)
        for name in ("minerva", "boxed", "answer-is", "math-verify")
        if score.verdicts[name] != "correct"
    ]
    assert lost == [
        ("\\frac{7}{5} + \\frac{1}{5} i.", "answer-is", "wrong"),
        ("90\\text{ square\nunits}", "minerva", "no-answer"),
    ]


def test_plain_numbers_are_read_as_the_libraries_read_them():
    for latex in ("0", "-0", "7", "-12", "0.5", "-0.25", "920.25", "\\frac{4}{6}", "-\\frac{-3}{4}", "\\frac{0}{4}"):
        number = math_worker.plain_number(latex)
        options = {"is_real": True, "convert_degrees": False, "normalization_config": None}
        assert sympy.srepr(number) == sympy.srepr(math_worker.parser.latex2sympy(latex, **options))
        assert sympy.simplify(number - math_worker.parse_latex(latex)) == 0
    for latex in ("007", "1,000", "\\frac{1}{0}", "x", "1.", ".5", ""):
        assert math_worker.plain_number(latex) is None


STAGES = """
import json, sys
import sympy
from lowrank_bench.evals.grading.math import worker as worker
def read(reader, text):
    try:
        return sympy.srepr(reader(text))
    except Exception:
        return "unreadable"
texts = json.load(sys.stdin)
options = {"is_real": True, "convert_degrees": False, "normalization_config": None}
readers = (worker.parse_latex, lambda text: worker.parser.latex2sympy(text, **options))
plain = [[read(reader, text) for text in texts] for reader in readers]
worker.prepare()
staged = [[read(worker._two_stages(reader), text) for text in texts] for reader in readers]
print(json.dumps([plain == staged, sum(reading != "unreadable" for reading in plain[1])]))
"""


def test_two_stages_of_parsing_read_as_full_context_does(golds):
    """A part of the answers that are no plain numbers, by both LaTeX readers, in a process that becomes a worker."""
    latex = sorted({gold for gold in golds if math_worker.plain_number(gold) is None})[::8]
    command = [sys.executable, "-c", STAGES]
    done = subprocess.run(command, input=json.dumps(latex), capture_output=True, text=True, check=True)
    same, readable = json.loads(done.stdout)
    assert same
    assert readable > 100


@given(st.integers(-999, 999), st.integers(1, 99), st.sampled_from(["{}/{}", "\\frac{{{}}}{{{}}}"]))
def test_exact_numbers(above, below, form):
    assert exact_number(form.format(above, below)) == sympy.Rational(above, below)
    assert exact_number(str(above)) == above
    assert exact_number(f"{above / 8:.3f}") == sympy.Rational(above, 8)


def test_a_point_where_a_difference_is_not_zero_tells_it_from_zero():
    x, y = sympy.symbols("x y")
    for zero in (
        (x + 1) ** 2 - x**2 - 2 * x - 1,
        sympy.sqrt(8) - 2 * sympy.sqrt(2),
        sympy.sin(x) ** 2 + sympy.cos(x) ** 2 - 1,
    ):
        assert not math_worker.differs_somewhere(zero)
    for other in (x - y, x**2 - x, sympy.pi - 3, sympy.sqrt(2) - sympy.Float("1.414")):
        assert math_worker.differs_somewhere(other)


def test_verdicts_agree_with_the_harness(rows, golds):
    """lm-eval gives math-verify the whole reference solution, here it gets the last box; see docs/grading.md."""
    recorded = harness.kept_verdicts()
    assert list(recorded) == harness.INDICES
    texts = [harness.completion_for(rows, index) for index in recorded]
    ours = score_texts(texts, [golds[index] for index in recorded])
    differences = [
        (index, name, score.verdicts[name])
        for (index, verdicts), score in zip(recorded.items(), ours, strict=True)
        for name, verdict in zip(harness.SCORERS, verdicts, strict=True)
        if (score.verdicts[name] == "correct") != verdict
    ]
    assert differences == harness.SEVERAL_BOXES
    assert 30 < sum(minerva_verdict for minerva_verdict, *_ in recorded.values()) < 270


def test_the_kept_verdicts_are_those_of_the_installed_harness(rows):
    """A part of them, with every ending of `completion_for` and right and wrong answers."""
    for index, verdicts in list(harness.kept_verdicts().items())[::11]:
        assert harness.harness_verdicts(rows[index]["solution"], harness.completion_for(rows, index)) == verdicts, index


def test_verdicts_do_not_depend_on_the_number_of_workers(golds):
    texts = [wrap(gold) for gold in golds[1:61]]
    with_one, with_three = score_texts(texts, golds[:60], 1), score_texts(texts, golds[:60], 3)
    assert [scored.verdicts for scored in with_one] == [scored.verdicts for scored in with_three]


SLOW = Request("minerva", "1", "((((" + "+".join(f"x_{{{n}}}" for n in range(40)) + ")^{30})^{2})^{2})-y^{99999}")


def test_what_takes_too_long_is_a_timeout_and_the_others_are_not_touched():
    good = [Request("minerva", "2+x", "x+2"), Request("math-verify", "5", "\\boxed{5}")]
    replies = compare_all([good[0], SLOW, good[1]], 1, seconds=0.5)
    assert [reply.verdict for reply in replies] == ["correct", "timeout", "correct"]
    assert replies[2].answer == "5"
    power = Request("minerva", "5", "9^{9^{9^{9}}}")
    assert compare_all([power, good[0]], 1, seconds=0.5) == [Reply("timeout"), Reply("correct")]


def test_a_worker_that_is_killed_is_replaced():
    worker = Worker()
    try:
        assert worker.ask(Request("minerva", "2+x", "x+2"), 60).verdict == "correct"
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        assert worker.ask(Request("minerva", "2+x", "x+2"), 60).verdict == "timeout"
        assert worker.ask(Request("minerva", "2+x", "x+2"), 60).verdict == "correct"
    finally:
        worker.close()


def test_no_worker_outlives_the_comparison_and_it_works_off_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.extend(compare_all([Request("minerva", "2+x", "x+2")])))
    thread.start()
    thread.join()
    assert results == [Reply("correct")]
    children = subprocess.run(["ps", "-o", "args", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout
    assert "math_worker" not in children


@pytest.mark.parametrize("text", MEGABYTES)
def test_a_megabyte_of_anything_is_scored(text, golds, scored_singly):
    """A quadratic reading would need hours."""
    for extractor in (*EXTRACTORS.values(), extract.strict, extract.flexible):
        answer = extractor(text)
        assert answer is None or len(answer) <= extract.MAX_ANSWER
    scored = scored_singly[text, golds[0]]
    assert set(scored.verdicts) == set(SCORERS)
    assert "correct" not in scored.verdicts.values()


def test_limits_come_before_the_parser():
    assert not math_rules.parseable("1" * 401)
    assert not math_rules.parseable("(" * 31 + ")" * 31)
    assert math_rules.parseable("(" * 30 + ")" * 30)
    assert not math_rules.parseable("1" * 200)
    assert all(math_rules.parseable(pair[0]) for pair in PAIRS)
    assert equivalent("(" * 31, "x", "minerva") == "timeout"  # given up, not found to be wrong


def test_bare_latex_after_the_answer_is_is_read():
    text = "So it is a half.\nThe answer is: \\frac{1}{2}"
    (scored,) = score_texts([text], ["0.5"])
    assert scored.verdicts["math-verify"] == scored.verdicts["answer-is"] == "correct"
    assert scored.verdicts["boxed"] == scored.verdicts["minerva"] == "no-answer"


@pytest.mark.parametrize(("text", "gold"), DELIMITED)
def test_delimited_latex_and_words_around_latex_are_left_as_they_are(text, gold, scored_singly):
    scored = scored_singly[text, gold]
    assert scored.verdicts["math-verify"] == "correct"
    assert scored.answers["math-verify"] == gold
    if "\\(" in text or "\\[" in text:
        assert scored.answers["answer-is"] == gold


@pytest.mark.parametrize(("text", "gold", "verdict"), BOXED)
def test_a_box_around_the_answer_is_taken_off(text, gold, verdict, scored_singly):
    assert scored_singly[text, gold].verdicts["answer-is"] == verdict


def test_all_reference_answers_are_right_in_a_box_behind_the_answer_is(golds):
    scored = score_texts([f"The answer is: $\\boxed{{{gold}}}$" for gold in golds[::50]], golds[::50])
    assert {score.verdicts["answer-is"] for score in scored} == {"correct"}


def test_bare_reference_answers_are_put_between_dollars_whole(golds):
    """All but a few with words in them: these keep their words outside."""
    latex = [gold for gold in golds if "\\" in gold and "$" not in gold and "\n" not in gold]
    whole = [gold for gold in latex if f"${gold}$" in put_in_dollars(f"The answer is {gold}.")]
    assert len(whole) / len(latex) > 0.98


def test_a_text_that_took_cubic_time_gets_a_verdict():
    """A cubic or quadratic reading would need hours for the second; only a worker reads with the library."""
    text = "The answer is" * (4000 // 26) + "\\" * 2000 + "$"
    assert score_texts([text], ["1"])[0].verdicts["math-verify"] in ("wrong", "no-answer", "timeout")
    for size in (4000, 1_000_000):
        for marker in ("The answer is", "The answer is:" + " " * 20, "The answer is {"):
            long = marker * (size // 26) + "\\" * (size // 2) + "$"
            assert put_in_dollars(long) == long
            assert extract.answer_is(long)


def test_single_comparison():
    assert equivalent("(x+1)^2", "x^2+2x+1", "minerva") == "correct"
    assert equivalent("(x+1)^2", "x^2+2x+1", "original") == "wrong"
    assert equivalent("2,1", "1,2", "math-verify") == "correct"
    assert normalize_original("\\text{ a}\\text{ b}") is None
    assert math_pool.ITEM_SECONDS == 5


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_adversarial_texts_come_back_with_a_verdict(text, scored_singly):
    assert scored_singly[text, "18"].verdicts["math-verify"] in ("no-answer", "wrong", "timeout")
