"""Real clusters of Ray in this machine: a head without CPUs and two nodes of one CPU each."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import results_in, wait_for, write_photo

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}  # read when Ray is imported
ray = pytest.importorskip("ray", reason="needs the extra ray", exc_type=ModuleNotFoundError)

from faulty_workers import Faulty  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from carvana_batch.commands import group  # noqa: E402
from carvana_batch.engines.contract import Job  # noqa: E402
from carvana_batch.engines.dispatch import Dispatcher  # noqa: E402
from carvana_batch.engines.ray import Needs, RayCrew  # noqa: E402
from carvana_batch.errors import CarvanaBatchError, UsageError  # noqa: E402
from carvana_batch.inputs.find import find_images  # noqa: E402
from carvana_batch.options import Choice, Options  # noqa: E402
from carvana_batch.output.announced import worker_journals  # noqa: E402
from carvana_batch.run import run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PHOTOS = 60


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Ray's processes import faulty_workers
        quick = {"health_check_period_ms": 1000}  # to notice sooner that a node is gone
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
        started = Cluster(initialize_head=True, head_node_args=head)
        nodes = [started.add_node(num_cpus=1) for _ in range(2)]
        started.wait_for_nodes()
        yield started, nodes
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def address(cluster):
    """Of the cluster with two nodes, to which this process is not connected."""
    started, nodes = cluster
    while len(nodes) < 2:
        nodes.append(started.add_node(num_cpus=1))
    yield started.address
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster_with_gpus(cluster):
    """The address of the cluster while it has a third node, of four CPUs and, as it says, two GPUs."""
    started, _ = cluster
    node = started.add_node(num_cpus=4, num_gpus=2)
    started.wait_for_nodes()
    yield started.address
    started.remove_node(node)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with photos, and their true masks beside it."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOS):
        name = f"{'ab'[number % 2]}/{number:02}"
        write_photo(folder / "in" / f"{name}.jpg", folder / "truth" / f"{number:02}_mask.gif", number)
    return folder / "in"


@pytest.fixture(scope="module")
def expected(photos, model, tmp_path_factory):
    """What a single process makes of the photos."""
    out = tmp_path_factory.mktemp("expected") / "out"
    run(find_images(photos).refs, out, model, Options(precision="fp32", workers=0))
    return results_in(out)


@pytest.fixture
def predict(photos, model, tmp_path, address):
    """``predict(**faults)`` masks the photos into ``out`` by two workers; returns report and log."""

    def start(**faults):
        log = tmp_path / "log"
        crew = RayCrew("segunet-s", address, make=Faulty(log, **faults))
        options = Options(precision="fp32", workers=0)
        report = run(find_images(photos).refs, tmp_path / "out", model, options, engine=Dispatcher(crew))
        return report, lines_of(log)

    return start


def lines_of(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def assert_complete(out, expected, failed=()):
    """Whether the results are those of a single process, except for photos that have failed."""
    results = results_in(out)
    assert results.keys() == expected.keys() - {f"{key}.png" for key in failed}
    different = {name for name in results if results[name] != expected[name]}
    assert different == ({"report.csv"} if failed else set())
    assert worker_journals(out / ".carvana-batch") == []


def test_both_engines_give_the_same_bytes_and_finish_what_the_other_began(
    photos, tmp_path, address, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "in")
    shutil.copytree(photos.parent / "truth", "truth")
    for bad in ("a/empty.jpg", "b/cut.jpg"):
        Path("in", bad).write_bytes(Path("in/a/00.jpg").read_bytes()[: 500 * bad.count("cut")])
    Path("truth/04_mask.gif").unlink()
    shutil.copy("in/b/01.jpg", "ground.jpg")
    options = ["--gt", "truth", "--precision", "fp32", "--workers", "1", "--json"]
    options += ["--save", "overlay", "--save", "prob", "--save", "recolour", "--colour", "#b00020"]
    options += ["--background", "ground.jpg"]
    with_ray = ["--engine", "ray", "--address", address]

    def predict(out, *more):
        finished = CliRunner().invoke(group, ["predict", "in", out, *options, "--rle", f"{out}.csv", *more])
        assert finished.exit_code == 3, finished.output
        return json.loads(finished.stdout)

    assert predict("local")["engine"] == {"name": "local"}
    report = predict("ray", *with_ray)
    assert report["engine"] == {
        "name": "ray",
        "nodes": {os.uname().nodename: PHOTOS + 2},
        "handed_out": PHOTOS + 2,
        "lost_workers": 0,
    }
    assert (report["done"], report["failed"], report["warnings"]) == (PHOTOS, 2, [])
    assert results_in(Path("ray")) == results_in(Path("local"))
    assert Path("ray.csv").read_bytes() == Path("local.csv").read_bytes()
    assert len(results_in(Path("ray"))) == 5 * PHOTOS + 1
    with Path("ray/report.csv").open(newline="") as table:
        assert all(row["doubt"] for row in csv.DictReader(table) if row["status"] == "done")
    assert not ray.is_initialized()

    before = results_in(Path("local"))
    for number in range(0, PHOTOS, 5):
        for out in ("local", "ray"):
            Path(out, "ab"[number % 2], f"{number:02}.png").unlink()
    assert predict("ray")["done"] == predict("local", *with_ray)["done"] == PHOTOS // 5
    assert results_in(Path("ray")) == results_in(Path("local")) == before

    for out, engine in (("ray", with_ray), ("local", [])):
        report = predict(out, "--save", "cutout", *engine)
        assert (report["done"], report["drawn"], report["undrawn"]) == (0, PHOTOS, [])
    assert results_in(Path("ray")) == results_in(Path("local"))
    assert len(results_in(Path("ray"))) == 6 * PHOTOS + 1


def test_an_actor_is_killed(predict, tmp_path, expected, count_faults):
    report, begun = predict(faults={"a/20": "once kill"})
    assert (report.exit_code, report.done) == (0, PHOTOS)
    assert_complete(tmp_path / "out", expected)
    assert report.engine["lost_workers"] == 1
    (warning,) = report.warnings
    place = os.uname().nodename
    assert warning == f"A worker on {place} died and was replaced: its process was killed or has crashed"
    assert PHOTOS < len(begun) <= PHOTOS + 8
    assert len({process for _, process, _ in begun}) in (2, 3), (
        "the other may do the rest before a new one can"
    )
    count_faults("a worker of Ray, its machine or the process of the run dies", 1)


def test_a_photo_that_kills_its_workers_fails_alone(predict, tmp_path, expected, count_faults):
    report, begun = predict(faults={"b/11": "segfault"})
    assert (report.exit_code, report.done) == (3, PHOTOS - 1)
    assert_complete(tmp_path / "out", expected, failed=["b/11"])
    ((failure,), times) = report.failures, Counter(key for key, _, _ in begun)
    assert (failure.key, failure.stage) == ("b/11", "predict")
    assert failure.reason == (
        "two workers died with this photo alone, the second one because: its process was killed or has"
        " crashed"
    )
    # Twice alone, and before with others; more often if many were begun whose results were not yet sent.
    assert 3 <= times["b/11"] <= 5
    assert len(begun) <= PHOTOS + 30
    count_faults("a worker of Ray, its machine or the process of the run dies", 3)


def test_a_node_is_removed(predict, cluster, tmp_path, expected, count_faults, capsys):
    started, nodes = cluster
    log = tmp_path / "log"

    def remove():
        wait_for(lambda: len({node for _, _, node in lines_of(log)}) == 2 and len(lines_of(log)) > 12)
        started.remove_node(nodes.pop(), allow_graceful=False)

    remover = threading.Thread(target=remove)
    remover.start()
    report, begun = predict(seconds=0.1)
    remover.join()
    assert capsys.readouterr() == ("", ""), "Ray prints nothing, so that stdout only holds JSON"
    assert (report.exit_code, report.done) == (0, PHOTOS)
    assert_complete(tmp_path / "out", expected)
    assert report.engine["lost_workers"] == 1
    assert report.warnings == [
        f"A worker on {os.uname().nodename} died and was replaced: its machine was lost"
    ]
    assert PHOTOS <= len(begun) <= PHOTOS + 8, "60 if it was between two photos"
    count_faults("a worker of Ray, its machine or the process of the run dies", 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_the_process_of_the_run_is_killed_and_the_same_command_goes_on(
    photos, tmp_path, address, expected, number, code, count_faults
):
    out, log = tmp_path / "out", tmp_path / "log"
    journal = out / ".carvana-batch" / "journal-1-of-1.jsonl"
    command = [sys.executable, Path(__file__).with_name("ray_driver.py"), address, photos, out, log]
    with subprocess.Popen([*command, "0.1"], start_new_session=True) as driver:
        wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 10)
        driver.send_signal(number)
    assert driver.returncode == code
    kept = len(list(out.glob("[ab]/*.png")))
    assert 10 < kept < PHOTOS
    assert subprocess.run([*command, "0"], check=False).returncode == 0
    assert_complete(out, expected)
    begun = lines_of(log)
    assert len(begun) <= PHOTOS + (10 if number == signal.SIGKILL else 0)
    count_faults("a worker of Ray, its machine or the process of the run dies", 1)


def test_four_failed_starts_end_the_run_with_the_reason(predict, tmp_path, count_faults):
    with pytest.raises(
        CarvanaBatchError, match=r"4 workers in a row could not be started; .* no such driver"
    ):
        predict(start="no such driver")
    assert not (tmp_path / "out").exists()
    assert not ray.is_initialized()
    count_faults("a worker of Ray, its machine or the process of the run dies", 4)


def test_a_connection_that_is_there_is_used_and_kept(predict, address, tmp_path, expected):
    ray.init(address=address, log_to_driver=False)
    report, begun = predict()
    assert (report.done, len(begun)) == (PHOTOS, PHOTOS)
    assert ray.is_initialized()
    assert_complete(tmp_path / "out", expected)


def test_what_cannot_be_reached_is_named(model, photos, tmp_path):
    engine = Dispatcher(RayCrew("segunet-s", "127.0.0.1:1"))
    with pytest.raises(UsageError, match=r"--address 127\.0\.0\.1:1: no connection to a Ray cluster"):
        run(find_images(photos).refs, tmp_path / "out", model, Options(), engine=engine)


def test_the_mask_of_a_single_photo(photos, tmp_path, address):
    arguments = ["predict", photos / "a" / "00.jpg", tmp_path / "mask.png", "--model", "segunet-s"]
    arguments += ["--precision", "fp32", "--engine", "ray", "--address", address]
    finished = CliRunner().invoke(group, [str(argument) for argument in arguments])
    assert finished.exit_code == 0, finished.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png"]


@pytest.mark.parametrize(
    ("gpus", "device", "begun_on", "workers", "needs"),
    [
        (None, "auto", None, 2, Needs(1, 1)),
        (0.5, "auto", None, 4, Needs(1, 0.5)),
        (None, "cuda", None, 2, Needs(1, 1)),
        (None, "auto", "cuda", 2, Needs(1, 1)),
        (None, "auto", "cpu", 6, Needs(1, 0)),
        (None, "cpu", None, 6, Needs(1, 0)),
        (0, "auto", None, 6, Needs(1, 0)),
    ],
)
def test_a_worker_for_each_gpu(cluster_with_gpus, tmp_path, gpus, device, begun_on, workers, needs):
    crew = RayCrew("segunet-s", cluster_with_gpus, gpus=gpus)
    job = Job("d", Options(device=device), tmp_path, None, "run", 1)
    crew.open(job, None if begun_on is None else Choice(begun_on, "fp32", 1, 1000))
    try:
        assert (crew.wanted(), crew.describe_wanted()) == (workers, needs.describe())
    finally:
        crew.close()


def test_a_single_gpu_cannot_be_named(cluster_with_gpus, tmp_path):
    crew = RayCrew("segunet-s", cluster_with_gpus)
    with pytest.raises(UsageError, match="--device cuda:N does not go with --engine ray"):
        crew.open(Job("d", Options(device="cuda:1"), tmp_path, None, "run", 1), None)


@pytest.mark.parametrize(
    ("needs", "resources", "count"),
    [
        (Needs(1, 0), {"CPU": 4}, 4),
        (Needs(4, 0), {"CPU": 7}, 1),
        (Needs(2, 0), {}, 0),
        (Needs(1, 1), {"CPU": 64, "GPU": 8}, 8),
        (Needs(1, 2), {"CPU": 64, "GPU": 5}, 2),
        (Needs(1, 0.25), {"CPU": 64, "GPU": 2}, 8),
        (Needs(1, 0.4), {"CPU": 64, "GPU": 2}, 4),
        (Needs(1, 1), {"CPU": 2, "GPU": 8}, 2),
        (Needs(1, 1), {"CPU": 2}, 0),
    ],
)
def test_how_many_workers_a_machine_has_room_for(needs, resources, count):
    assert needs.fit_into(resources) == count
