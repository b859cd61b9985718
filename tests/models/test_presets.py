"""Finding a model by preset name, folder or hub id."""

from pathlib import Path

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import sha256_folder
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.presets import PRESETS, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_presets_are_pinned() -> None:
    for name, preset in PRESETS.items():
        assert len(preset.revision) == 40 or Path(preset.source).is_absolute(), name
        assert preset.summary
    source = resolve_model("llama2-7b")
    assert (source.location, source.revision) == (PRESETS["llama2-7b"].source, PRESETS["llama2-7b"].revision)
    assert source.sha256.endswith(source.revision)
    assert not source.is_local


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds no weights \(model\.safetensors, or"):
        resolve_model(str(tmp_path))
    save_checkpoint(random_model("llama"), None, tmp_path)
    source = resolve_model(str(tmp_path))
    assert source.is_local
    assert source.sha256 == sha256_folder(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert resolve_model(str(tmp_path)).sha256 != source.sha256


def test_hub_ids_need_a_commit() -> None:
    source = resolve_model("acme/model", COMMIT)
    assert (source.location, source.revision) == ("acme/model", COMMIT)
    for revision in (None, "main", COMMIT[:-1], COMMIT.upper()):
        with pytest.raises(UserError, match=r"needs a pinned revision.*--revision"):
            resolve_model("acme/model", revision)


@pytest.mark.parametrize("name", ["llama2-7", "nowhere", "./acme/model", "a/b/c", "~/model-that-is-not", ""])
def test_unknown_models(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown model '{name}'.*allowed: a preset"):
        resolve_model(name)


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'llama2-7b'"):
        resolve_model("lama2-7b")
