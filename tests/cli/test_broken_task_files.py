"""Broken task files and data: one sentence with file, line or row, and field; exit code 2; nothing half-written."""

# ruff: noqa: E501 - one case a line

import gzip
import io
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowrank_bench.cli import main
from lowrank_bench.evals.tasks import base

GOOD = """\
name: sums
train:
  data: train.jsonl
prompt: question
max_length: 64
benchmarks:
  - name: exact
    kind: exact
"""
ROWS = "".join(f'{{"prompt": "What is {n} and {n}?", "completion": "{2 * n}"}}\n' for n in range(60)).encode()
TURNS = (
    '{"messages": [' + ", ".join(f'{{"role": "{role}", "content": "x"}}' for role in ("user", "assistant") * 2) + "]}\n"
)
TEST = "  - {name: b, kind: exact, data: test.jsonl}\n"


def yaml(old: str, new: str) -> dict[str, str | bytes]:
    """Return the good files with a change to the task file."""
    assert old in GOOD
    return {"task.yaml": GOOD.replace(old, new)}


def rows(content: str | bytes, name: str = "train.jsonl") -> dict[str, str | bytes]:
    """Return the good files with other training data."""
    return {"task.yaml": GOOD.replace("train.jsonl", name), name: content}


def added(part: str, content: str = "", name: str = "test.jsonl") -> dict[str, str | bytes]:
    """Return the good files with one more benchmark and its data."""
    return {"task.yaml": GOOD + part, name: content}


def parquet(values: list, name: str = "completion") -> bytes:
    """Return a Parquet file of prompts and another column."""
    columns = [pa.array([f"Is {n} even?" for n in range(len(values))]), pa.array(values)]
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", name]), file := io.BytesIO())
    return file.getvalue()


DAMAGED = parquet(["x"] * 3000)
DAMAGED = DAMAGED[:60] + b"\x00\xff" * 40 + DAMAGED[140:]

BROKEN: dict[str, tuple[dict[str, str | bytes], str]] = {
    # The task file.
    "no-yaml": (yaml("name: sums", "name: [sums"), "the task file .*task.yaml is no valid YAML"),
    "no-mapping": ({"task.yaml": "- a\n- b\n"}, "the task file .*task.yaml must hold 'key: value' lines"),
    "no-name": (yaml("name: sums\n", ""), "'task.yaml', line 1, field 'name': it is missing"),
    "odd-name": (yaml("name: sums", "name: My Sums"), "line 1, field 'name': the name 'My Sums' is not usable"),
    "taken-name": (yaml("name: sums", "name: toy-math"), "task name 'toy-math' is that of a built-in task"),
    "no-train": (yaml("train:\n  data: train.jsonl\n", ""), "field 'train': it is missing"),
    "no-data": (yaml("  data: train.jsonl", "  form: auto"), "line 2, field 'train.data': it is missing"),
    "unknown-key": (yaml("max_length", "max_lenght"), "line 5, field 'max_lenght': unknown key; did you mean 'max_length'"),
    "unknown-train-key": (yaml("  data", "  column: {}\n  data"), "line 3, field 'train.column': .*'columns'"),
    "unknown-kind": (yaml("kind: exact", "kind: exakt"), r"line 7, field 'benchmarks.0': unknown kind 'exakt'; did you mean 'exact'"),
    "no-kind": (yaml("    kind: exact\n", ""), "field 'benchmarks.0': 'kind' is missing; allowed: exact, match"),
    "foreign-key": (yaml("kind: exact", "kind: exact\n    choices: [a, b]"), "line 9, field 'benchmarks.0.choices': unknown key"),
    "odd-length": (yaml("64", "long"), "line 5, field 'max_length': it cannot be 'long'"),
    "short-length": (yaml("64", "2"), "line 5, field 'max_length': it cannot be 2: input should be greater"),
    "odd-prompt": (yaml("prompt: question", "prompt: Q"), "line 4, field 'prompt': 'Q' is no prompt; write one of auto, chat"),
    "odd-loss": (yaml("prompt: question", "loss: some"), "line 4, field 'loss': it cannot be 'some'"),
    "odd-share": (yaml("prompt: question", "test_share: 1.5"), "line 4, field 'test_share'"),
    "two-names": (yaml("    kind: exact\n", "    kind: exact\n  - {name: exact, kind: f1}\n"), "two benchmarks are called 'exact'"),
    "no-benchmarks": (yaml("  - name: exact\n    kind: exact\n", "  []\n"), "field 'benchmarks': it cannot be"),
    "bad-regex": (added("  - {name: b, kind: regex, extract: '('}\n"), "line 9, field 'benchmarks.1.extract': .* is no regular expression"),
    "no-regex": (added("  - {name: b, kind: regex}\n"), "line 9, field 'benchmarks.1': a benchmark of kind regex needs 'extract'"),
    "bad-schema": (added("  - {name: b, kind: json, schema: {type: 7}}\n"), "field 'benchmarks.1.schema': that is no usable JSON schema"),
    "odd-instruction": (yaml("prompt: question", "instruction: '{promt}'"), "'instruction' reads the column 'promt', .* did you mean 'prompt'"),
    "instruction-of-nothing": (yaml("prompt: question", "instruction: hello"), "'instruction' reads no column; write {column}"),
    "key-twice": (yaml("max_length: 64", "max_length: 64\nmax_length: 32"), r"task.yaml is no valid YAML \(line 6: the key 'max_length' is there twice"),
    "inner-key-twice": (yaml("  data: train.jsonl", "  data: train.jsonl\n  data: other.jsonl"), r"line 4: the key 'data' is there twice"),
    "tab": (yaml("  data", "\tdata"), r"no valid YAML \(line 3: .*found character"),
    "nested-text": (yaml("name: sums", "name: {a: 1}"), "line 1, field 'name': it cannot be {'a': 1}: input should be a valid string"),
    "benchmarks-as-mapping": (yaml("  - name: exact\n    kind: exact", "  name: exact\n  kind: exact"), "line 6, field 'benchmarks': it cannot be"),
    "prompt-of-a-column": (yaml("prompt: question", "prompt: 'Q: {instruction} {promt}'"), r"line 4, field 'prompt': a prompt knows {instruction} alone, and this one has {promt}"),
    "remote-schema": (added("  - {name: b, kind: json, schema: {items: {$ref: 'https://example.org/s.json'}}}\n"), r"line 9, field 'benchmarks.1.schema': .* refers to another document \(https://example.org/s.json\)"),
    "schema-of-nothing": (added("  - {name: b, kind: json, schema: {$ref: '#/$defs/none'}}\n"), r"line 9, field 'benchmarks.1.schema': .* refers to #/\$defs/none, which it does not have"),
    "no-schema-file": (added("  - {name: b, kind: json, schema: s.json}\n"), "line 9, field 'benchmarks.1.schema': the JSON schema .*s.json cannot be read"),
    # Where the data are.
    "folder": (added("  - {name: b, kind: exact, data: '.'}\n"), "line 9, field 'benchmarks.1.data': '.' has an unknown ending"),
    "no-file": (yaml("train.jsonl", "trian.jsonl"), r"line 3, field 'train.data': there is no file 'trian.jsonl' .*; did you mean 'train.jsonl'"),
    "odd-ending": ({"task.yaml": GOOD.replace("train.jsonl", "train.xlsx"), "train.xlsx": b"x"}, "'train.xlsx' has an unknown ending; allowed: .jsonl"),
    "hub-without-commit": (yaml("train.jsonl", "owner/data"), "the hub dataset 'owner/data' needs its revision"),
    "branch": (yaml("train.jsonl", "owner/data\n  revision: main"), "line 4, field 'train.revision': 'main' is no commit"),
    "file-with-commit": (yaml("train.jsonl", "train.jsonl\n  revision: " + "a" * 40), "'train.jsonl' is a file, which has no revision"),
    # What is in the data.
    "empty-file": (rows(b""), "'train.jsonl' has no rows"),
    "no-json": (rows(ROWS + b"{prompt: 1}\n"), "line 61 of 'train.jsonl' is not JSON"),
    "cut-last-line": (rows(ROWS[:-9]), "line 60 of 'train.jsonl' is not JSON"),
    "long-cut-line": (rows(ROWS + b'{"prompt": "' + b"x" * 5_000_000), "line 61 of 'train.jsonl' is not JSON"),
    "json-key-twice": (rows(ROWS + b'{"prompt": "a", "completion": "b", "completion": "c"}\n'), r"line 61 of 'train.jsonl' is not JSON \(it names 'completion' twice\)"),
    "json-array": (rows(b'[{"prompt": "a"}]\n'), "line 1 of 'train.jsonl' is not a JSON object; write one object a line"),
    "missing-column": (rows(ROWS + b'{"prompt": "a", "answer": "b"}\n'), "line 61 of 'train.jsonl' has no column 'completion'.* its columns: prompt, answer"),
    "no-known-column": (rows(b'{"q": "a", "a": "b"}\n'), "'train.jsonl' has none of the columns 'messages', .* its columns: q, a"),
    "not-utf8": (rows(ROWS + b'{"prompt": "\xff", "completion": "b"}\n'), "line 61 of 'train.jsonl' is not UTF-8 text"),
    "utf16": (rows("prompt,completion\na,b\n".encode("utf-16"), "train.csv"), "'train.csv' is UTF-16 text; save it as UTF-8"),
    "half-a-character": (rows(ROWS + b'{"prompt": "a", "completion": "\\ud800"}\n'), "column 'completion' in line 61 of 'train.jsonl' holds half"),
    "all-empty": (rows(b'{"prompt": "", "completion": "b"}\n'), "leave no example: 1 rows, 1 with an empty prompt"),
    "cut-gzip": (rows(b"\x1f\x8b\x08\x00\x00", "train.jsonl.gz"), "'train.jsonl.gz' is damaged or cut off after line 0"),
    "cut-late-gzip": (rows(gzip.compress(ROWS * 50)[:-200], "train.jsonl.gz"), r"'train.jsonl.gz' is damaged or cut off after line \d+; make it again"),
    "no-gzip": (rows(ROWS, "train.jsonl.gz"), "the bytes in 'train.jsonl.gz' are not those of a gzip file"),
    "gzip-and-more": (rows(gzip.compress(ROWS) + b"more", "train.jsonl.gz"), "the bytes after line 60 of 'train.jsonl.gz' are not those of a gzip file"),
    "unnamed-gzip": (rows(gzip.compress(ROWS)), "'train.jsonl' is compressed by gzip; name it 'train.jsonl.gz'"),
    "csv-fields": (rows("prompt,completion\na,b\nc,d,e\n", "train.csv"), "line 3 of 'train.csv' has 3 fields and the header 2"),
    "csv-quote": (rows('prompt,completion\na,"b\n', "train.csv"), "line 2 of 'train.csv' is not CSV"),
    "csv-semicolon": (rows("prompt;completion\na;b\n", "train.csv"), "line 1 of 'train.csv' has one column, .* write delimiter: \";\""),
    "csv-twice": (rows("a,a\n1,2\n", "train.csv"), "line 1 of 'train.csv' names the column 'a' twice"),
    "no-parquet": (rows(b"PAR1", "train.parquet"), "'train.parquet' is no readable Parquet file"),
    "parquet-of-nan": (rows(parquet([float("nan")] * 60), "train.parquet"), "leave no example: 60 rows, 60 with an empty prompt or answer"),
    "parquet-of-bytes": (rows(parquet([b"\xff"] * 60), "train.parquet"), "column 'completion' in row 1 of 'train.parquet' holds bytes"),
    "parquet-twice": (rows(parquet(["a"], "prompt"), "train.parquet"), "'train.parquet' has the column 'prompt' twice"),
    "parquet-damaged": (rows(DAMAGED, "train.parquet"), "'train.parquet' is damaged .* after row 0"),
    "odd-role": (rows('{"messages": [{"role": "bot", "content": "a"}]}\n'), "message 1 of column 'messages' in line 1 .* has the role 'bot'"),
    "no-answer-turn": (rows('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n'), "messages in line 1 of 'train.jsonl' do not end with the assistant's"),
    "odd-messages": (rows('{"messages": "hello"}\n'), "column 'messages' in line 1 of 'train.jsonl' is no list of messages"),
    "many-turns": (rows(TURNS * 30), "has conversations of several turns, which only a chat template can write"),
    "one-row": (rows('{"prompt": "a", "completion": "b"}\n'), r"has no problems: no row of the training data was held out .* raise test_share \(0.1\)"),
    "one-row-csv": (rows("prompt,completion\na,b\n", "train.csv"), "no row of the training data was held out"),
    # A benchmark's own data.
    "test-column": (added(TEST, '{"prompt": "a", "label": "b"}\n'), "line 1 of 'test.jsonl' has no column 'completion'"),
    "no-problems": (added(TEST, '{"prompt": "a", "answer": ""}\n'), "the benchmark 'b' has no problems: 1 rows"),
    "wrong-gold": (added("  - {name: b, kind: choice, choices: [x, y], data: test.jsonl}\n", '{"prompt": "a", "answer": "zebra"}\n'), r"the answer 'zebra' in line 1 of 'test.jsonl' is none of its choices \(x, y\)"),
    "one-choice": (added("  - {name: b, kind: choice, columns: {choices: c}, data: test.jsonl}\n", '{"prompt": "a", "answer": "x", "c": ["x"]}\n'), "column 'c' in line 1 of 'test.jsonl' must hold two or more different choices"),
    "bad-tests": (added("  - {name: b, kind: code, columns: {tests: t}, data: test.jsonl}\n", '{"prompt": "a", "t": "assert f("}\n'), "column 't' in line 1 of 'test.jsonl': the reference is no Python"),
    "no-text": (added("  - {name: b, kind: perplexity}\n"), "the benchmark 'b' of kind perplexity needs a text column"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_sentence_and_nothing_is_written(case, tmp_path, monkeypatch, capfd):
    files, sentence = BROKEN[case]
    monkeypatch.setattr(base, "_added", {})
    monkeypatch.chdir(tmp_path)
    if not any(name.startswith("train.") for name in files):
        (tmp_path / "train.jsonl").write_bytes(ROWS)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    words = ["run", "--task", "task.yaml", "--model", "tiny", "--methods", "svd", "--ratios", "2", "--out", "runs"]
    code, shown = refused(words, monkeypatch, capfd)
    assert code == 2
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    assert shown.count("\n") == 1, "one sentence on one line"
    assert re.search(sentence, shown), shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command in this process; returns its exit code and standard error."""
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), capfd.readouterr().err


def test_a_parquet_file_without_the_column_and_an_odd_new_file(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(base, "_added", {})
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), tmp_path / "t.parquet")
    text = GOOD.replace("train.jsonl", "t.parquet").replace("prompt: question", "instruction: '{prompt}'")
    (tmp_path / "task.yaml").write_text(text)
    code, shown = refused(["task", "check", "task.yaml"], monkeypatch, capfd)
    assert code == 2
    assert re.search("'t.parquet' has no column 'completion'.* its columns: prompt, answer", shown)
    code, shown = refused(["task", "new", "task.yaml"], monkeypatch, capfd)
    assert (code, "'task.yaml' exists already" in shown) == (2, True)
    code, shown = refused(["task", "new", "task.txt"], monkeypatch, capfd)
    assert (code, "must end in .yaml or .yml" in shown) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet", "task.yaml"]
