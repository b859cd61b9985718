"""bench push by the real client to a hub on 127.0.0.1, and what it sends taken back in a process of its own."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from loopback_hub import TOKEN, LoopbackHub, running
from yaml import safe_load

from lowrank_bench.evals.data.datasets import specs
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.results.publishing import card
from lowrank_bench.results.publishing.origin import Measurement, read_origin
from lowrank_bench.results.publishing.push import prepare

REPOSITORY = "someone/tiny-svd-2x"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with running() as served, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", served.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET"):
            patch.setenv(name, "1")
        yield served


@pytest.fixture(scope="module")
def work_folder(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small`, a compressed model, `scores`, its evaluation, and `runs`, a sweep."""
    work = tmp_path_factory.mktemp("made")
    few = ("--limit", 4, "--max-new-tokens", 4)
    sweep = ("--model", "tiny", "--task", "toy-math", "--ratios", 2, "--finetune-steps", 2, "--recover-steps", 2)
    for words in (
        ("compress", "tiny", "--method", "svd", "--ratio", 2, "--out", work / "small"),
        ("eval", work / "small", "--benchmarks", "toy-math", *few, "--out", work / "scores"),
        ("run", "--methods", "bs:prunings=2", *sweep, *few, "--out", work / "runs"),
    ):
        done = commands.bench(*words, cwd=work, timeout=300)
        assert done.returncode == 0, done.stderr
    return work


def push(work_folder: Path, *words: object, **environment: str) -> tuple[int, str]:
    done = commands.bench("push", *words, cwd=work_folder, timeout=300, **environment)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_what_is_pushed_comes_back_with_its_card_and_its_scores(
    hub: LoopbackHub, work_folder: Path, tmp_path: Path
) -> None:
    words = ("small", REPOSITORY, "--evaluation", "scores")
    code, output = push(work_folder, *words, HF_TOKEN=TOKEN)
    assert code == 0, output
    repository = hub.repositories["models", REPOSITORY]
    commit, files = list(repository.commits.items())[-1]
    assert repository.private
    assert commit in output
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert "compression.json" not in files
    assert "run.log" not in files
    metadata = ModelCard(files["README.md"].decode()).data
    assert (metadata.license, metadata.base_model, metadata.library_name) == ("apache-2.0", None, "transformers")
    assert metadata.tags == ["low-rank", "lowrank-bench", "svd"]
    (measured,) = read_origin(str(work_folder / "small"), [work_folder / "scores"]).measurements
    assert f"| {measured.variant} | accuracy (strict) |" in files["README.md"].decode()
    # Again: nothing has changed, so no commit is made.
    code, output = push(work_folder, *words, HF_TOKEN=TOKEN)
    assert code == 0, output
    assert commit in output
    assert list(repository.commits)[-1] == commit
    again = ("--benchmarks", "toy-math", "--limit", 4, "--max-new-tokens", 4, "--out", tmp_path / "again")
    done = commands.bench("eval", REPOSITORY, "--revision", commit, *again, timeout=300)
    assert done.returncode == 0, done.stderr
    local, pushed = (
        json.loads((folder / "metrics.json").read_text()) for folder in (work_folder / "scores", tmp_path / "again")
    )
    assert local["benchmarks"] == pushed["benchmarks"]
    assert pushed["model_sha256"] == f"{REPOSITORY}@{commit}"
    written = [
        file.read_bytes()
        for folder in (work_folder, tmp_path, Path(os.environ["HF_HOME"]))
        for file in folder.rglob("*")
        if file.is_file()
    ]
    for content in (*written, *files.values(), output.encode()):
        assert TOKEN.encode() not in content
    for content in files.values():
        assert str(work_folder).encode() not in content


def test_a_dry_run_shows_all_and_sends_nothing(hub: LoopbackHub, work_folder: Path) -> None:
    hub.asked.clear()
    code, output = push(work_folder, "small", "someone/other", "--dry-run", HF_TOKEN=TOKEN)
    assert code == 0, output
    assert not hub.asked
    assert "file        model.safetensors, " in output
    assert "Nothing has been measured on these weights." in output
    assert "vllm serve someone/other" in output
    assert str(work_folder) not in output


def test_a_cells_card_has_its_records_beside_the_uncompressed_model(work_folder: Path) -> None:
    name = f"{work_folder}/runs/tiny-toy-math:bs:prunings=2@2"
    origin = read_origin(name)
    assert (origin.method, origin.options["prunings"], origin.is_trained) == ("bs", 2, True)
    assert [measurement.uncompressed is not None for measurement in origin.measurements] == [True]
    text = prepare(name, REPOSITORY, base_model="someone/tiny", licence="mit").texts["README.md"]
    metadata = ModelCard(text).data
    assert (metadata.base_model, metadata.base_model_relation, metadata.license) == ("someone/tiny", "finetune", "mit")
    assert "`prunings=2`" in text
    untrained = ModelCard(prepare(str(work_folder / "small"), REPOSITORY, "someone/tiny").texts["README.md"]).data
    assert untrained.base_model_relation == "quantized"


def test_results_on_whole_registered_benchmarks_alone_have_a_file(work_folder: Path) -> None:
    origin = read_origin(str(work_folder / "small"))
    whole = Measurement(
        "gsm8k", "gsm8k-1319-0shot", "accuracy", "strict", 0.25, 0.227, 0.274, 1319, "vllm", "2026-11-28T01:00:00+00:00"
    )
    part = Measurement("gsm8k", "gsm8k-1319-0shot", "accuracy", "strict", 0.25, 0.2, 0.3, 100, "vllm")
    given = dict(vars(origin))
    files = card.eval_results(type(origin)(**given | {"measurements": (whole,)}))
    (entry,) = parse_eval_result_entries(safe_load(files[".eval_results/gsm8k.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value, entry.date) == ("openai/gsm8k", "gsm8k", 0.25, "2026-11-28")
    assert "[0.2270, 0.2740]" in str(entry.notes)
    assert card.eval_results(type(origin)(**given | {"measurements": (part,)})) == {}
    assert specs["gsm8k"].splits["test"].records == 1319


def test_every_presets_licence_has_a_name_on_the_hub() -> None:
    assert {preset.licence for preset in PRESETS.values()} - {""} <= set(card._LICENCES)


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (("small", REPOSITORY), {}, r"cannot push to 'someone/tiny-svd-2x' \("),
        (("small", REPOSITORY), {"HF_TOKEN": "hf_another"}, r"cannot push to 'someone/tiny-svd-2x' \("),
        (("small", "noslash"), {}, "the repository 'noslash' is no OWNER/NAME; write for example"),
        (("small", "me/modèle"), {}, "the repository 'me/modèle' is no OWNER/NAME; write for example"),
        (("small", "me/a..b"), {}, "the repository 'me/a..b' is no OWNER/NAME"),
        (("small", "me/model.git"), {}, "the repository 'me/model.git' is no OWNER/NAME"),
        (("absent", REPOSITORY), {}, "holds no model"),
        ((PRESETS["tiny"].source, REPOSITORY), {}, "is not factorised; bench push publishes factorised"),
        (("runs/tiny-toy-math:bs:prunings=2@2", REPOSITORY, "--evaluation", "scores"), {}, "belongs to a folder"),
        (("small", REPOSITORY, "--evaluation", "small"), {}, "has no metrics.json; name a folder that bench eval"),
    ],
)
def test_what_cannot_be_pushed_is_one_sentence(
    words: tuple[object, ...], environment: dict[str, str], sentence: str, hub: LoopbackHub, work_folder: Path
) -> None:
    code, output = push(work_folder, *words, **environment)
    assert code == 2
    assert sentence.replace("\\", "") in output
    assert "hf_another" not in output


def test_other_weights_and_unknown_licences_are_refused(work_folder: Path, tmp_path: Path) -> None:
    scores = json.loads((work_folder / "scores" / "metrics.json").read_text()) | {"model_sha256": "0" * 64}
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="measured on other weights"):
        read_origin(str(work_folder / "small"), [tmp_path])
    origin = read_origin(str(work_folder / "small"))
    foreign = type(origin)(**vars(origin) | {"model": "mine-12345678"})
    with pytest.raises(UserError, match="add --license"):
        card.find_base(foreign, "someone/mine", None)
    llama = type(origin)(**vars(origin) | {"model": "llama2-7b"})
    assert card.find_base(llama, None, None) == card.Base(
        PRESETS["llama2-7b"].source, PRESETS["llama2-7b"].revision, "llama2"
    )
