"""Sweeps by the real Ray: a cluster of two nodes on this machine, and a Ray that the sweep starts itself."""

import contextlib
import getpass
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from commands import start
from hypothesis import given
from hypothesis import strategies as st
from sweeps import small_sweep, write_config

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.process import python_command
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.executors import ray as ray_executor
from lowrank_bench.runners.executors.local import StageCrashed, divide_cores
from lowrank_bench.runners.executors.ray import RETRIES, Node, share_of
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.shared import LIGHT_BYTES

SECONDS = 900
"""No test waits longer; on an idle machine each takes a small part of it."""


SCRATCH = ("first", "second")


@pytest.fixture(scope="module")
def short_folder():
    """A folder for Ray's sockets: pytest's own have names that are too long for them."""
    folder = tempfile.mkdtemp(prefix="r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
first, second = ({"num_cpus": 1, "env_vars": {"LOWRANK_BENCH_SCRATCH": folder}} for folder in sys.argv[1:])
nodes = Cluster(initialize_head=True, head_node_args=first)
nodes.add_node(**second)
print("address", nodes.address, flush=True)
input()
nodes.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(short_folder):
    """Two nodes with a CPU and a scratch folder each, and the environment by which bench may join them."""
    os.mkdir(os.path.join(short_folder, "ray"))
    token = os.path.join(short_folder, "token")
    with open(token, "w") as file:
        file.write("5" * 64)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, *(os.path.join(short_folder, name) for name in SCRATCH)],
        env=os.environ | access | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": short_folder},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
    yield address, access
    process.communicate("\n", timeout=SECONDS)
    assert none_left(lambda: running_in(short_folder))


def begin(config, folder, **environment):
    """Start bench run on a configuration, Ray's part included."""
    return start(
        "run", "--config", write_config(config, config.execution.out.with_suffix(".yaml")), TMPDIR=folder, **environment
    )


def end(process):
    code = process.wait(timeout=SECONDS)
    assert "Traceback" not in process.errors()
    return code, " ".join(process.errors().split())


def when(find, process):
    """Wait until something is found while the process runs, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (result := find()):
        assert process.poll() is None, process.errors()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return result


def at_work(out, kind):
    return list((out / "stages").glob(f".part-{kind}-*"))


def ray_workers(title, folder):
    """Workers of the Ray whose files lie in a folder: other tests may have theirs at the same time."""
    workers = []
    for node in running_in(folder):
        try:
            workers += [p for p in node.children() if re.match(f"ray::{title}", " ".join(p.cmdline()))]
        except psutil.NoSuchProcess:
            continue
    return workers


def running_in(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if any(folder in word for word in p.info["cmdline"] or ())]


def none_left(find):
    deadline = time.monotonic() + 120
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left


def by_local(finished, tmp_path, **changes):
    """Return the records of a part of the finished sweep, whose stages are all complete."""
    shutil.copytree(finished.execution.out, tmp_path / "local")
    result = run_sweep(small_sweep(tmp_path / "local", **changes))
    assert result.stages_run == 0
    return result


def working(folder):
    """Processes that do a stage at the moment."""
    return ray_workers("(finetune|fit|compress|recover|evaluate) ", folder)


def test_nodes_that_share_only_a_storage_give_the_local_results_though_a_worker_is_killed(
    finished, cluster, short_folder, tmp_path
):
    part = {"methods": ["svd", "bs:prunings=3"], "ratios": [2]}
    url = f"file://{tmp_path}/storage"
    config = small_sweep(tmp_path / "out", **part, executor="ray", address=cluster[0], storage=url)
    process = begin(config, short_folder, **cluster[1])
    nodes = [Path(short_folder, name, "stages") for name in SCRATCH]
    when(lambda: [part for node in nodes for part in node.glob(".part-finetune-*")], process)
    victim = when(lambda: ray_workers("finetune", short_folder), process)[0]
    victim.kill()
    assert end(process) == (0, "")
    local = by_local(finished, tmp_path, **part)
    folder = config.execution.out / make_plan(config).name
    assert same_results(read_records(local.folder), read_records(folder)) == []
    assert not re.search("ray|storage", (folder / "sweep.yaml").read_text().replace(str(config.execution.out), ""))
    assert all(list(node.glob("[a-z]*-*")) for node in nodes), "one node did everything"
    weights = [file for file in config.execution.out.rglob("*.safetensors") if file.stat().st_size > LIGHT_BYTES]
    assert weights == []
    assert {path.name for path in (tmp_path / "storage" / "stages").iterdir()} == set(make_plan(config).stages)
    assert not [
        path
        for path in (config.execution.out / "stages").iterdir()
        if path.name.startswith((".part", ".ray", "failed"))
    ]
    assert none_left(lambda: working(short_folder))


def test_nodes_that_share_only_a_storage_choose_the_learning_rates_of_a_local_sweep(cluster, tmp_path, monkeypatch):
    """The choice is made between the trainings of all rates and the evaluations, from records in the storage alone."""
    part = {"methods": ["svd", "bs:prunings=1"], "ratios": [2], "tune": "lr=1e-5,3e-3", "limit": 2}
    local = run_sweep(small_sweep(tmp_path / "local", **part))
    for name, value in cluster[1].items():
        monkeypatch.setenv(name, value)
    url = f"file://{tmp_path}/storage"
    clustered = run_sweep(small_sweep(tmp_path / "out", **part, executor="ray", address=cluster[0], storage=url))
    assert clustered.stages_run == local.stages_run
    tables = [read_records(result.folder) for result in (local, clustered)]
    assert same_results(*tables) == []
    choices = [table.set_index("label")["tuned"].map(json.loads).to_dict() for table in tables]
    assert choices[0] == choices[1]
    assert {choice["lr"] for label, choice in choices[0].items() if label in ("svd", "bs:prunings=1")} <= {1e-5, 3e-3}


KILLS = int(os.environ.get("LOWRANK_BENCH_KILLS", "2"))
"""More than a few take long: LOWRANK_BENCH_KILLS=50 pytest tests/runners/executors/test_ray.py -k random."""


def test_kills_at_random_moments_end_with_the_local_results(finished, cluster, short_folder, tmp_path):
    """SIGKILL to the sweep or to a worker of the cluster, whose nodes share a folder."""
    part = {"methods": ["svd"], "ratios": [2]}
    config = small_sweep(tmp_path / "out", **part, executor="ray", address=cluster[0])
    local, moments, kills, ended = by_local(finished, tmp_path, **part), random.Random(os.getpid()), [], 0
    process = begin(config, short_folder, **cluster[1])
    while len(kills) < KILLS or not ended:
        # Some while after the start, or after a stage of some kind began: each takes another part of the time.
        kind = moments.choice([None, "finetune", "fit", "compress", "recover", "evaluate"])
        while kind and len(kills) < KILLS and process.poll() is None and not at_work(config.execution.out, kind):
            time.sleep(0.02)
        try:
            process.wait(moments.uniform(0, 2 if kind else 20) if len(kills) < KILLS else SECONDS)
        except subprocess.TimeoutExpired:
            assert len(kills) < KILLS
            workers = working(short_folder)
            victim = moments.choice([process, *workers[:1]])
            try:
                victim.kill()
            except psutil.NoSuchProcess:  # a worker that has just ended
                continue
            kills.append("sweep" if victim is process else "worker")
            print(f"{kills[-1]} killed, at work: {[p.name for p in at_work(config.execution.out, '*')]}", flush=True)
            if victim is process:
                end(process)
        else:
            code, errors = end(process)
            assert (code, errors) == (0, "") or (code == 1 and f"was lost {RETRIES + 1} times" in errors)
            if code == 0:
                assert (
                    same_results(read_records(local.folder), read_records(config.execution.out / local.folder.name))
                    == []
                )
                assert not list((config.execution.out / "stages").glob(".part-*"))
                shutil.rmtree(config.execution.out)
                ended += 1
        if process.poll() is not None and (len(kills) < KILLS or not ended):
            process = begin(config, short_folder, **cluster[1])
    print(f"\n{len(kills)} kills ({kills.count('worker')} of workers), {ended} sweeps ended with the local results")
    assert none_left(lambda: working(short_folder))


def test_an_error_ends_the_sweep_with_its_sentence_and_is_not_retried(cluster, tmp_path, monkeypatch):
    changes = {"methods": ["svd"], "ratios": [2], "finetune": {"steps": 30, "learning_rate": 1e30}}
    config = small_sweep(tmp_path / "out", **changes, executor="ray", address=cluster[0])
    for name, value in cluster[1].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step .* finetune tiny"):
        run_sweep(config)
    assert len(list((config.execution.out / "stages" / "failed").glob("finetune-*.json"))) == 1
    assert not list((config.execution.out / "stages").glob(".ray-*"))


def test_a_worker_lost_too_often_ends_the_sweep(cluster, short_folder, tmp_path, monkeypatch):
    config = small_sweep(tmp_path / "out", finetune={"steps": 50_000}, executor="ray", address=cluster[0])
    for name, value in cluster[1].items():
        monkeypatch.setenv(name, value)
    killed: set[int] = set()

    def kill() -> None:
        deadline = time.monotonic() + SECONDS
        while len(killed) < RETRIES + 1 and time.monotonic() < deadline:
            for worker in ray_workers("finetune", short_folder):
                if worker.pid not in killed:
                    killed.add(worker.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        worker.kill()
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(StageCrashed, match=rf"'finetune tiny on toy-math, seed 42' was lost {RETRIES + 1} times"):
            run_sweep(config)
    finally:
        killer.join()
    assert not list((config.execution.out / "stages").glob("finetune-*"))


def test_a_ray_of_its_own_ends_with_the_sweep(tmp_path):
    """SIGTERM, then SIGKILL: nothing runs on."""
    config = small_sweep(tmp_path / "out", methods=["svd"], ratios=[2], finetune={"steps": 50_000}, executor="ray")
    with tempfile.TemporaryDirectory(prefix="r") as folder, pytest.MonkeyPatch.context() as patch:
        (home := tmp_path / "home").mkdir()
        patch.setenv("HOME", str(home))
        process = begin(config, folder)
        when(lambda: at_work(config.execution.out, "finetune"), process)
        process.send_signal(signal.SIGTERM)
        code, errors = end(process)
        assert code == 143
        assert "run the same command again" in errors
        assert not list((config.execution.out / "stages").glob("finetune-*"))
        assert none_left(lambda: running_in(folder))
        assert set(os.listdir(folder)) <= {f"torchinductor_{getpass.getuser()}"}  # torch's own, where a step was made
        assert not (home / ".ray").exists()

        process = begin(config, folder)
        when(lambda: ray_workers("finetune", folder), process)
        process.kill()
        process.wait()
        assert none_left(lambda: running_in(folder))


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
        ({"executor": "ray", "address": "ray://head:10001"}, "write HOST:PORT"),
        ({"executor": "ray", "address": "head"}, "write HOST:PORT"),
        *(
            ({"executor": "ray", "address": address}, "write HOST:PORT")
            for address in (
                "head:70000",
                "head:0",
                "head:²",
                "[::1:6379",
                "::1:6379",
                "a b:1",
                " head:1",
                "me@head:1",
                "",
            )
        ),
        ({"executor": "slurm"}, "executor cannot be 'slurm'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        small_sweep(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
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
worker_counts = st.none() | st.integers(1, 64)


@given(worker_counts, sizes)
def test_one_machine_gets_the_threads_of_the_local_executor(workers, parameters):
    cores = len(os.sched_getaffinity(0))
    share = share_of(workers, "cpu", parameters, [Node(cores, 0)])
    worker_count, threads = divide_cores(workers, "cpu", parameters, 10**6)
    assert share.threads == threads
    assert share.slots == min(worker_count, cores)


nodes = st.lists(st.builds(Node, st.integers(0, 128), st.integers(0, 8)), min_size=1, max_size=6)


@given(worker_counts, sizes, st.sampled_from(["cpu", "cuda"]), nodes)
def test_every_usable_node_has_room_for_a_stage(workers, parameters, device, node_list):
    usable = [n for n in node_list if n.cpus and (device == "cpu" or n.gpus)]
    if not usable:
        with pytest.raises(UserError, match="no node of the Ray cluster offers"):
            share_of(workers, device, parameters, node_list)
        return
    share = share_of(workers, device, parameters, node_list)
    assert share.gpus == (device == "cuda")
    assert 1 <= share.threads <= share.cpus <= min(n.cpus for n in usable)
    assert share.slots >= len(usable)
    assert share.slots <= sum(n.gpus if share.gpus else n.cpus for n in usable)


def test_config_takes_both_names():
    ray = {"executor": "ray", "address": "auto"}
    config = make_config({"model": "tiny", "task": "toy-math", "methods": ["svd"], "execution": ray})
    assert (config.execution.executor, config.execution.address) == ("ray", "auto")


DRIVER = """
import os
import time
import psutil
import ray
from lowrank_bench.runners.executors.ray import ray_session

def look():
    import sympy
    return sympy.__file__

with ray_session(None):
    every = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    # the cluster of this session, not the one that other tests start below the same folder
    ours = [(p, words) for p, words in every if os.environ["TMPDIR"] + "/lrb-" in " ".join(words)]
    monitors = [p for p, words in ours if any(word.endswith("/_private/monitor.py") for word in words)]
    assert monitors
    time.sleep(3)
    ports = [(p.cmdline(), c) for p in monitors for c in p.net_connections("tcp") if c.status == "LISTEN"]
    assert not ports, f"a port of metrics: {ports}"
    print(ray.get(ray.remote(look).remote()))
"""


def test_workers_import_nothing_from_the_current_folder_and_no_metrics_are_offered(tmp_path, short_folder):
    """Ray puts the folder in which a driver starts before all others."""
    mark = tmp_path / "mark"
    (tmp_path / "sympy.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    command, environment = python_command("-c", DRIVER), os.environ | {"TMPDIR": short_folder}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert str(tmp_path) not in done.stdout
