"""Stages in shared and object storage: folders that play machines, and a real S3 server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import small_sweep
from typed_stages import RESULTS, fit_stage, recover_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import write_json
from lowrank_bench.models.loading import load_model
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.cells import checkpoint_folder, find_cell
from lowrank_bench.results.inspection.gather import inspect_bases, inspect_changes
from lowrank_bench.results.speed.subject import find_subject
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.doctor import repair
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store import storage as storages
from lowrank_bench.runners.store.folders import MARKER, StageStore
from lowrank_bench.runners.store.shared import LIGHT_BYTES, SharedStore
from lowrank_bench.runners.store.storage import Storage, check_url

STAGE = fit_stage()
NEXT = recover_stage(model=f"{STAGE.key}/model", location="?")


def fill(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(os.urandom(LIGHT_BYTES + 1))
    (folder / "report.json").write_text("{}")
    return RESULTS["fit"]


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MARKER}


def heavy(out):
    """Kinds of the stages of which a large file is here."""
    stages = out / "stages"
    files = [p for p in stages.rglob("*.safetensors") if p.stat().st_size > LIGHT_BYTES]
    return sorted(p.relative_to(stages).parts[0].partition("-")[0] for p in files)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real S3-compatible server with a bucket, at a port that it finds itself."""
    command, log_file = (
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        tmp_path_factory.mktemp("s3") / "log",
    )
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    while not (match := re.search(r"Running on (http://127\.0\.0\.1:\d+)\n", log_file.read_text())):
        assert process.poll() is None, log_file.read_text()
        time.sleep(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", match[1])
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        import fsspec
        from fsspec.config import conf, set_conf_env

        set_conf_env(conf)  # read once, when fsspec was imported
        fsspec.filesystem("s3").mkdir("bucket")
        yield
        del conf["s3"]
    process.kill()
    process.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path):
    """A fresh folder of each kind of storage."""
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://bucket/{tmp_path.name}"
    return f"file://{tmp_path}/storage" if request.param == "file" else f"memory://{tmp_path.name}"


def test_what_is_complete_on_one_machine_is_complete_on_the_other(url, tmp_path):
    """First light, then whole, byte for byte; and the stage is not done again."""
    first, second = (SharedStore(tmp_path / name, url) for name in ("here", "there"))
    first.storage.check()
    assert first.missing([STAGE.key]) == [STAGE.key]
    stage_record = first.run(STAGE, fill)
    assert second.missing([STAGE.key]) == []
    assert not second.root.exists()
    second.gather([STAGE.key])
    second.verify(STAGE.key)
    assert second.record(STAGE.key) == stage_record
    assert second.lacking(STAGE.key) == ["model/weights.bin"]
    assert not (second.path(STAGE.key) / "model").exists()
    assert second.run(STAGE, lambda folder: pytest.fail("done twice")) == stage_record
    ready = second.ready(NEXT)
    assert Path(ready.execution.model.location) == second.path(STAGE.key) / "model"
    assert second.lacking(STAGE.key) == []
    assert content(second.path(STAGE.key)) == content(first.path(STAGE.key))
    assert first.ready(NEXT).key == NEXT.key
    assert [name for name in first.storage.sizes("") if name.startswith(".run")] == []


def test_the_first_stage_wins_and_the_others_take_it(url, tmp_path):
    """Two machines that knew nothing of each other, then a third one that finds one stage and no rest of the other."""
    first, second = (SharedStore(tmp_path / name, url) for name in ("first", "second"))
    for store in (first, second):
        StageStore(store.root).run(STAGE, fill)
    own = content(second.path(STAGE.key))
    assert first.publish([STAGE.key]) == 1
    assert second.publish([STAGE.key]) == 0
    assert second.publish([STAGE.key]) == first.publish([STAGE.key]) == 0
    second.whole(STAGE.key)
    assert content(second.path(STAGE.key)) == content(first.path(STAGE.key)) != own
    assert len({name.split("/")[1] for name in first.storage.sizes("stages")}) == 2


CLAIM = """
import sys
from lowrank_bench.runners.store.storage import Storage
storage = Storage(sys.argv[1])
storage.check()
for line in sys.stdin:
    print(storage.claim(line.strip(), sys.argv[2].encode()).decode(), flush=True)
"""


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_claims_at_the_same_moment_have_one_winner(kind, tmp_path, request):
    if kind == "s3":
        request.getfixturevalue("server")
    url, pipe = f"file://{tmp_path}" if kind == "file" else "s3://bucket/claims", subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIM, url, str(who)], stdin=pipe, stdout=pipe, text=True)
        for who in range(3)
    ]
    for number in range(20):
        for process in processes:
            process.stdin.write(f"x/{number}\n")
            process.stdin.flush()
        assert len({process.stdout.readline() for process in processes} - {""}) == 1
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_a_damaged_copy_is_fetched_again_and_a_damaged_original_is_named(tmp_path):
    url = f"file://{tmp_path}/storage"
    SharedStore(tmp_path / "here", url).run(STAGE, fill)
    SharedStore(tmp_path / "there", url).whole(STAGE.key)
    flip(tmp_path / "there" / STAGE.key / "model" / "weights.bin")
    SharedStore(tmp_path / "there", url).whole(STAGE.key)
    assert content(tmp_path / "there" / STAGE.key) == content(tmp_path / "here" / STAGE.key)
    assert (tmp_path / "there" / "damaged" / STAGE.key).is_dir()
    for name in ("weights.bin", "stage.json"):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        flip(next(Path(tmp_path, "storage").rglob(name)))
        with pytest.raises(UserError, match=rf"{STAGE.key} is damaged \(.*{name}.*remove it there"):
            SharedStore(tmp_path / "other", url).whole(STAGE.key)
        assert not list((tmp_path / "other").glob("**/weights.bin"))


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


UPLOAD = """
import sys
from pathlib import Path
from lowrank_bench.runners.store.shared import SharedStore
SharedStore(Path(sys.argv[1]), sys.argv[2]).publish([sys.argv[3]])
"""


def test_a_killed_upload_is_no_stage_and_goes_on(tmp_path):
    def many(folder):
        for number in range(300):
            (folder / f"{number}.bin").write_bytes(os.urandom(1 << 12))
        return RESULTS["fit"]

    StageStore(tmp_path / "here").run(STAGE, many)
    for attempt in range(10):  # on a machine under load an upload may end before it is seen to have begun
        url, target = f"file://{tmp_path}/storage-{attempt}", tmp_path / f"storage-{attempt}" / "stages" / STAGE.key
        here, other = (SharedStore(tmp_path / name, url) for name in ("here", "other"))
        process = subprocess.Popen([sys.executable, "-c", UPLOAD, str(here.root), url, STAGE.key])
        while not list(target.glob("*/*")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        if process.wait():
            break
    assert process.returncode == -signal.SIGKILL
    assert other.missing([STAGE.key]) == [STAGE.key]
    assert list(target.glob("*/*"))
    assert here.publish([STAGE.key]) == 1
    other.whole(STAGE.key)
    assert content(other.path(STAGE.key)) == content(here.path(STAGE.key))


def test_what_another_attempt_left_is_cleared(tmp_path):
    url = f"file://{tmp_path}/storage"
    left = tmp_path / "storage" / "stages" / STAGE.key / ("0" * 16) / "model" / "weights.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    SharedStore(tmp_path / "here", url).run(STAGE, fill)
    assert not left.parent.parent.exists()


def test_a_light_stage_needs_the_option_and_is_lost_with_its_storage(tmp_path):
    url = f"file://{tmp_path}/storage"
    SharedStore(tmp_path / "here", url).run(STAGE, fill)
    for name in ("one", "two"):
        SharedStore(tmp_path / name / "stages", url).gather([STAGE.key])
    assert repair(tmp_path / "one") == (1, [], [])
    plain = StageStore(tmp_path / "one" / "stages")
    assert plain.missing([STAGE.key]) == []
    with pytest.raises(UserError, match=r"only in a storage .* add --storage URL with a URL that you trust"):
        plain.whole(STAGE.key)
    named = SharedStore(tmp_path / "one" / "stages", url)
    assert content(named.whole(STAGE.key)) == content(tmp_path / "here" / STAGE.key)
    again = SharedStore(tmp_path / "two" / "stages", url)
    with pytest.raises(UserError, match=r"lacks files and is not in the storage .* with --storage"):
        SharedStore(tmp_path / "two" / "stages", f"file://{tmp_path}/other").whole(STAGE.key)
    shutil.rmtree(tmp_path / "storage")
    with pytest.raises(UserError, match="lacks files and is not in the storage"):
        again.whole(STAGE.key)
    assert again.missing([STAGE.key]) == [STAGE.key]
    again.run(STAGE, fill)
    assert again.storage.has(STAGE.key)
    (again.path(STAGE.key) / MARKER).write_text("{")
    assert [moved.key for moved in repair(tmp_path / "two")[1]] == [STAGE.key]


def test_failures_pass_or_end_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "_FIRST_WAIT_SECONDS", 0.001)
    outcomes = [TimeoutError("slow"), ConnectionError("reset"), 5]

    def action():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    storage = Storage(f"file://{tmp_path}", attempts=3)
    assert storage._try("read", action) == 5
    outcomes[:] = [ConnectionError("reset")] * 4
    with pytest.raises(UserError, match=r"cannot be read from .*reset.*run the same command again"):
        storage._try("read", action)
    assert len(outcomes) == 1


def test_a_stage_stays_here_when_its_storage_fails(tmp_path):
    (tmp_path / "storage").mkdir()
    store = SharedStore(tmp_path / "here", f"file://{tmp_path}/storage")

    def work(folder):
        shutil.rmtree(tmp_path / "storage")
        (tmp_path / "storage").write_text("in the way")
        return fill(folder)

    with pytest.raises(UserError, match=r"the storage file://.* cannot be .* finished stages are kept"):
        store.run(STAGE, work)
    assert store.is_done(STAGE.key)
    (tmp_path / "storage").unlink()
    store.run(STAGE, lambda folder: pytest.fail("done twice"))
    assert store.storage.has(STAGE.key)


def test_a_sweep_goes_on_elsewhere(finished, tmp_path):
    """Published from a run that knew no storage; read on another machine without weights; extended there."""
    url = f"file://{tmp_path}/storage"
    shutil.copytree(finished.execution.out, tmp_path / "first")
    first = run_sweep(small_sweep(tmp_path / "first", storage=url))
    second = run_sweep(small_sweep(tmp_path / "second", storage=url))
    assert first.stages_run == second.stages_run == 0
    assert second.csv.read_bytes() == first.csv.read_bytes()
    sent = tmp_path / "storage" / first.folder.name
    assert sorted(p.name for p in sent.iterdir()) == sorted(p.name for p in second.folder.iterdir())
    assert (sent / "results.csv").read_bytes() == first.csv.read_bytes()
    assert "storage" not in (sent / "sweep.yaml").read_text().replace(str(tmp_path), "")
    assert heavy(tmp_path / "second") == []

    more = {"methods": ["svd"], "ratios": [2, 3]}
    assert run_sweep(small_sweep(tmp_path / "second", **more, storage=url)).stages_run == 3
    assert [kind for kind in heavy(tmp_path / "second") if kind in ("fit", "finetune")] == ["finetune", "fit"]
    assert run_sweep(small_sweep(tmp_path / "first", **more, storage=url)).stages_run == 0
    third = small_sweep(tmp_path / "third", **more, storage=url)
    assert run_sweep(third).stages_run == 0
    frames = [read_records(tmp_path / name / first.folder.name) for name in ("second", "third")]
    assert same_results(*frames) == []
    name = f"{tmp_path}/third/{first.folder.name}:svd@3"
    with pytest.raises(UserError, match="add --storage URL"):
        find_cell(name, any_benchmark=True).checkpoint()
    weights = find_cell(name, any_benchmark=True, storage=url).checkpoint()
    assert load_model(weights)
    assert heavy(tmp_path / "third") == ["recover"]


def test_keys_know_nothing_of_the_storage(tmp_path):
    keys = make_plan(small_sweep(tmp_path)).stages.keys()
    assert make_plan(small_sweep(tmp_path, storage=f"file://{tmp_path}/s")).stages.keys() == keys


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/nfs/runs", "is no URL; write s3://BUCKET/FOLDER"),
        ("s3://", "is no URL"),
        ("file://runs", "three slashes: file:///runs"),
        ("memory://runs", "one process alone"),
    ],
)
def test_urls_that_no_other_process_would_see(tmp_path, url, sentence):
    with pytest.raises(UserError, match=sentence):
        small_sweep(tmp_path, storage=url)


def test_what_cannot_be_used_is_reported_before_work(tmp_path, server, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, sentence in [
        ("nosuch://x/y", "nosuch.* protocol that is not allowed"),
        ("gs://bucket/runs", "needs a package that is missing here .*gcsfs"),
        (f"file://{tmp_path}/file/runs", "cannot be written to from .*NotADirectory|FileExists"),
        ("s3://none-of-that-name/runs", "cannot be written to .*bucket does not exist"),
    ]:
        with pytest.raises(UserError, match=sentence):
            run_sweep(small_sweep(tmp_path / "out", storage=url))
    assert not (tmp_path / "out").exists()


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    store = SharedStore(tmp_path / "here", f"file://{tmp_path}/storage")
    store.run(STAGE, fill)
    from lowrank_bench.runners.store.folders import checksum

    file = tmp_path / "storage" / "stages" / STAGE.key / "stage.json"
    record = json.loads(file.read_text())
    record["files"]["../../evil"] = 1
    record.pop("checksum")
    file.write_text(json.dumps(record | {"checksum": checksum(record)}))
    with pytest.raises(UserError, match="is damaged"):
        SharedStore(tmp_path / "there", store.storage.url).gather([STAGE.key])


@pytest.mark.parametrize(
    "url",
    [
        "reference::file:///tmp/index.json",
        "reference:///tmp/index.json",
        "simplecache::s3://bucket/folder",
        "zip://inner::file:///tmp/archive.zip",
        "http://localhost/folder",
        "dask://worker/folder",
    ],
)
def test_only_plain_protocols_are_opened(url):
    with pytest.raises(ValueError, match=r"such as s3://BUCKET/FOLDER"):
        check_url(url)
    with pytest.raises(UserError, match=r"such as s3://BUCKET/FOLDER"):
        find_cell("runs/any:svd@2", storage=url)


def test_a_foreign_run_folder_does_not_choose_what_is_opened(finished, tmp_path, monkeypatch):
    """Its marker names a URL; every command that needs the weights refuses before anything is opened."""
    shutil.copytree(finished.execution.out, tmp_path / "foreign")
    stages = tmp_path / "foreign" / "stages"
    for stage in stages.glob("*-*"):
        if (stage / "stage.json").is_file():
            lacks = [path.relative_to(stage).as_posix() for path in stage.rglob("*.safetensors")]
            write_json(stage / MARKER, {"storage": "reference::file:///tmp/evil.json", "lacks": lacks})
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_, **__: pytest.fail("a URL was opened"))
    run = next(path.parent for path in (tmp_path / "foreign").glob("*/results.csv"))
    cell = f"{run}:svd@2"
    for reader in (
        lambda: checkpoint_folder(cell),
        lambda: find_subject(cell),
        lambda: inspect_bases(cell, "q", 0),
        lambda: inspect_changes(cell),
    ):
        with pytest.raises(UserError, match=r"only in a storage .* add --storage URL with a URL that you trust"):
            reader()


def test_a_password_in_a_storage_url_is_never_shown(tmp_path):
    storage = Storage("sftp://user:secret@localhost:1/folder", attempts=1)
    with pytest.raises(UserError) as error:
        storage.check()
    assert "secret" not in str(error.value)
    with pytest.raises(ValueError, match=r"user:\*\*\*@") as refused:
        check_url("ftp://user:secret@host/folder")
    assert "secret" not in str(refused.value)
