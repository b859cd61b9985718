"""No command line ends in a traceback, hangs, or writes anything before it is refused."""

import shutil
from pathlib import Path

import commands
import pytest
from command_lines import COMMANDS, TAKING_VALUES, command_line, make_world

from lowrank_bench.runners.plan import make_plan

LINES = 50
"""Command lines of one test; how many tests there are is `--fuzzed-lines`, 300 by default."""
SECONDS = 300


def pytest_generate_tests(metafunc):
    if "chunk" in metafunc.fixturenames:
        chunks = -(-metafunc.config.getoption("fuzzed_lines") // LINES)
        metafunc.parametrize("chunk", range(chunks))


@pytest.fixture
def world(finished, tmp_path):
    make_world(tmp_path, finished.execution.out / make_plan(finished).name)
    yield tmp_path
    shutil.rmtree(tmp_path)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def complaint(words: list[str], folder: Path) -> str:
    """Run a line; return what is wrong with how it ended, or the empty string."""
    before = files_below(folder)
    done = commands.bench(*words, cwd=folder, timeout=SECONDS, LOWRANK_BENCH_DATA="", HF_HUB_OFFLINE="1")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode not in (0, 1, 2):
        return f"exit code {done.returncode}: {done.stderr[-1500:]}"
    if "Traceback" in done.stderr + done.stdout:
        return f"traceback: {(done.stderr + done.stdout)[-1500:]}"
    if done.returncode == 2 and len(errors) != 1:
        return f"{len(errors)} sentences: {done.stderr[-1500:]}"
    if done.returncode == 2 and len(done.stderr) > 2500:
        return f"a sentence of {len(done.stderr)} characters: {done.stderr[:500]}"
    if done.returncode == 2 and (written := files_below(folder) - before):
        return f"refused, and wrote {sorted(written)[:5]}"
    return ""


def test_lines_are_answered(chunk, world, pytestconfig):
    seed = pytestconfig.getoption("fuzzing_seed")
    complaints = []
    for number in range(chunk * LINES, (chunk + 1) * LINES):
        words = command_line(number, seed)
        if message := complaint(words, world):
            complaints.append(f"line {number}: bench {' '.join(repr(word[:80]) for word in words)}\n{message}")
    assert not complaints, "\n\n".join(complaints)


def test_every_command_and_every_option_is_drawn():
    drawn = [command_line(number) for number in range(3000)]
    commands_drawn = {next(names for names in COMMANDS if tuple(line[: len(names)]) == names) for line in drawn}
    assert commands_drawn >= set(TAKING_VALUES)
    words = {word for line in drawn for word in line if word.startswith("--")}
    assert {"--json", "--dense", "--changes", "--policies", "--storage", "--accelerate", "--min-drop"} <= words
