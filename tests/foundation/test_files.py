"""Durable files and stable hashes."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import (
    canonical_json,
    digest,
    new_folder,
    read_json,
    sha256_file,
    write_atomic,
    write_json,
)

_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.text(), _plain))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert digest(turned) == digest(value)
    assert json.loads(canonical_json(value)) == value


def test_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(float("nan"))


def test_written_files_are_whole_and_leave_nothing_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "value.json"
    write_json(file, {"b": "ä", "a": 1})
    write_json(file, {"b": "ä", "a": 2})
    assert read_json(file) == {"a": 2, "b": "ä"}
    assert list(file.parent.iterdir()) == [file]
    assert sha256_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inside").write_text("kept")
    with pytest.raises(UserError, match="is a folder; name a file"):
        write_atomic(target, "new")
    assert (target / "inside").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [target]


def test_devices_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    null, pipe = tmp_path / "null", tmp_path / "pipe"
    null.symlink_to("/dev/null")
    os.mkfifo(pipe)
    write_atomic(null, "text")
    assert null.is_symlink()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match="name a file"):
        write_atomic(pipe, "nobody reads")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    with pytest.raises(UserError, match="No space left"):
        write_atomic(Path("/dev/full"), "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x", tmp_path):
        with pytest.raises(UserError):
            write_atomic(path, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(params=[0o077, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_files_have_the_permissions_that_the_umask_asks_for(tmp_path, umask):
    """safetensors writes 0600, a copy keeps the mode of its source."""
    write_json(tmp_path / "deep" / "value.json", {})
    with new_folder(tmp_path / "new") as folder:
        (folder / "inside").mkdir()
        save_file({"a": torch.zeros(2)}, folder / "inside" / "weights.safetensors")
        (folder / "copied").touch()
        (folder / "copied").chmod(0o400)
    assert modes(tmp_path) == {0o666 & ~umask}
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new", tmp_path / "new/inside")} == {0o777 & ~umask}
    assert len(list((tmp_path / "new").rglob("*"))) == 3
