"""How a script of parts runs: each part in a process of its own, under a clock, its rows kept as they are made."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_sections.package import ROOT, importable
from gpu_sections.table import Context, Result, Row, failed, printed

LIMIT = 535.0
"""Seconds after which a part is killed, whatever it does: nine minutes with its start and end."""


@dataclass(frozen=True)
class Part:
    """One table.

    Attributes:
        module: in `gpu_sections`; its ``run(context)`` returns or yields rows.
        seconds: by which the part's own clock ends its work, below `LIMIT`.
        cases: where not empty, ``run(context, case)`` is called for each, in a process of its own: what one of them
            takes, or fails to get, leaves nothing behind for the next.
    """

    module: str
    seconds: float
    cases: tuple[str, ...] = ()


def main(
    script: Path,
    description: str,
    parts: Mapping[str, Part],
    out: str,
    more: Mapping[str, tuple[str, str]] | None = None,
) -> int:
    """Run the command line of a script of parts.

    Args:
        script: the script itself, which is started again for every part.
        description: for ``--help``.
        parts: by name, in the order in which they run.
        out: default of ``--out``, from the root.
        more: options of this script, by name: default and help; parts find their values in `Context.options`.

    Returns:
        Exit code: 1 where a row failed or missed its target, 2 for a wrong command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--parts", default=",".join(parts), help=f"which, with commas: {', '.join(parts)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where there is a GPU")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; targets of time do not count")
    parser.add_argument("--out", type=Path, help=f"folder for one JSON file a part; {out} or {out}-small by default")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is in --out")
    parser.add_argument("--together", action="store_true", help="all in one process, which loads the libraries once")
    parser.add_argument("--seconds", type=float, help="longest time of a part, where that is less than its own")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    for name, (default, text) in (more or {}).items():
        parser.add_argument(f"--{name}", default=default, help=f"{text} ({default or 'none'} by default)")
    options = parser.parse_args()
    if options.seconds is not None:
        parts = {name: replace(part, seconds=min(part.seconds, options.seconds)) for name, part in parts.items()}
    own_options = {name: str(getattr(options, name)) for name in more or {}}
    folder = options.out or ROOT / (out + "-small" * options.small)
    if options.table:
        return print_all(folder, parts)
    chosen = options.parts.split(",")
    if unknown := [name for name in chosen if name not in parts]:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(parts)}")
    if options.jobs:
        # Not at the top: only processes that run jobs can import the package. Before torch, which may start threads.
        from lowrank_bench.foundation.process import end_with

        end_with(os.getppid(), group=True)
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu --small")
    if device == "cpu" and not options.small:
        parser.error("full sizes take hours on a CPU; add --small")
    own = ["--small"] * options.small + [word for name, value in own_options.items() for word in (f"--{name}", value)]
    if options.jobs:
        command = shlex.join(["python", f"perf/{script.name}", "--parts", "PART", *own])
        jobs = [Job(*job) for job in json.loads(options.jobs)]
        for job in jobs:
            context = Context(device, options.small, job.seconds, folder=folder.resolve(), options=own_options)
            run_here(parts[job.part], job, context, command)
        return 0
    missed: list[tuple[str, Row]] = []
    with importable() as environment:
        words = [sys.executable, str(script), "--device", device, "--out", str(folder), *own]
        for names in [chosen] if options.together else [[name] for name in chosen]:
            print(f"{', '.join(names)} …", flush=True)
            for result in run_apart(words, {name: parts[name] for name in names}, environment, folder):
                print(f"\n{result.printed()}", flush=True)
                missed += [(result.part, row) for row in result.rows if row.met is False]
    if missed:
        print(f"{len(missed)} rows failed or missed their target:\n\n{printed(missed)}", flush=True)
    return int(bool(missed))


def print_all(folder: Path, parts: Mapping[str, Part]) -> int:
    """Print the tables of all parts that have run, in order; returns 1 where a target is missed or nothing ran."""
    results = [Result.load(file) for name in parts if (file := folder / f"{name}.json").exists()]
    for result in results:
        print(result.printed())
    if missing := [name for name in parts if name not in {result.part for result in results}]:
        print(f"not run yet: {', '.join(missing)} (no file in {folder})")
    return int(not results or any(row.met is False for result in results for row in result.rows))


@dataclass(frozen=True)
class Job:
    """A part, or one case of it, for a process: the seconds that it has, and the file that its rows go to."""

    part: str
    case: str
    seconds: float
    file: str


def run_here(part: Part, job: Job, context: Context, command: str) -> None:
    """Do a job in this process; each row goes into the file as soon as it is known, a failure as the last one."""
    with open(job.file, "a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write({"facts": facts(context, command.replace("PART", job.part))})
        try:
            module = import_module(f"gpu_sections.{part.module}")
            for row in module.run(context, job.case) if job.case else module.run(context):
                write({"row": asdict(row)})
        except Exception as error:
            traceback.print_exc()
            write({"row": asdict(failed(job.case or job.part, error))})
        write({"end": job.case})


def run_apart(words: list[str], parts: Mapping[str, Part], environment: dict[str, str], folder: Path) -> list[Result]:
    """Run parts in other processes and keep their rows.

    Args:
        words: of the command that runs jobs.
        parts: by name; those of one part alone have a process for each case, those of several one for all.
        environment: of the processes.
        folder: for the parts' files.
    """
    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder.resolve() / f"{name}.lines" for name in parts}
    for file in files.values():
        file.write_text("")
    budget, grace = sum(part.seconds for part in parts.values()), sum(LIMIT - part.seconds for part in parts.values())
    cases = [(name, case) for name, part in parts.items() for case in part.cases or ("",)]
    groups = [cases] if len(parts) > 1 else [[case] for case in cases]
    for index, group in enumerate(groups):
        # What a process does not use of its time is the next ones'.
        seconds = (budget - (time.perf_counter() - begin)) / (len(groups) - index)
        jobs = [[name, case, min(seconds, parts[name].seconds), str(files[name])] for name, case in group]
        reason = ended([*words, "--jobs", json.dumps(jobs)], environment, seconds + grace / len(groups))
        for name, case in group if reason else ():
            if {"end": case} not in read_lines(files[name]):
                lines = [*read_lines(files[name]), {"row": asdict(failed(case or name, reason))}]
                files[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = []
    for name, file in files.items():
        lines = read_lines(file)
        known = next((line["facts"] for line in lines if "facts" in line), {})
        rows = [Row(**line["row"]) for line in lines if "row" in line]
        results.append(Result(name, known | {"took": f"{time.perf_counter() - begin:.0f} s"}, rows))
        results[-1].save(folder)
        file.unlink()
    return results


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return what jobs wrote, but for a line that a kill cut off."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


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


def facts(context: Context, command: str) -> dict[str, str]:
    """Return what a reader of the rows has to know."""
    import torch

    gpu = context.device == "cuda"
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
