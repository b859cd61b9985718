"""Datasets: the real files are accepted, and every kind of damage is reported in one sentence."""

import gzip
import json
import os

import pytest

from lowrank_bench.evals.data import datasets as datasets_module
from lowrank_bench.evals.data.datasets import content_sha256, load_rows, specs
from lowrank_bench.foundation.errors import UserError

ROWS = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(1319)]


def write(tmp_path, text, name="test.jsonl.gz"):
    folder = tmp_path / "gsm8k"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "split"),
    [(spec.name, split) for spec in specs.values() for split, known in spec.splits.items() if known.sha256],
)
def test_published_files_are_accepted(name, split, data_dir):
    data = load_rows(name, split, data_dir)
    assert data.sha256 == specs[name].splits[split].sha256
    assert len(data.rows) == specs[name].splits[split].records
    assert set(data.rows[0]) == set(specs[name].fields)
    assert data.source == f"local:{name}/{split}.jsonl.gz"


def test_plain_file_has_the_same_hash_as_the_compressed_one(tmp_path, data_dir):
    text = gzip.decompress((data_dir / "gsm8k" / "test.jsonl.gz").read_bytes()).decode()
    write(tmp_path, text, "test.jsonl")
    assert load_rows("gsm8k", "test", tmp_path).sha256 == load_rows("gsm8k", "test", data_dir).sha256


def test_every_revision_is_a_commit_or_has_to_be_named(monkeypatch):
    open_ones = [spec.name for spec in specs.values() if spec.revision is None]
    assert open_ones == ["crows_pairs", "stereoset", "winobias"]
    pinned = [spec.revision for spec in specs.values() if spec.revision]
    assert all(len(revision) == 40 and int(revision, 16) for revision in pinned)
    with pytest.raises(UserError, match="LOWRANK_BENCH_REVISIONS=stereoset="):
        load_rows("stereoset", "validation", None)
    with pytest.raises(UserError, match=r"not read from the hub; pass --data DIR"):
        load_rows("winobias", "test", None)
    monkeypatch.setenv("LOWRANK_BENCH_REVISIONS", "stereoset=main")
    with pytest.raises(UserError, match="40 digits"):
        load_rows("stereoset", "validation", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(ROWS[:-1]), r"holds 1,318 records but gsm8k/test has 1,319"),
        (lines([*ROWS[:5], {"question": "q"}]), r"line 6 of '.*' lacks the field 'answer'"),
        (lines(ROWS[:3]) + "{oops\n", r"line 4 of '.*' is not JSON"),
        (lines(ROWS[:3]) + "[1]\n", r"line 4 of '.*' is not a JSON object"),
        ("", r"holds no records"),
        (lines(ROWS), r"is not the published data \(content hash [0-9a-f]{64}, expected b?[0-9a-f]+\)"),
    ],
)
def test_wrong_content_is_reported_in_one_sentence(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_rows("gsm8k", "test", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 40, 2000, -8])
def test_damaged_archive_is_reported(tmp_path, cut):
    path = write(tmp_path, lines(ROWS))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"damaged|cannot be read|not JSON|no records"):
        load_rows("gsm8k", "test", tmp_path)


def test_not_an_archive_and_not_text_are_reported(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(b"this is no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        load_rows("gsm8k", "test", tmp_path)
    path.write_bytes(gzip.compress(b'{"question": "\xff\xfe"}\n'))
    with pytest.raises(UserError, match="not UTF-8"):
        load_rows("gsm8k", "test", tmp_path)


def test_declared_variant_is_accepted_with_its_own_hash(tmp_path):
    path = write(tmp_path, lines(ROWS))
    actual = content_sha256(ROWS, ("question", "answer"))
    path.with_name("test.sha256").write_text(f"{'0' * 64}\n")
    with pytest.raises(UserError, match=actual):
        load_rows("gsm8k", "test", tmp_path)
    path.with_name("test.sha256").write_text(f"{actual}\n")
    assert load_rows("gsm8k", "test", tmp_path).sha256 == actual


def test_missing_things_are_reported(tmp_path, data_dir):
    with pytest.raises(UserError, match="no data folder"):
        load_rows("gsm8k", "test", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file 'gsm8k/test.jsonl.gz'"):
        load_rows("gsm8k", "test", tmp_path)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        load_rows("gsm8", "test", tmp_path)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        load_rows("gsm8k", "dev", tmp_path)


@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_no_files(tmp_path, name, kind):
    path = write(tmp_path, "", name)
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no file 'gsm8k/test"):
        load_rows("gsm8k", "test", tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"question": "' + "x" * 3000 + '"}', "more than a line of 1,000 bytes at line 1"),
        (lines(ROWS[:2]) * 500, r"more than 20,000 bytes at line \d+"),
        ("\n" * 30_000, "more than 20,000 bytes at line 20001"),
        ('{"question": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply|lacks the field"),
    ],
)
def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(datasets_module, "MAX_LINE_BYTES", 1000 if "[[" not in text else 5000)
    monkeypatch.setattr(datasets_module, "MAX_BYTES", 20_000)
    write(tmp_path, text)
    with pytest.raises(UserError, match=words):
        load_rows("gsm8k", "test", tmp_path)


def test_deep_nesting_and_endless_numbers_are_reported(tmp_path):
    for value in ("[" * 100_000, "1" * 6000):
        write(tmp_path, '{"question": ' + value)
        with pytest.raises(UserError, match=r"line 1 of .*(nested too deeply|cannot be read|is not JSON)"):
            load_rows("gsm8k", "test", tmp_path)
