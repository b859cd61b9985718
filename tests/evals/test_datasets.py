"""Datasets: the real files are accepted, and every kind of damage is told in one sentence."""

import gzip
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from lowrank_bench.evals.datasets import content_sha256, load_rows, specs
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


def test_a_named_revision_is_used_and_hub_rows_become_records(monkeypatch, data_dir):
    import datasets

    local = load_rows("stereoset", "validation", data_dir).rows
    labels = {"unrelated": 2, "stereotype": 1, "anti_stereotype": 0}

    def hub(name, config, revision, **kwargs):
        assert (name, revision) == ("McGill-NLP/stereoset", "a" * 40)
        rows = [row for row in local if row["kind"] == config]
        return [
            {name: row[name] for name in ("id", "target", "bias_type", "context")}
            | {"sentences": {"sentence": [row[k] for k in labels], "gold_label": list(labels.values())}}
            for row in rows
        ]

    monkeypatch.setenv("LOWRANK_BENCH_REVISIONS", f"stereoset={'a' * 40}")
    monkeypatch.setattr(datasets, "load_dataset", hub)
    data = load_rows("stereoset", "validation", None)
    assert data.sha256 == specs["stereoset"].splits["validation"].sha256
    assert data.source == f"hub:McGill-NLP/stereoset@{'a' * 40}/validation"


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
def test_wrong_content_is_told_in_one_sentence(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_rows("gsm8k", "test", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 40, 2000, -8])
def test_damaged_archive_is_told(tmp_path, cut):
    path = write(tmp_path, lines(ROWS))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"damaged|cannot be read|not JSON|no records"):
        load_rows("gsm8k", "test", tmp_path)


def test_not_an_archive_and_not_text_are_told(tmp_path):
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


def test_missing_things_are_told(tmp_path, data_dir):
    with pytest.raises(UserError, match="no data folder"):
        load_rows("gsm8k", "test", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file 'gsm8k/test.jsonl.gz'"):
        load_rows("gsm8k", "test", tmp_path)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        load_rows("gsm8", "test", tmp_path)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        load_rows("gsm8k", "dev", tmp_path)


def test_unreachable_hub_says_to_pass_data(monkeypatch):
    import datasets

    def fail(*args, **kwargs):
        assert kwargs["revision"] == specs["gsm8k"].revision
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"Couldn't reach the Hub.*pass --data"):
        load_rows("gsm8k", "test", None)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Returns what caches a version of gsm8k's test split as `load_dataset` does; the hub is out of reach."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def cache(rows, commit):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"test": str(tmp_path / "rows.jsonl")}
        made = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / commit), split="test")
        folder = Path(made.cache_files[0]["filename"]).parent
        target = tmp_path / "cache" / "openai___gsm8k" / "main" / "0.0.0" / commit
        shutil.copytree(folder, target)
        (target / "json-test.arrow").rename(target / "gsm8k-test.arrow")
        info = json.loads((target / "dataset_info.json").read_text())
        (target / "dataset_info.json").write_text(json.dumps(info | {"config_name": "main", "dataset_name": "gsm8k"}))
        os.utime(target)

    return cache


def test_offline_the_pinned_commit_is_taken_and_not_the_newest(cached, data_dir):
    local = load_rows("gsm8k", "test", data_dir)
    cached(local.rows, specs["gsm8k"].revision)
    cached([row | {"answer": "#### 0"} for row in local.rows], "b" * 40)
    assert load_rows("gsm8k", "test", None).sha256 == local.sha256


def test_offline_another_commit_alone_is_refused(cached, data_dir):
    cached(load_rows("gsm8k", "test", data_dir).rows, "b" * 40)
    with pytest.raises(UserError, match=r"only the commit b{40} is cached, not the pinned 7403.*--data"):
        load_rows("gsm8k", "test", None)


def test_other_content_under_the_pinned_commit_is_refused(cached, data_dir, monkeypatch):
    rows = load_rows("gsm8k", "test", data_dir).rows
    cached(rows[::-1], specs["gsm8k"].revision)
    with pytest.raises(UserError, match=r"openai/gsm8k@7403\w+/test is not the published data \(content hash"):
        load_rows("gsm8k", "test", None)
    cached(rows[::-1], "c" * 40)
    monkeypatch.setenv("LOWRANK_BENCH_REVISIONS", f"gsm8k={'c' * 40}")  # whose content nobody knows
    assert load_rows("gsm8k", "test", None).rows == rows[::-1]


def test_hub_rows_are_checked_and_joined_over_configurations(monkeypatch):
    import datasets

    monkeypatch.setenv("LOWRANK_BENCH_REVISIONS", f"math={'d' * 40}")
    row = {"problem": "p", "level": "Level 1", "type": "Algebra", "solution": "s", "more": 1}
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, **kwargs: [row] * 1000)
    with pytest.raises(UserError, match=r"7,000 records but math/test has 5,000"):
        load_rows("math", "test", None)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub, config, **kwargs: [row] * (2 if config == "algebra" else 833)
    )
    data = load_rows("math", "test", None)
    assert len(data.rows) == 5000
    assert "more" not in data.rows[0]
