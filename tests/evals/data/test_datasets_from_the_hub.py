"""Datasets from a hub: the real clients against a server on 127.0.0.1, in processes of their own."""

import json
import os
import re
import subprocess
import sys

import pytest
from loopback_hub import TOKEN, running

from lowrank_bench.evals.data.datasets import REVISIONS_VARIABLE, content_sha256, load_rows, specs

README = """---
configs:
{}---
"""
CONFIG = "- config_name: {0}\n  data_files:\n  - split: {1}\n    path: {0}/{1}.jsonl\n"
SCRIPT = """
import json, sys
from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.foundation.errors import UserError
for name, split in json.loads(sys.argv[1]):
    try:
        rows = load_rows(name, split, None)
        print(json.dumps([len(rows.rows), rows.sha256, rows.source, sorted(rows.rows[0])]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def rows_of(version, count=1319):
    return [{"question": f"{version} {i}", "answer": f"#### {i}"} for i in range(count)]


def files(parts, split="test"):
    """The files of a dataset with these configurations and rows."""
    data_files = {f"{name}/{split}.jsonl": "\n".join(map(json.dumps, rows)).encode() for name, rows in parts.items()}
    return data_files | {"README.md": README.format("".join(CONFIG.format(name, split) for name in parts)).encode()}


@pytest.fixture
def hub():
    with running() as served:
        yield served


@pytest.fixture
def load(hub, tmp_path):
    """Load splits in one new process; returns what it printed about each, and checks what it said besides."""

    def run(*splits, revisions, **environment):
        pinned = ",".join(f"{name}={commit}" for name, commit in revisions.items())
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LOWRANK"))}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), REVISIONS_VARIABLE: pinned}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(splits)],
            capture_output=True,
            text=True,
            env=inherited | own | quiet | environment,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


GSM8K = ("gsm8k", "test")


def test_the_pinned_revision_is_loaded_with_and_without_a_connection(hub, load):
    """Without one, the datasets library alone gives the newest cached revision, whatever was asked for."""
    repository = hub.repository("datasets", "openai/gsm8k")
    other = {"socratic/test.jsonl": b"not read"}
    first, second = (repository.add(files({"main": rows_of(version)}) | other) for version in ("old", "new"))
    never = repository.add(files({"main": rows_of("never")}))
    fields = ("question", "answer")
    for commit, version in ((first, "old"), (second, "new")):
        ((count, sha256, source, names),) = load(GSM8K, revisions={"gsm8k": commit})
        assert (count, sha256) == (1319, content_sha256(rows_of(version), fields))
        assert source == f"hub:openai/gsm8k@{commit}/test"
        assert names == sorted(fields)
    assert not [path for path in hub.asked if "socratic/test.jsonl" in path]
    offline = {"HF_HUB_OFFLINE": "1"}
    ((_, sha256, _, _),) = load(GSM8K, revisions={"gsm8k": first}, **offline)
    assert sha256 == content_sha256(rows_of("old"), fields)
    (message,) = load(GSM8K, revisions={"gsm8k": never}, **offline)
    assert f"cannot load openai/gsm8k@{never}/test from the hub" in message
    assert "pass --data DIR" in message


def test_other_content_at_the_pinned_commit_is_refused(hub, load):
    hub.repository("datasets", "openai/gsm8k").commits[str(specs["gsm8k"].revision)] = files({"main": rows_of("x")})
    (message,) = load(GSM8K, revisions={})
    assert f"@{specs['gsm8k'].revision}/test is not the published data" in message


def test_what_the_hub_refuses_is_one_sentence(hub, load):
    repository = hub.repository("datasets", "openai/gsm8k")
    commit = repository.add(files({"main": rows_of("x")}))
    (gone,) = load(GSM8K, revisions={"gsm8k": "a" * 40})
    repository.gated = True
    (closed,) = load(GSM8K, revisions={"gsm8k": commit})
    (wrong,) = load(GSM8K, revisions={"gsm8k": commit}, HF_TOKEN="hf_another")
    for message in (gone, closed, wrong):
        assert message.startswith("cannot load openai/gsm8k@")
        assert "\n" not in message
        assert "hf_another" not in message
    ((count, *_),) = load(GSM8K, revisions={"gsm8k": commit}, HF_TOKEN=TOKEN)
    assert count == 1319


def test_a_download_that_is_cut_off_is_one_sentence_and_goes_on_later(hub, load):
    commit = hub.repository("datasets", "openai/gsm8k").add(files({"main": rows_of("x")}))
    hub.cut_off = 20_000
    (message,) = load(GSM8K, revisions={"gsm8k": commit})
    assert message.startswith("cannot load openai/gsm8k@")
    hub.cut_off = None
    ((count, *_),) = load(GSM8K, revisions={"gsm8k": commit})
    assert count == 1319


def test_configurations_are_joined_checked_and_counted(hub, load):
    row = {"problem": "p", "level": "Level 1", "type": "Algebra", "solution": "s", "more": 1}
    parts = {name: [row] * (2 if name == "algebra" else 833) for name in specs["math"].configs}
    repository = hub.repository("datasets", "EleutherAI/hendrycks_math")
    right = repository.add(files(parts))
    wrong = repository.add(files(parts | {"algebra": [row] * 1000}))
    lacking = repository.add(files(parts | {"algebra": [{"problem": "p"}] * 2}))
    ((count, _, _, names),) = load(("math", "test"), revisions={"math": right})
    assert (count, "more" in names) == (5000, False)
    (message,) = load(("math", "test"), revisions={"math": wrong})
    assert "5,998 records but math/test has 5,000" in message
    (message,) = load(("math", "test"), revisions={"math": lacking})
    assert "lacks the field 'level'" in message


def test_rows_of_another_form_become_records(hub, load, data_dir):
    """The hub's rows of StereoSet, rebuilt from the local file, give the published content."""
    local = load_rows("stereoset", "validation", data_dir).rows
    labels = {"unrelated": 2, "stereotype": 1, "anti_stereotype": 0}
    parts = {
        config: [
            {name: row[name] for name in ("id", "target", "bias_type", "context")}
            | {"sentences": {"sentence": [row[kind] for kind in labels], "gold_label": list(labels.values())}}
            for row in local
            if row["kind"] == config
        ]
        for config in specs["stereoset"].configs
    }
    commit = hub.repository("datasets", "McGill-NLP/stereoset").add(files(parts, "validation"))
    ((_, sha256, _, _),) = load(("stereoset", "validation"), revisions={"stereoset": commit})
    assert sha256 == specs["stereoset"].splits["validation"].sha256


def test_only_the_beginning_of_a_large_split_is_read(hub, load):
    texts = [{"text": f"text {i}", "url": "u"} for i in range(1200)]
    path = str(specs["c4"].data_files).removesuffix(".gz")
    assert path.startswith("en/")
    import gzip

    content = gzip.compress("\n".join(map(json.dumps, texts)).encode())
    commit = hub.repository("datasets", "allenai/c4").add({"README.md": b"", f"{path}.gz": content})
    ((count, sha256, _, _),) = load(("c4", "train_head"), revisions={"c4": commit})
    assert (count, sha256) == (1000, content_sha256(texts[:1000], ("text",)))


TASK_SCRIPT = """
import json, sys
from pathlib import Path
from lowrank_bench.evals.tasks.files.opening import open_task
from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.foundation.errors import UserError
for path in sys.argv[1:]:
    try:
        task = open_task(path)
        rows = benchmarks.get(task.benchmarks[0])().data(EvalSettings()).rows
        print(json.dumps([task.survey(None, None, 0, 1).count, len(rows), rows[0]["answers"]]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_a_task_file_reads_a_hub_dataset_and_refuses_it_in_one_sentence(hub, tmp_path):
    """Data with configurations and splits; then an unknown commit, column, split and configuration, and a gate."""
    rows = {"train": [{"q": f"question {n}", "a": n} for n in range(30)], "test": [{"q": "last", "a": -1}] * 2}
    content = {f"plain/{split}.jsonl": "\n".join(map(json.dumps, rows[split])).encode() for split in rows}
    listing = "".join(f"  - split: {split}\n    path: plain/{split}.jsonl\n" for split in rows)
    content["README.md"] = README.format(f"- config_name: plain\n  data_files:\n{listing}").encode()
    commit = hub.repository("datasets", "owner/open").add(content)
    later = hub.repository("datasets", "owner/open").add(content | {"more.txt": b"x"})
    closed = hub.repository("datasets", "owner/closed").add(content)
    hub.repository("datasets", "owner/closed").gated = True

    def file(name, data="owner/open", revision=commit, columns="{prompt: q, completion: a}", test="", train=""):
        source = f"data: {data}, revision: {revision}"
        text = f"name: {name}\ntrain: {{{source}, columns: {columns}{train}}}\nbenchmarks:\n"
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"{text}  - {{name: b, kind: exact, {source}{test}}}\n")
        return str(path)

    def run(*paths, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LOWRANK"))}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", TASK_SCRIPT, *paths]
        done = subprocess.run(command, capture_output=True, text=True, env=inherited | own | environment, timeout=1200)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    good, named = file("good"), file("named", train=", config: plain", test=", config: plain, split: train")
    unread = file("unread", revision=later)
    refused = {
        file("gone", revision="a" * 40): "cannot load owner/open@aaaa.*the repository has no such commit",
        file("nobody", data="owner/none", revision=commit): "cannot load owner/none@.*there is no such repository",
        file("shut", data="owner/closed", revision=closed): "cannot load owner/closed@.*it is gated, and no token",
        file("columns", columns="{prompt: q, completion: b}"): "owner/open@.*' has no column 'b'; its columns: q, a",
        file("split", train=", split: dev"): "owner/open@.*has no split 'dev'; its splits: train, test",
        file("config", train=", config: main"): "owner/open@.*has no configuration 'main'.* its configurations: plain",
    }
    read_good, read_named, *sentences = run(good, named, *refused)
    assert (read_good, read_named) == ([30, 2, ["-1"]], [30, 30, ["0"]])
    for sentence, expected in zip(sentences, refused.values(), strict=True):
        assert re.search(expected, sentence), sentence
        assert "\n" not in sentence
    with_cache, without_cache = run(good, unread, HF_HUB_OFFLINE="1")
    assert with_cache == [30, 2, ["-1"]]
    assert f"cannot load owner/open@{later}/train from the hub (it is not completely on this machine" in without_cache
