"""Simple LaTeX read without the libraries: their readings and their verdicts are the same."""

import json
import random
import subprocess
import sys

import pytest

from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading.extract import last_boxed
from lowrank_bench.evals.grading.math.value import answers_clearly_differ, clearly_differ, simple, unreadable, value

PIECES = (
    *("1", "2", "3", "10", "12", "0.5", "x", "y", "i", "a", "n", "+", "-", "-", "(", ")", "^", "{", "}", " "),
    *("\\frac{1}{2}", "\\frac{", "}{", "\\dfrac{x}{3}", "\\tfrac{3}{5}", "\\sqrt{", "\\sqrt[3]{", "\\sqrt{2}", "\\pi"),
    *("\\cdot ", "\\times ", "^{2}", "^2", "^{-1}", "(x+1)", "(2-y)", ",", ", ", "[", "]", "x = ", "^\\circ", "1,000"),
    *("\\cup ", "(-\\infty,", "\\infty)", "(1,2)", "(2,1)", "[3,", "5]", "5)", "\\{", "\\}", "\\begin{pmatrix}", "&"),
)

# In a process of its own, which becomes a worker: there the libraries read ten times quicker.
READ = """
import json, sys
import sympy
from lowrank_bench.evals.grading.math import rules as math_rules, value as math_value, worker
worker.prepare()
def numbers(expression):
    if isinstance(expression, sympy.Interval):
        return [expression.start, expression.end]
    if isinstance(expression, sympy.Eq):
        return [expression.rhs]
    parts = expression.args if isinstance(expression, (sympy.Union, sympy.FiniteSet, sympy.Tuple)) else []
    return [number for part in parts for number in numbers(part)] if parts else [expression]
def evaluate(expression):
    if expression in (sympy.oo, -sympy.oo):
        return 1e30 if expression == sympy.oo else -1e30
    values = {symbol: math_value._LETTERS.get(symbol.name, 3.141592653589793) for symbol in expression.free_symbols}
    return float(expression.evalf(subs=values))
def attempt(work):
    try:
        return work()
    except Exception as error:
        return f"unreadable: {error!r}"[:100]
def verdicts(answer, gold):
    minerva = math_rules.compare_minerva(answer, gold)
    library = worker.answer("math-verify", gold, f"\\\\boxed{{{answer}}}")
    return [minerva.verdict or worker.answer(*minerva.request), library]
texts, pairs = json.load(sys.stdin)
result = {"sympy": [attempt(lambda: evaluate(worker._read_sympy(text))) for text in texts["sympy"]]}
result["refused"] = [attempt(lambda: str(worker._read_sympy(text))) for text in texts["refused"]]
result["library"] = [
    attempt(lambda: sorted({evaluate(number) for number in numbers(worker._read_library(text))}))
    for text in texts["library"]
]
quick = [verdicts(*pair) for pair in pairs]
worker.simple = lambda latex: None
math_rules.clearly_differ = math_rules.unreadable = lambda *texts: False
result["verdicts"] = [quick, [verdicts(*pair) for pair in pairs]]
print(json.dumps(result))
"""


def read_by_libraries(texts, pairs):
    """What sympy and math-verify read in the texts, and the verdicts on the pairs with and without simple readings."""
    chosen = {
        "sympy": [text for text in texts if value(text) is not None],
        "refused": [text for text in texts if unreadable(text)],
        "library": [text for text in texts if simple(text) is not None],
    }
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=json.dumps([chosen, pairs]), capture_output=True, text=True, check=True)
    return chosen, json.loads(done.stdout)


@pytest.fixture(scope="module")
def golds(data_dir):
    return sorted({last_boxed(row["solution"]).strip() for row in load_rows("math", "test", data_dir).rows})


def made_up(count, seed):
    """Strings of pieces in any order, of which some happen to be expressions."""
    chance = random.Random(seed)
    return sorted({"".join(chance.choices(PIECES, k=chance.randint(2, 8))).strip() for _ in range(count)})


def test_what_is_simple_is_read_as_the_libraries_read_it(golds):
    texts = [*golds[::12], *made_up(4000, 1)]
    chosen, readings = read_by_libraries(texts, [])
    differences = [
        (text, reading)
        for text, reading in zip(chosen["sympy"], readings["sympy"], strict=True)
        if reading != close_to(value(text))
    ]
    differences += [
        (text, reading)
        for text, reading in zip(chosen["library"], readings["library"], strict=True)
        if reading != close_to(sorted(set(simple(text).numbers)))
    ]
    assert differences == []
    assert [text for text in readings["refused"] if not text.startswith("unreadable")] == []
    assert min(map(len, chosen.values())) > 40
    assert {simple(text).kind for text in chosen["library"]} == {"number", "list", "brackets", "union", "equation"}


def close_to(number):
    return pytest.approx(number, rel=1e-9, abs=1e-9)


def test_verdicts_are_those_of_the_libraries_alone(golds):
    """Neighbours in the alphabet, which are alike, and equal answers in another form."""
    pairs = [list(pair) for pair in zip(golds[::9], golds[1::9], strict=False)]
    pairs += [[f"{gold} + 0", gold] for gold in golds[::40]]
    pairs += [[text, golds[index % len(golds)]] for index, text in enumerate(made_up(150, 2))]
    pairs += [list(pair) for pair in ALIKE]
    replies = read_by_libraries([], pairs)[1]["verdicts"]
    # A reply is a verdict, or with the answer that the library found, which a shortcut does not look for.
    quick, slow = ([[r if isinstance(r, str) else r[0] for r in both] for both in side] for side in replies)
    assert [row for row in zip(pairs, quick, slow, strict=True) if row[1] != row[2]] == []
    assert sum("correct" in verdicts for verdicts in quick) > 40


ALIKE = [
    ("\\{1,2\\}", "2,1"),
    ("(1,2)", "1,2"),
    ("[1,2]", "(1,2)"),
    ("(1,3)\\cup(2,4)", "(1,4)"),
    ("(1,3)\\cup(2,4)", "1,4"),
    ("[1,2]\\cup[2,3]", "[1,3]"),
    ("(-\\infty,2)\\cup(2,\\infty)", "2"),
    ("[3,1)", "[4,2)"),
    ("(3,1)", "(4,2)"),
    ("x=5", "5"),
    ("5", "x = 5"),
    ("y=5", "x=5"),
    ("15,000", "15000"),
    ("0.333333", "\\frac{1}{3}"),
    ("0.33", "\\frac{1}{3}"),
    ("3x\\sqrt{2}", "3\\sqrt{2}"),
    ("3x\\frac{1}{2}", "\\frac{3}{2}"),
    ("1\\frac{1}{2}", "\\frac{3}{2}"),
    ("1\\frac{1}{2}", "\\frac{1}{2}"),
    ("2^{\\frac{1}{2}}", "\\sqrt{2}"),
    ("139^\\circ", "139"),
    ("7,9", "7"),
    ("5 $\\%$", "5"),
    ("0.05", "5\\%"),
    ("0.05", "$5$ %"),
    ("\\begin{pmatrix}0\\end{pmatrix}", "0"),
]


def test_what_one_could_read_in_two_ways_is_not_simple():
    for latex in (
        *(
            "1\\frac{1}{2}",
            "x(2)",
            "\\pi(2)",
            "2x\\sqrt{2}",
            "007",
            "1.",
            ".5",
            "1 2",
            "x2",
            "2_3",
            "e",
            "d",
            "f",
            "ab",
        ),
        *("\\sqrt3", "\\sqrt{-1}", "\\frac{1}{0}", "\\frac12", "2^12", "2^{3}^{4}", "--1", "1+-1", "5\\%", "9^{9^{9}}"),
        *("", " ", "(", "{2}", "[2]", "(" * 11 + "1" + ")" * 11, "1+" * 60 + "1", "\\frac{1}", "\\text{5}", "5!", "5'"),
    ):
        assert value(latex) is None, latex
    for latex in (
        "1,234,",
        "(1,234)",
        "(a,b)",
        "[3,1)",
        "(1,3)\\cup(2,4)",
        "[1,2]\\cup[2,3]",
        "x=",
        "x=1=1",
        "x=y=2",
        ",",
    ):
        assert simple(latex) is None, latex


def test_clearly_different_is_neither_equal_nor_nearly():
    assert clearly_differ("11\\sqrt{2}", "2")
    assert not clearly_differ("\\sqrt{8}", "2\\sqrt{2}")
    assert not clearly_differ("0.33333", "\\frac{1}{3}")
    assert not clearly_differ("\\text{odd}", "2")
    assert answers_clearly_differ("(-\\infty,2)\\cup(2,\\infty)", "2")
    assert answers_clearly_differ("2,3", "2,4")
    assert not answers_clearly_differ("(3,2)", "2,3")
    assert not answers_clearly_differ("(1,2)\\cup(3,4)", "(1,2)\\cup(3,5)")
    assert not answers_clearly_differ("x = 3", "y = 4")
