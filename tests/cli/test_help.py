"""Every command's help fits 80 columns, cuts nothing off, and ends with command lines that the command accepts."""

import json
import os
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest
import typer

from lowrank_bench.cli import app
from lowrank_bench.cli.help import EXAMPLES, named_commands

COLUMNS = 80
NAMES = [name for name, _ in named_commands(app)]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The help of every command and group, as a terminal of 80 columns shows it."""
    groups = ["", *(group.name for group in app.registered_groups)]
    code = (
        "import sys, contextlib, io, json\n"
        "from lowrank_bench.cli import app\n"
        "pages = {}\n"
        "for name in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as page:\n"
        "        app([*name.split(), '--help'], prog_name='bench', standalone_mode=False)\n"
        "    pages[name] = page.getvalue()\n"
        "print(json.dumps(pages))\n"
    )
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERMINAL_WIDTH": str(COLUMNS)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([*groups, *NAMES]),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def parse(words: list[str]) -> None:
    """Read a command line as the command would, without running it; raises where it is not accepted."""
    command = typer.main.get_command(app)
    while True:
        context = command.make_context(command.name, list(words))
        if not hasattr(command, "resolve_command"):
            return
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        _, command, words = command.resolve_command(context, rest)


def test_help_fits_eighty_columns_and_cuts_nothing_off(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        assert max(map(len, page.splitlines())) <= COLUMNS, name
        cut = [line for line in page.splitlines() if "…" in line.replace("RUN…", "").replace(", …", "")]
        assert not cut, f"{name}: {cut}"


def test_paragraphs_are_as_wide_as_the_terminal(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        above = [line.strip() for line in page.partition("╭─")[0].splitlines()]
        for line, below in pairwise(above):
            first = below.split(" ")[0]
            assert not line or not below or len(line) + 1 + len(first) > COLUMNS - 2, f"{name}: {line}"


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_command_lines_that_the_command_accepts(pages: dict[str, str], name: str) -> None:
    assert EXAMPLES[name]
    for line in EXAMPLES[name]:
        assert f" {line} " in pages[name]  # on one line
        words = shlex.split(line.partition(" > ")[0])
        assert words[: 1 + len(name.split())] == ["bench", *name.split()] or name == "leaderboard show"
        parse(words[1:])


def test_an_option_that_is_no_more_would_be_seen() -> None:
    with pytest.raises(Exception, match="--rations"):
        parse(["run", "--rations", "2"])
