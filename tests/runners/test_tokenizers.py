import json
import os

import pytest
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models import folder_checks
from lowrank_bench.models.folder_checks import read_object
from lowrank_bench.models.presets import ModelSource
from lowrank_bench.runners import tokenizers
from lowrank_bench.runners.dry_run import print_plan
from lowrank_bench.runners.tokenizers import PlanTokenizer


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Return the models whose tokenizers are read, in order; nothing is remembered before."""
    monkeypatch.setenv("LOWRANK_BENCH_CACHE", str(tmp_path / "cache"))
    load, locations = tokenizers.load_tokenizer, []

    def loading(location, revision=""):
        locations.append(location)
        return load(location, revision)

    monkeypatch.setattr(tokenizers, "load_tokenizer", loading)
    tokenizers._load.cache_clear()
    return locations


def test_a_plan_reads_the_tokenizer_once_and_the_next_process_does_not(reads, tmp_path):
    from rich.console import Console

    config = small_sweep(tmp_path / "runs", benchmarks=["toy-math", "tinystories"], task="toy-math")
    print_plan(config, Console(quiet=True))
    assert len(reads) == 1
    tokenizers._load.cache_clear()  # as another process begins
    print_plan(config, Console(quiet=True))
    assert len(reads) == 1


def test_what_was_counted_is_remembered_for_one_tokenizer_and_one_question(reads):
    answers = iter((1, 2, 3))
    first, other = (PlanTokenizer(ModelSource("m", "m", "", sha256)) for sha256 in "ab")
    assert first.counted("lengths", ["x"], lambda: next(answers)) == 1
    assert first.counted("lengths", ["x"], lambda: pytest.fail("counted twice")) == 1
    assert first.counted("lengths", ["y"], lambda: next(answers)) == 2
    assert other.counted("lengths", ["x"], lambda: next(answers)) == 3
    assert reads == []


def test_a_tokenizer_that_cannot_be_read_is_refused_each_time(reads, tmp_path):
    broken = PlanTokenizer(ModelSource("m", str(tmp_path), "", "c"))
    (tmp_path / "tokenizer.json").write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
            broken.check()
    assert len(reads) == 2


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[1, {"a": ', "}]")])
def test_nesting_is_refused_from_65_levels_on(tmp_path, opening, closing):
    levels = opening.count("[") + opening.count("{")
    file = tmp_path / "tokenizer.json"
    for depth in (64 // levels, 64 // levels + 1):
        file.write_text('{"x": 1, "a": ' + opening * depth + "2" + closing * depth + "}")
        if depth * levels <= 64:
            assert read_object(file) == json.loads(file.read_text())
        else:
            with pytest.raises(UserError, match="nested deeper than 64 levels"):
                read_object(file)


def test_a_large_tokenizer_is_parsed_by_the_check_until_its_bytes_change(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_BENCH_CACHE", str(tmp_path / "cache"))
    (folder := tmp_path / "model").mkdir()
    parsed = []

    def reading(file):
        parsed.append(file.name)
        return read_object(file)

    monkeypatch.setattr(folder_checks, "read_object", reading)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({"vocab": ["token"] * 200_000}))
    os.utime(file, (1, 1))
    for _ in range(3):
        folder_checks.check_tokenizer(folder)
    assert parsed == ["tokenizer.json"]

    status = file.stat()
    file.write_text(file.read_text().replace('"vocab"', '"vocab', 1))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
            folder_checks.check_tokenizer(folder)
    assert len(parsed) == 3  # what is refused is not remembered
    file.write_text(json.dumps({"vocab": ["token"] * 300_000}))
    folder_checks.check_tokenizer(folder)
    assert len(parsed) == 4
