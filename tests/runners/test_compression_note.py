"""Files beside a compressed model are read as typed records; a damaged one is named, never taken for an absent one."""

from __future__ import annotations

import json

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import CompressionReport
from lowrank_bench.runners.compression_note import FILE, CompressionNote, has_note, read_note
from lowrank_bench.runners.store.report_file import FILE as REPORT
from lowrank_bench.runners.store.report_file import read_report, write_report

NOTE = {
    "model": "tiny",
    "model_sha256": "0" * 64,
    "method_name": "svd",
    "method": {"head": True},
    "label": "svd",
    "task": "",
    "ratio_target": 2.0,
    "ratio": 2.01,
    "ratio_matrices": 2.3,
    "seed": 42,
    "parameters_before": 100,
    "parameters": 50,
    "steps": 0,
    "provenance": {"versions": {"torch": "2"}, "git_commit": "abc", "hardware": {"cores": 2}},
    "ranks": {"layers.0.q_proj": 3},
}


def test_a_note_is_read_as_it_was_written_with_what_is_for_people_alone(tmp_path):
    CompressionNote.model_validate(NOTE).write(tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == NOTE
    assert read_note(tmp_path) == CompressionNote.model_validate(NOTE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "it is no JSON object"),
        (json.dumps({name: value for name, value in NOTE.items() if name != "method_name"}), "no valid method_name"),
        (json.dumps(NOTE | {"parameters": "many"}), "no valid parameters"),
        (json.dumps(NOTE | {"provenance": {"git_commit": None}}), "no valid provenance.versions"),
    ],
)
def test_a_damaged_note_is_named(tmp_path, content, words):
    (tmp_path / FILE).write_text(content)
    assert has_note(tmp_path)
    with pytest.raises(UserError, match=words) as refusal:
        read_note(tmp_path)
    assert str(tmp_path / FILE) in str(refusal.value)
    assert "bench compress" in str(refusal.value)


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = CompressionReport({"q": 3}, {"o": "no rank"}, 100, 50, 90, 40, 7, 70, 0.5, {"threshold": 0.1})
    write_report(report, tmp_path)
    assert read_report(tmp_path, tensors=True) == report


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_damaged_report_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / REPORT).write_text(content)
    with pytest.raises(UserError, match=r"report\.json is no report of a compression"):
        read_report(tmp_path)
