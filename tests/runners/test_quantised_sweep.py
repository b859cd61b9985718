"""Rounded rows of a real sweep: stages, records, tables, what is in the folders, and the same command again."""

import json
import shutil

import pytest
import torch
from commands import bench
from safetensors.torch import load_file
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.models.quantised.folder import read_packed
from lowrank_bench.models.quantised.scheme import PACKED_FILE
from lowrank_bench.results.report.lineage import Lineage
from lowrank_bench.results.report.write import write_report
from lowrank_bench.results.speed.subject import find_subject
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.results.tables.by_ratio import by_ratio
from lowrank_bench.runners.store.folders import MODEL_FOLDER, StageStore

CORRECTED = "rtn4+r:samples=16,rank=7"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    free = {"training_free": True, "finetune": {}, "recover": {}, "limit": 2, "max_new_tokens": 2}
    axis = {"bits": (16, 8), "bytes": (0.4,)}
    axis["controls"] = ["rtn-int8", "rtn-int4:group=64", "rtn4+r:samples=16"]
    return small_sweep(tmp_path_factory.mktemp("rounded"), methods=["svd"], **free, **axis)


@pytest.fixture(scope="module")
def swept(config):
    return run_sweep(config)


def rows(swept):
    frame = swept.records[swept.records.headline]
    return {row.label: row for row in frame.itertuples()}


def test_records_say_the_bytes_of_the_packed_file_and_those_in_memory(config, swept):
    frame = rows(swept)
    assert set(frame) == {"pretrained", "svd", "svd:bits=8", "rtn-int8", "rtn-int4:group=64", CORRECTED}
    stages = config.execution.folder / "stages"
    packed = {file.stat().st_size for file in stages.glob(f"quantise-*/{PACKED_FILE}")}
    assert packed == {frame[label].bytes for label in ("svd:bits=8", "rtn-int8", "rtn-int4:group=64", CORRECTED)}
    for row in frame.values():
        assert row.runtime_bytes == 4 * row.params
    whole = 2 * frame["pretrained"].params
    for label in ("svd", "svd:bits=8", CORRECTED):
        assert 0.97 < frame[label].bytes / (0.4 * whole) < 1.02  # the header of so small a file is half a percent
    assert frame["rtn-int4:group=64"].bytes < frame["rtn-int8"].bytes
    assert frame["rtn-int8"].params == frame["pretrained"].params
    assert json.loads(frame["rtn-int4:group=64"].options) == {"bits": 4, "embeddings": False, "group": 64}
    assert json.loads(frame["svd:bits=8"].options)["bits"] == 8
    corrected = json.loads(frame[CORRECTED].options)
    assert (corrected["bits"], corrected["rank"], corrected["samples"], corrected["whiten"]) == (4, 7, 16, True)
    assert frame["svd:bits=8"].ratio < frame["svd"].ratio


def test_what_is_evaluated_is_what_was_packed(config, swept):
    for folder in (config.execution.folder / "stages").glob("quantise-*"):
        packed, model = read_packed(folder / PACKED_FILE), load_model(folder / MODEL_FOLDER)
        for name, parameter in model.named_parameters():
            if not name.endswith((".lr_a", ".lr_b")):
                assert torch.allclose(packed[name].float(), parameter, rtol=2**-8, atol=0)
        assert {t.dtype for t in load_file(folder / PACKED_FILE).values()} <= {
            *(torch.int8, torch.int32, torch.int64, torch.bfloat16),
        }


def test_the_same_command_again_does_nothing(config, swept):
    assert run_sweep(config).stages_run == 0


def test_tables_and_report_have_the_axis_of_bytes(swept, tmp_path):
    titles = [table.title for table in by_ratio(swept.records)]
    assert sum(title.endswith("over bytes") for title in titles) == 1
    text = write_report(swept.folder, tmp_path)[-1].read_text()
    assert "No low-rank row is as small as the control rtn-int4:group=64" in text
    assert "; at the bytes of rtn-int8, 0.5" in text
    assert f"t the bytes of {CORRECTED}, 0.4" in text


def test_a_correction_says_what_it_read_and_needs(config, swept):
    store = StageStore(config.execution.folder / "stages")
    records = [store.read(file.parent.name) for file in store.root.glob("quantise-*/stage.json")]
    (corrected,) = (record for record in records if "correction" in record["config"])
    assert corrected["result"]["calibration"]["examples"] == 16
    assert corrected["config"]["data"]["task"] == "toy-math"
    assert corrected["result"]["memory"]["predicted_peak_bytes"] > 0
    assert all({"data", "seed", "correction"}.isdisjoint(record["config"]) for record in records if record != corrected)


def test_packed_weights_are_refused_with_the_folder_that_is_served(config, swept):
    (folder, *_) = (config.execution.folder / "stages").glob("quantise-*")
    for named in (folder, folder / PACKED_FILE):
        with pytest.raises(UserError, match=f"which neither transformers nor vLLM serves; name {folder}/model"):
            resolve_model(str(named), None)


def test_reports_follow_a_rounded_cell_to_the_first_model(swept):
    key = rows(swept)["svd:bits=8"].stage_key
    lineage = Lineage(swept.folder, [key])
    assert set(lineage.paths[key]) == {"fit", "compress", "quantise", "evaluate"}
    assert lineage.damaged == {}


def test_speed_names_the_method_behind_rounded_weights(config, swept, tmp_path):
    rounded = rows(swept)["svd:bits=8"]
    stages = config.execution.folder / "stages"
    folders = {find_subject(str(folder)).origin.ratio_target for folder in stages.glob("quantise-*/model")}
    assert rounded.ratio_target in folders
    cell = find_subject(f"{swept.folder}:svd:bits=8@{rounded.ratio_target:g}")
    origin = find_subject(str(cell.folder)).origin
    assert (origin.method, origin.stage, origin.params) == ("svd", "compressed", rounded.params)
    assert json.loads(origin.options)["bits"] == 8
    alone = tmp_path / cell.folder.parent.name  # as where the stages before it were removed
    shutil.copytree(cell.folder.parent, alone)
    assert find_subject(str(alone / cell.folder.name)).origin.method == "lowrank"


def test_a_card_says_that_published_weights_were_rounded(swept):
    for label, rounded in (("svd", False), ("svd:bits=8", True)):
        ratio = rows(swept)[label].ratio_target
        done = bench("push", f"{swept.folder}:{label}@{ratio:g}", "owner/name", "--dry-run")
        assert done.returncode == 0, done.stderr
        assert ("rounded to 8 bits" in done.stdout) is rounded
