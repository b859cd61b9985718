"""Finding a model by preset name, folder or hub id."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import transformers

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.identity import _TOKENIZER, identity_files, model_sha256
from lowrank_bench.models.presets import PRESETS, resolve_model
from lowrank_bench.papers.published.verdicts import papers_model

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
    assert source.sha256 == model_sha256(tmp_path)
    assert source.name == source.short_name == f"{tmp_path.name}-{source.sha256[:8]}"
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert resolve_model(str(tmp_path)).sha256 != source.sha256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "ckpt"
    shutil.copytree(PRESETS["tiny"].source, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "__pycache__/model.cpython-311.pyc",
        ".cache/huggingface/download/model.safetensors.metadata",
        ".git/config",
        ".gitattributes",
        "original/params.json",
        "modeling_own.py",
        "compression.json",
        "trainer_state.json",
        "requirements.txt",
    ],
)
def test_what_decides_nothing_is_no_part_of_the_identity(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "ckpt")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("else")
    assert resolve_model(str(folder)).sha256 == resolve_model(str(checkpoint)).sha256


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *(
            "chat_template.jinja",
            "additional_chat_templates/tools.jinja",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
        ),
        "special_tokens_map.json",
    ],
)
def test_what_decides_something_is_part_of_the_identity(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "ckpt")
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert model_sha256(folder) != model_sha256(checkpoint)


def test_of_the_weights_those_that_the_index_names_are_hashed(tmp_path: Path) -> None:
    save_checkpoint(random_model("llama"), None, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00001.safetensors"}}')
    alone = model_sha256(tmp_path)
    (tmp_path / "consolidated.safetensors").write_text("stray")
    assert model_sha256(tmp_path) == alone
    assert "model.safetensors.index.json" in [file.name for file in identity_files(tmp_path)]


def test_every_file_of_transformers_tokenizers_is_known() -> None:
    names: set[str] = set()
    for file in Path(transformers.__file__).parent.rglob("tokenization*.py"):
        for table in re.findall(r"VOCAB_FILES_NAMES = (\{.*?\})", file.read_text(encoding="utf-8"), re.DOTALL):
            names |= set(re.findall(r": *\"([^\"]+)\"", table))
    assert len(names) > 15
    assert not [name for name in names if not any(fnmatch(name, pattern) for pattern in _TOKENIZER)]


def test_the_built_in_model_keeps_the_identity_of_its_published_results(checkpoint: Path, tmp_path: Path) -> None:
    published = "5080d696e14085ce9a14e9b9353caa0f4f832a653fb1446a8fa7005162e69c73"
    assert resolve_model("tiny").sha256 == resolve_model(str(checkpoint)).sha256 == published
    folder = shutil.copytree(checkpoint, tmp_path / "ckpt")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert model_sha256(folder) != published


def test_folders_of_one_name_have_names_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (shutil.copytree(checkpoint, tmp_path / parent / "ckpt") for parent in ("mA", "mB"))
    (second / "config.json").write_text((second / "config.json").read_text() + " ")
    names = {resolve_model(str(folder)).short_name for folder in (first, second)}
    assert len(names) == 2
    assert all(re.fullmatch(r"ckpt-[0-9a-f]{8}", name) for name in names)


def test_names_for_files_tell_commits_apart_but_not_those_of_presets() -> None:
    assert resolve_model("tiny").short_name == "tiny"
    assert resolve_model("llama2-7b").short_name == "llama2-7b"
    assert resolve_model("llama2-7b", COMMIT).short_name == "llama2-7b-01234567"
    assert resolve_model("acme/ckpt", COMMIT).short_name == "ckpt-01234567"
    assert resolve_model("acme/ckpt", COMMIT[::-1]).short_name == f"ckpt-{COMMIT[::-1][:8]}"
    assert papers_model("Llama-2-7b-hf-0a1b2c3d") == "llama2-7b"


def test_a_name_with_two_meanings_is_noted(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not resolve_model("tiny").note
    for name in ("tiny", "llama2-7b", "acme/model"):
        shutil.copytree(checkpoint, tmp_path / name)
    assert resolve_model("tiny").note == "'tiny' is the preset; the folder of that name is ./tiny"
    assert resolve_model("tiny").name == "tiny"
    assert resolve_model("./tiny").location == str(tmp_path / "tiny")
    assert not resolve_model("./tiny").note
    assert resolve_model("llama2-7b").note == "'llama2-7b' is the preset; the folder of that name is ./llama2-7b"
    assert "--revision has no effect" in resolve_model("acme/model", COMMIT).note
    assert not resolve_model("acme/model").note


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
