"""lm-eval's verdicts on completions for MATH, kept in harness_verdicts.tsv because they take twenty seconds.

python tests/evals/grading/harness.py makes the file again, with the installed versions of lm-eval and its libraries.
"""

import logging
import os
from importlib.metadata import version
from pathlib import Path

from lm_eval.tasks.hendrycks_math import utils as hendrycks
from lm_eval.tasks.minerva_math import utils as minerva

from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.grading.extract import last_boxed

FILE = Path(__file__).with_name("harness_verdicts.tsv")
SCORERS = ("minerva", "original", "math-verify")
SEVERAL_BOXES = [
    (2243, "math-verify", "correct"),
    (2549, "math-verify", "correct"),
    (2902, "math-verify", "wrong"),
    (4732, "math-verify", "correct"),
]
"""Solutions with more than one box, all that differ among the 15,000 verdicts of such completions for all problems."""
INDICES = [*range(300), *(index for index, *_ in SEVERAL_BOXES)]
"""The problems whose verdicts are kept."""


def harness_verdicts(solution: str, completion: str) -> list[bool]:
    """Return lm-eval's two verdicts and hendrycks_math's, by their `process_results`, in the order of `SCORERS`."""
    logging.disable(logging.CRITICAL)
    try:
        answer = minerva.normalize_final_answer(minerva.remove_boxed(minerva.last_boxed_only_string(solution)))
        both = minerva.process_results({"solution": solution, "answer": answer}, [completion])
        original = hendrycks.process_results({"solution": solution}, [completion])["exact_match"]
    finally:
        logging.disable(logging.NOTSET)
    return [bool(verdict) for verdict in (both["exact_match"], original, both["math_verify"])]


def completion_for(rows: list[dict[str, str]], index: int) -> str:
    """Return a realistic completion: a right or wrong answer in one of the endings that models write, or none."""
    solution = rows[index if index % 3 else (index * 7 + 1) % len(rows)]["solution"]
    answer = last_boxed(solution)
    endings = [
        f"\nFinal Answer: The final answer is ${answer}$. I hope it is correct.",
        f"\nThe answer is: {answer}",
        "",
        f"\nFinal Answer: The final answer is {answer}.",
        f" So the answer is ${answer}$",
        f"\nFinal Answer: The final answer is ${answer.replace('frac', 'dfrac')}$. I hope it is correct.\n\nQ",
    ]
    return (solution if index % 4 else solution[: len(solution) // 2]) + endings[index % len(endings)]


def kept_verdicts() -> dict[int, list[bool]]:
    """Return the verdicts of the file by the problem's index."""
    lines = [line.split("\t") for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return {int(index): [verdict == "1" for verdict in verdicts] for index, *verdicts in lines}


if __name__ == "__main__":
    data = Path(os.environ.get("LOWRANK_BENCH_DATA", Path(__file__).parents[4] / "shared" / "data"))
    problems = load_rows("math", "test", data).rows
    versions = ", ".join(f"{name} {version(name)}" for name in ("lm-eval", "math-verify", "sympy"))
    lines = [f"# {versions}; by tests/evals/grading/harness.py", "\t".join(("# index", *SCORERS))]
    for index in INDICES:
        verdicts = harness_verdicts(problems[index]["solution"], completion_for(problems, index))
        lines.append("\t".join((str(index), *(str(int(verdict)) for verdict in verdicts))))
    FILE.write_text("\n".join(lines) + "\n")
