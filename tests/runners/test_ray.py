"""Sweeps by the real Ray: a cluster of two nodes on this machine, and a Ray that the sweep starts itself."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.results.records import read_records, same_results
from lowrank_bench.runners import ray_executor
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.local import crew_size
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.ray_executor import RETRIES, Node, share_of
from lowrank_bench.runners.sweep import run_sweep

SECONDS = 240
"""No test waits longer; on an idle machine each takes a small part of it."""


@pytest.fixture(scope="module")
def short_folder():
    """A folder for Ray's sockets: pytest's own have names that are too long for them."""
    folder = tempfile.mkdtemp(prefix="r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


CLUSTER = """
from ray.cluster_utils import Cluster
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes.add_node(num_cpus=1)
print("address", nodes.address, flush=True)
input()
nodes.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(short_folder):
    """Two nodes with a CPU each, and the environment by which bench may join them."""
    os.mkdir(os.path.join(short_folder, "ray"))
    token = os.path.join(short_folder, "token")
    with open(token, "w") as file:
        file.write("5" * 64)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | access | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short_folder},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
    yield address, access
    process.communicate("\n", timeout=60)
    assert none_left(lambda: running_in(short_folder))


def begin(config, folder, **environment):
    """Start bench run on a configuration, Ray's part included."""
    file = config.out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    return subprocess.Popen(
        [sys.executable, "-m", "lowrank_bench.cli", "run", "--config", str(file)],
        env=os.environ | {"TMPDIR": folder} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    _, errors = process.communicate(timeout=SECONDS)
    assert "Traceback" not in errors
    return process.returncode, " ".join(errors.split())


def when(found, process):
    """Wait until something is found while the process runs, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (result := found()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def at_work(out, kind):
    return list((out / "stages").glob(f".part-{kind}-*"))


def ray_workers(title):
    return [
        p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or ()).startswith(f"ray::{title}")
    ]


def running_in(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if any(folder in word for word in p.info["cmdline"] or ())]


def none_left(found):
    deadline = time.monotonic() + 30
    while (left := found()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left


def by_local(finished, tmp_path, **changes):
    """Return the records of a part of the finished sweep, whose stages all stand."""
    shutil.copytree(finished.out, tmp_path / "local")
    result = run_sweep(small_sweep(tmp_path / "local", **changes))
    assert result.stages_run == 0
    return result


def test_two_nodes_give_the_local_results_though_a_worker_is_killed(finished, cluster, short_folder, tmp_path):
    part = {"methods": ["svd", "bs:prunings=3"], "ratios": [2]}
    config = small_sweep(tmp_path / "out", **part, executor="ray", address=cluster[0])
    process, nodes = begin(config, short_folder, **cluster[1]), set()
    when(lambda: at_work(config.out, "finetune"), process)
    victim = when(lambda: ray_workers("finetune"), process)[0]
    victim.kill()
    while process.poll() is None:
        for worker in ray_workers(""):
            try:
                if re.match("ray::(fit|compress|recover|evaluate) ", " ".join(worker.cmdline())):
                    nodes.add(worker.ppid())
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    assert end(process) == (0, "")
    assert len(nodes) == 2
    local = by_local(finished, tmp_path, **part)
    folder = config.out / make_plan(config).name
    assert same_results(read_records(local.folder), read_records(folder)) == []
    assert "ray" not in (folder / "sweep.yaml").read_text().replace(str(config.out), "")
    assert not [path for path in (config.out / "stages").iterdir() if path.name.startswith((".part", ".ray", "failed"))]
    assert none_left(lambda: ray_workers("(fit|compress|recover|evaluate)"))


def test_an_error_ends_the_sweep_with_its_sentence_and_is_not_retried(cluster, short_folder, tmp_path):
    changes = {"methods": ["svd"], "ratios": [2], "finetune": {"steps": 30, "learning_rate": 1e30}}
    config = small_sweep(tmp_path / "out", **changes, executor="ray", address=cluster[0])
    code, errors = end(begin(config, short_folder, **cluster[1]))
    assert code == 2
    assert re.search(r"^error: the loss became (nan|inf) at step .* finetune tiny", errors)
    assert len(list((config.out / "stages" / "failed").glob("finetune-*.json"))) == 1
    assert not list((config.out / "stages").glob(".ray-*"))


def test_a_worker_lost_too_often_ends_the_sweep(cluster, short_folder, tmp_path):
    config = small_sweep(tmp_path / "out", finetune={"steps": 50_000}, executor="ray", address=cluster[0])
    process, killed = begin(config, short_folder, **cluster[1]), set()
    while len(killed) < RETRIES + 1:
        worker = when(lambda: [w for w in ray_workers("finetune") if w.pid not in killed], process)[0]
        killed.add(worker.pid)
        worker.kill()
    code, errors = end(process)
    assert code == 1
    assert f"the process of 'finetune tiny on toy-math, seed 42' was lost {RETRIES + 1} times" in errors
    assert not list((config.out / "stages").glob("finetune-*"))


def test_a_ray_of_its_own_ends_with_the_sweep_and_a_killed_sweep_goes_on(finished, tmp_path):
    """SIGTERM, then SIGKILL, then the whole: nothing runs on, and the results are the local ones."""
    part = {"methods": ["svd"], "ratios": [2]}
    config = small_sweep(tmp_path / "out", **part, executor="ray")
    with tempfile.TemporaryDirectory(prefix="r") as folder, pytest.MonkeyPatch.context() as patch:
        (home := tmp_path / "home").mkdir()
        patch.setenv("HOME", str(home))
        process = begin(config, folder)
        when(lambda: at_work(config.out, "finetune"), process)
        process.send_signal(signal.SIGTERM)
        code, errors = end(process)
        assert code == 143
        assert "run the same command again" in errors
        assert not list((config.out / "stages").glob("finetune-*"))
        assert none_left(lambda: running_in(folder))
        assert os.listdir(folder) == []

        process = begin(config, folder)
        when(lambda: at_work(config.out, "fit"), process)
        process.kill()
        process.wait()
        assert none_left(lambda: running_in(folder))

        finetuned = next((config.out / "stages").glob("finetune-*/stage.json")).read_bytes()
        assert end(begin(config, folder)) == (0, "")
        assert none_left(lambda: running_in(folder))
        assert next((config.out / "stages").glob("finetune-*/stage.json")).read_bytes() == finetuned
        assert not (home / ".ray").exists()
    local = by_local(finished, tmp_path, **part)
    assert same_results(read_records(local.folder), read_records(config.out / make_plan(config).name)) == []
    assert not list((config.out / "stages").glob(".part-*"))


def test_where_nothing_answers_there_is_a_sentence(tmp_path, monkeypatch):
    """Nobody listens; somebody listens who is no Ray; and the nodes do not share the folder."""
    monkeypatch.setattr(ray_executor, "CONNECT_SECONDS", 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        config = small_sweep(tmp_path, executor="ray", address=f"127.0.0.1:{port}")
        with pytest.raises(
            UserError, match=rf"no Ray cluster can be used at 127\.0\.0\.1:{port} \(no answer within 5 s"
        ):
            run_sweep(config)
    with pytest.raises(UserError, match=r"Connection refused.*ray start --head"):
        run_sweep(config)
    assert not (tmp_path / "stages").exists()
    monkeypatch.setattr(ray_executor, "_SHARED_SECONDS", 0)
    with pytest.raises(UserError, match=r"does not see .* --out that all nodes share"):
        ray_executor._await(tmp_path / "stages" / "token", "the machine that runs the sweep")


def test_without_ray_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'lowrank-bench\[ray\]'"):
        run_sweep(small_sweep(tmp_path, executor="ray"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"address": "10.0.0.1:6379"}, "add --executor ray"),
        ({"executor": "slurm"}, "executor cannot be 'slurm'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        small_sweep(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"address": "ray://head:10001"}, "write HOST:PORT"),
        ({"address": "head"}, "write HOST:PORT"),
        ({"device": "cuda:1"}, "use --device cuda"),
    ],
)
def test_what_ray_cannot_use(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        run_sweep(small_sweep(tmp_path, executor="ray", **changes))


def test_keys_know_nothing_of_ray(tmp_path):
    keys = make_plan(small_sweep(tmp_path)).stages.keys()
    assert make_plan(small_sweep(tmp_path, executor="ray", address="auto")).stages.keys() == keys


sizes = st.sampled_from([1_000_000, 7_000_000_000])
wanted = st.none() | st.integers(1, 64)


@given(wanted, sizes)
def test_one_machine_gets_the_threads_of_the_local_executor(workers, parameters):
    cores = len(os.sched_getaffinity(0))
    share = share_of(workers, "cpu", parameters, [Node(cores, 0)])
    crew, threads = crew_size(workers, "cpu", parameters, 10**6)
    assert share.threads == threads
    assert share.slots == min(crew, cores)


nodes = st.lists(st.builds(Node, st.integers(0, 128), st.integers(0, 8)), min_size=1, max_size=6)


@given(wanted, sizes, st.sampled_from(["cpu", "cuda"]), nodes)
def test_every_usable_node_has_room_for_a_stage(workers, parameters, device, found):
    usable = [n for n in found if n.cpus and (device == "cpu" or n.gpus)]
    if not usable:
        with pytest.raises(UserError, match="no node of the Ray cluster offers"):
            share_of(workers, device, parameters, found)
        return
    share = share_of(workers, device, parameters, found)
    assert share.gpus == (device == "cuda")
    assert 1 <= share.threads <= share.cpus <= min(n.cpus for n in usable)
    assert share.slots >= len(usable)
    assert share.slots <= sum(n.gpus if share.gpus else n.cpus for n in usable)


def test_config_takes_both_names():
    config = make_config(
        {"model": "tiny", "task": "toy-math", "methods": ["svd"], "executor": "ray", "address": "auto"}
    )
    assert (config.executor, config.address) == ("ray", "auto")
