"""How a model's instructions were written follows from the stages that trained it."""

import json

import pytest

from lowrank_bench.runners.finetuned_as import finetuned_as_text

COMPRESS, FINETUNE = "compress-0123456789abcdef", "finetune-0123456789abcdef"


def stages(root, chat, calibration):
    """Write the records of a finetuning, and of a compression that searched on calibration data of another task."""
    trained = {"data": {"task": "toy-math", "chat": chat}, "train": {"steps": 2}}
    records = {
        FINETUNE: {"config": trained, "inputs": {"model": "a-hash"}},
        COMPRESS: {"config": {"data": calibration, "train": None}, "inputs": {"model": f"{FINETUNE}/model"}},
    }
    for key, record in records.items():
        (root / key / "model").mkdir(parents=True)
        (root / key / "stage.json").write_text(json.dumps(record))
    return root / COMPRESS / "model"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("calibration", [None, {"task": "toy-code"}, {"task": "language"}, {"task": "gone"}])
def test_calibration_on_another_task_says_nothing_about_the_prompts(tmp_path, chat, calibration):
    folder = stages(tmp_path, chat, calibration)
    assert finetuned_as_text(str(folder)) is not chat
    assert finetuned_as_text(str(tmp_path / FINETUNE / "model")) is not chat


def test_a_folder_of_no_stage_was_finetuned_by_nobody_that_is_known(tmp_path):
    assert not finetuned_as_text(str(tmp_path))
