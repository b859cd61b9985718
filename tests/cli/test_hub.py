"""Models and datasets of a hub through the real commands and the real clients, against a server on 127.0.0.1."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import pytest
from loopback_hub import TOKEN, LoopbackHub, running

from lowrank_bench.evals.data.datasets import REVISIONS_VARIABLE
from lowrank_bench.models.presets import PRESETS

NAME = "someone/tiny"
EVALUATE = ("--benchmarks", "gsm8k,piqa,wikitext2,c4", "--limit", 2, "--max-new-tokens", 2, "--engine", "transformers")
SWEEP = ("--task", "language-c4", "--training-free", "--methods", "svd", "--ratios", 2, "--context", 32, *EVALUATE)


def model_files() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(PRESETS["tiny"].source).iterdir() if file.is_file()}


def lines(rows: list[dict[str, object]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def configured(name: str, **splits: list[dict[str, object]]) -> dict[str, bytes]:
    """The files of a dataset with one configuration of that name."""
    parts = "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in splits)
    readme = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{parts}---\n"
    return {f"{name}/{split}.jsonl": lines(rows) for split, rows in splits.items()} | {"README.md": readme.encode()}


def add_datasets(hub: LoopbackHub) -> str:
    """Add one dataset of each family of benchmarks; returns their commits as the variable has them."""
    piqa = [{"goal": f"g{i}", "sol1": "a b", "sol2": "c d", "label": i % 2} for i in range(1838)]
    gsm8k = [{"question": f"q{i}?", "answer": f"#### {i}"} for i in range(7473)]
    wikitext = [{"text": f"some words of line {i}\n"} for i in range(4358)]
    c4 = gzip.compress(lines([{"text": f"a text of the web, number {i}"} for i in range(1100)]))
    parts = {
        "gsm8k": ("openai/gsm8k", configured("main", train=gsm8k, test=gsm8k[:1319])),
        "piqa": ("baber/piqa", configured("default", validation=piqa)),
        "wikitext2": ("Salesforce/wikitext", configured("wikitext-2-raw-v1", test=wikitext)),
        "c4": ("allenai/c4", {"README.md": b"", "en/c4-train.00000-of-01024.json.gz": c4}),
    }
    commits = {name: hub.repository("datasets", ident).add(files) for name, (ident, files) in parts.items()}
    return ",".join(f"{name}={commit}" for name, commit in commits.items())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A hub that the environment names, with an empty cache; set before the process that forks commands imports."""
    with running() as served, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            patch.delenv(name)
        patch.delenv("LOWRANK_BENCH_DATA", raising=False)
        patch.setenv("HF_ENDPOINT", served.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
            patch.setenv(name, "1")
        patch.setenv(REVISIONS_VARIABLE, add_datasets(served))
        yield served


@pytest.fixture
def fresh(hub: LoopbackHub) -> Iterator[Callable[[], str]]:
    """Add a commit that no cache has; afterwards the hub is as it was."""
    repository = hub.repository("models", NAME)

    def add() -> str:
        files, weights = model_files(), "model.safetensors"
        # Other weights each time: the client's cache keeps files by content.
        files[weights] = files[weights][:-2] + bytes([len(repository.commits)]) + files[weights][-1:]
        return repository.add(files)

    yield add
    repository.gated = False
    hub.cut_off, hub.refuse, hub.refusals, hub.retry_after = None, 0, None, None


def hurried() -> None:
    """Let the hub's client not wait between its attempts."""
    import huggingface_hub.file_download
    import huggingface_hub.utils._http as http

    class Clock:
        @staticmethod
        def sleep(seconds: float) -> None:
            print(f"waited {seconds:g} s", file=sys.stderr)

    http.time = huggingface_hub.file_download.time = Clock  # type: ignore[attr-defined]


def unreachable() -> None:
    """Name a port where nothing listens as the hub."""
    from huggingface_hub import constants

    hurried()
    constants.ENDPOINT = "http://127.0.0.1:9"


def nameless() -> None:
    """Name a host that no name server knows as the hub."""
    from huggingface_hub import constants

    hurried()
    constants.ENDPOINT = "http://hub.invalid"


def offline() -> None:
    """Be as with HF_HUB_OFFLINE=1, which the client reads when it is imported."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def compress(commit: str, out: Path, name: str = NAME) -> tuple[object, ...]:
    return ("compress", name, "--revision", commit, "--method", "svd", "--ratio", 2, "--out", out)


def bench(
    *words: object, prepare: Callable[[], None] = hurried, **environment: str
) -> subprocess.CompletedProcess[str]:
    return commands.bench(*words, prepare=prepare, timeout=300, **environment)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the sentence that a command ended with, exit code 2 and nothing else but what the client waited for."""
    output_lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert output_lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in output_lines) == 1
    return output_lines[-1].removeprefix("error: ")


def contents(*folders: Path) -> Iterator[bytes]:
    for folder in folders:
        yield from (file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_sweep_of_gated_repositories_writes_no_token_and_is_repeated_without_a_connection(
    hub: LoopbackHub, fresh: Callable[[], str], tmp_path: Path
) -> None:
    """The model and a dataset of each family at their commits, newer ones beside them."""
    commit = fresh()
    hub.repository("models", NAME).add({"config.json": b"{}"})
    for repository in hub.repositories.values():
        repository.gated = True
    try:
        run = ("run", "--model", NAME, "--revision", commit, *SWEEP)
        done = bench(*run, "--out", tmp_path / "runs", HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        (tmp_path / "said").write_text(done.stdout + done.stderr)
        home = Path(os.environ["HF_HOME"])
        assert not [True for content in contents(tmp_path, home) if TOKEN.encode() in content]
        assert [file for file in tmp_path.rglob("sweep.yaml") if commit in file.read_text()]
    finally:
        for repository in hub.repositories.values():
            repository.gated = False
    hub.asked.clear()
    planned = bench(*run, "--out", tmp_path / "runs", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert not [path for path in hub.asked if NAME in path]
    evaluate = ("eval", NAME, "--revision", commit, *EVALUATE, "--benchmarks", "gsm8k,piqa,wikitext2")
    done = bench(*evaluate, "--out", tmp_path / "eval", prepare=offline)
    assert done.returncode == 0, done.stderr
    assert "it is streamed and never kept" in refusal(
        bench("eval", NAME, "--revision", commit, *EVALUATE, prepare=offline)
    )


SENTENCES: dict[str, tuple[dict[str, str], Callable[[], None], str]] = {
    "gated": ({}, hurried, "it is gated, and no token was sent.; ask for access at .* or set HF_TOKEN, or name a"),
    "gated, wrong token": ({"HF_TOKEN": "hf_another"}, hurried, "it is gated, and the token that was sent does not"),
    "429": ({}, hurried, "refuses further requests for a while, HTTP 429.; run the same command again in some minutes"),
    "500": ({}, hurried, "the hub answers HTTP 500.; run the same command again later"),
    "503": ({}, hurried, "the hub answers HTTP 503.; run the same command again later"),
    "refused": (
        {},
        unreachable,
        "http://127.0.0.1:9 cannot be reached: .*refused.; check the connection and HF_ENDPOI",
    ),
    "no such host": ({}, nameless, "http://hub.invalid cannot be reached: .*; check the connection and HF_ENDPOINT"),
    "offline": (
        {},
        offline,
        "not completely on this machine, and HF_HUB_OFFLINE forbids asking.*; unset HF_HUB_OFFLINE",
    ),
    "cut off": ({}, hurried, "the connection broke off: .*; run the same command again"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_the_hub_refuses_is_one_sentence_and_leaves_nothing(
    case: str, hub: LoopbackHub, fresh: Callable[[], str], tmp_path: Path
) -> None:
    environment, prepare, sentence = SENTENCES[case]
    commit = fresh()
    hub.repository("models", NAME).gated = case.startswith("gated")
    hub.refuse = int(case) if case.isdigit() else 0
    hub.cut_off = 100_000 if case == "cut off" else None
    message = refusal(bench(*compress(commit, tmp_path / "out"), prepare=prepare, **environment))
    assert message.startswith(f"cannot load the model '{NAME}' at {commit[:12]} from the hub (")
    assert re.search(sentence, message), message
    assert "hf_another" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "revision", "sentence"),
    [
        ("no/where", "a" * 40, "there is no such repository, or it is private.; check the name, or log in with"),
        (NAME, "a" * 40, f"the repository has no such commit.; name one of those at .*/{NAME}/commits/main"),
        (NAME, "main", "needs a pinned revision, .*; add --revision with the repository's 40-digit commit"),
        (NAME, "abcdef12", "needs a pinned revision"),
    ],
)
def test_what_is_not_on_the_hub_is_refused_by_every_command(
    name: str, revision: str, sentence: str, fresh: Callable[[], str], tmp_path: Path
) -> None:
    fresh()
    out = ("--out", tmp_path / "out")
    for words in (
        compress(revision, tmp_path / "out", name),
        ("eval", name, "--revision", revision, *EVALUATE, *out),
        ("run", "--model", name, "--revision", revision, *SWEEP, *out),
        ("run", "--model", name, "--revision", revision, *SWEEP, *out, "--dry-run"),
    ):
        assert re.search(sentence, refusal(bench(*words)))
        assert not list(tmp_path.iterdir())


def test_after_a_cut_the_next_run_asks_only_for_what_is_missing(
    hub: LoopbackHub, fresh: Callable[[], str], tmp_path: Path
) -> None:
    words = compress(fresh(), tmp_path / "out")
    hub.cut_off = 100_000
    refusal(bench(*words))
    hub.cut_off = None
    hub.asked.clear()
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert {path.rpartition("/")[2] for path in hub.asked} == {"model.safetensors"}


@pytest.mark.parametrize("wait", [None, 3])
def test_a_short_rate_limit_is_waited_for(
    wait: int | None, hub: LoopbackHub, fresh: Callable[[], str], tmp_path: Path
) -> None:
    words = compress(fresh(), tmp_path / "out")
    hub.refuse, hub.refusals, hub.retry_after = 429, 2, wait
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    waited = [line for line in done.stderr.splitlines() if line.startswith("waited ")]
    assert waited == (["waited 1 s", "waited 2 s"] if wait is None else ["waited 4 s"] * 2)  # a second more than asked


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"eos_token_id": "end"}'])
def test_generation_settings_that_cannot_be_read_are_not_passed_over(
    broken: bytes, hub: LoopbackHub, tmp_path: Path
) -> None:
    """The tokens that end a sequence would be those of another file."""
    commit = hub.repository("models", NAME).add(model_files() | {"generation_config.json": broken})
    message = refusal(bench(*compress(commit, tmp_path / "out")))
    assert "generation_config.json" in message
    assert not list(tmp_path.iterdir())


def test_the_variable_for_offline_mode_is_obeyed(hub: LoopbackHub, fresh: Callable[[], str], tmp_path: Path) -> None:
    """In processes that start afresh: what is here is used, what is not is refused, and nothing is asked for."""
    here, absent = fresh(), fresh()
    assert bench(*compress(here, tmp_path / "online")).returncode == 0
    hub.asked.clear()
    answers = []
    for number, commit in enumerate((here, absent)):
        words = [str(word) for word in compress(commit, tmp_path / str(number))]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        answers.append(
            subprocess.run([*commands.FRESH, *words], env=environment, capture_output=True, text=True, timeout=300)
        )
    assert answers[0].returncode == 0, answers[0].stderr
    assert "HF_HUB_OFFLINE forbids asking the hub" in refusal(answers[1])
    assert hub.asked == []
