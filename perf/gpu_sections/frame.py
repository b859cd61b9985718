"""How a script of parts runs: each part in a process of its own, under a clock, its rows kept as they are made."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_sections.package import ROOT, importable
from gpu_sections.table import Result, Row, Where, failed

LIMIT = 535.0
"""Seconds after which a part is killed, whatever it does: nine minutes with its start and end."""


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        module: in `gpu_sections`; its ``run(where)`` returns or yields rows.
        seconds: by which the part's own clock ends its work, below `LIMIT`.
        cases: where not empty, ``run(where, case)`` is called for each, in a process of its own: what one of them
            takes, or fails to get, leaves nothing behind for the next.
    """

    module: str
    seconds: float
    cases: tuple[str, ...] = ()


def main(script: Path, description: str, parts: Mapping[str, Part], out: str) -> int:
    """Run the command line of a script of parts.

    Args:
        script: the script itself, which is started again for every part.
        description: for ``--help``.
        parts: by name, in the order in which they run.
        out: default of ``--out``, from the root.

    Returns:
        Exit code: 1 where a row failed or missed its target, 2 for a wrong command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", default=",".join(parts), help=f"which, with commas: {', '.join(parts)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; targets of time do not count")
    parser.add_argument("--out", type=Path, help=f"folder for one JSON file a part; {out} or {out}-small by default")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is in --out")
    parser.add_argument("--one", nargs=4, metavar=("PART", "CASE", "SECONDS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.out or ROOT / (out + "-small" * options.small)
    if options.table:
        return print_all(folder, parts)
    chosen = options.parts.split(",")
    if unknown := [name for name in chosen if name not in parts]:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(parts)}")
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu --small")
    if device == "cpu" and not options.small:
        parser.error("7B sizes take hours on a CPU; add --small")
    if options.one:
        name, case, seconds, lines = options.one
        command = shlex.join(["python", f"perf/{script.name}", "--parts", name] + ["--small"] * options.small)
        return run_here(parts[name], Where(device, options.small, float(seconds)), case, Path(lines), command)
    missed = False
    with importable() as environment:
        for name in chosen:
            words = ["--device", device] + ["--small"] * options.small
            result = run_apart(script, name, parts[name], words, environment, folder)
            print(f"\n{result.printed()}", flush=True)
            missed |= any(row.met is False for row in result.rows)
    return int(missed)


def print_all(folder: Path, parts: Mapping[str, Part]) -> int:
    """Print the tables of all parts that have run, in order; returns 1 where a target is missed or nothing ran."""
    found = [Result.load(file) for name in parts if (file := folder / f"{name}.json").exists()]
    for result in found:
        print(result.printed())
    if missing := [name for name in parts if name not in {result.part for result in found}]:
        print(f"not run yet: {', '.join(missing)} (no file in {folder})")
    return int(not found or any(row.met is False for result in found for row in result.rows))


def run_here(part: Part, where: Where, case: str, lines: Path, command: str) -> int:
    """Run a part, or one case of it, in this process, and add each row to a file as soon as it is known."""
    module = import_module(f"gpu_sections.{part.module}")
    with lines.open("a") as file:
        file.write(json.dumps(facts(where, command)) + "\n")
        for row in module.run(where, case) if case else module.run(where):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
    return 0


def run_apart(
    script: Path, name: str, part: Part, words: list[str], environment: dict[str, str], folder: Path
) -> Result:
    """Run a part in one process, or in one for each of its cases, and keep its rows."""
    print(f"{name} …", flush=True)
    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / f"{name}.lines"
    lines.write_text("")
    cases = part.cases or ("",)
    ends: list[tuple[str, str]] = []
    for index, case in enumerate(cases):
        spent = time.perf_counter() - begin
        seconds = (part.seconds - spent) / (len(cases) - index)  # what a case does not use is the next ones'
        command = [sys.executable, str(script), *words, "--one", name, case, f"{seconds:.1f}", str(lines.resolve())]
        ends.append((case or name, ended(command, environment, seconds + (LIMIT - part.seconds) / len(cases))))
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    rows = [Row(**line) for line in found if "what" in line] + [failed(*end) for end in ends if end[1]]
    lines.unlink()
    known = next((line for line in found if "what" not in line), {})
    result = Result(name, known | {"took": f"{time.perf_counter() - begin:.0f} s"}, rows)
    result.save(folder)
    return result


def ended(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """Run a process with all that it starts; returns why it failed, or nothing."""
    process = subprocess.Popen(command, env=environment, start_new_session=True, cwd=ROOT)
    try:
        code = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        return f"killed after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
    return "" if code == 0 else f"the process ended with {code}; its messages are above"


def facts(where: Where, command: str) -> dict[str, str]:
    """Return what a reader of the rows has to know."""
    import torch

    gpu = where.device == "cuda"
    return {
        "device": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if gpu else platform.machine(),
        **{name: installed(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "commit": commit(),
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def commit() -> str:
    """Return the checkout's commit, or that it is unknown."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()
    return "unknown"
