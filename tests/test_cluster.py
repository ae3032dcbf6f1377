"""The door to Ray: mapping in order, arithmetic before waiting, errors carried across processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from cxr_ray import cluster
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.phantom_dataset import write_phantom_films
from cxr_ray.errors import ClusterError, ConfigError, CxrError, DecodeError


def square(number: int) -> int:
    return number * number


def test_a_map_over_the_cluster_keeps_the_order(local_ray):
    assert list(cluster.parallel_map(square, range(50))) == [number * number for number in range(50)]


def test_what_a_task_raises_comes_back_as_it_was(local_ray):
    def refuse(number: int) -> int:
        raise DecodeError("is no film", where=f"{number}.png", code="truncated")

    with pytest.raises(DecodeError) as raised:
        list(cluster.parallel_map(refuse, range(3)))
    assert str(raised.value) == "0.png: is no film"
    assert raised.value.code == "truncated"


def test_a_node_out_of_memory_is_told_with_its_figures_instead_of_advice_on_ray():
    from ray.exceptions import OutOfMemoryError

    error = OutOfMemoryError(
        "8 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: a68d) "
        "was 22.58GB used / 23.54GB limit (0.959298)\nOOM kill reason: ...\nSet max_restarts and max_task_retries."
    )
    assert cluster.reason_of(error) == (
        "Ray killed workers because their node ran out of memory (22.58GB used / 23.54GB limit)"
    )


def test_a_task_whose_process_dies_is_one_sentence(local_ray):
    def die(_number: int) -> None:
        os._exit(1)

    with pytest.raises(ClusterError, match="a task on the cluster failed: ") as raised:
        list(cluster.parallel_map(die, [1]))
    assert "\n" not in str(raised.value)


def test_an_import_over_ray_equals_one_in_this_process(local_ray, tmp_path):
    films = write_phantom_films(tmp_path / "films", images=80, size=64, quiet=True)
    here = import_dataset(films, tmp_path / "here", size=64, quiet=True)
    there = import_dataset(films, tmp_path / "there", size=64, map=cluster.parallel_map, quiet=True)
    assert here.info.fingerprint == there.info.fingerprint


def test_what_can_never_fit_is_refused_with_the_arithmetic(local_ray):
    cluster.check_fits(2, {"CPU": 2})
    with pytest.raises(ClusterError, match=r"3 worker\(s\) x 2 CPU = 6 CPU, but the cluster has 4 at most"):
        cluster.check_fits(3, {"CPU": 2})


def test_an_autoscaling_head_counts_the_nodes_it_may_still_get(local_ray, tmp_path, monkeypatch):
    description = tmp_path / "ray_bootstrap_config.yaml"
    description.write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 6}}\n  gpu: {max_workers: 5, resources: {CPU: 8, GPU: 1}}\n"
    )
    monkeypatch.setattr(cluster, "AUTOSCALER_FILE", str(description))
    assert cluster.could_have("GPU") == 0  # this Ray was started here and does not grow
    monkeypatch.setattr(cluster, "_STARTED_HERE", False)
    assert cluster.could_have("GPU") == 3
    assert cluster.could_have("CPU") == 6 + 24
    cluster.check_fits(3, {"GPU": 1, "CPU": 4})
    cluster.check_fits(4, {"CPU": 6})
    # 28 of 30 CPUs, but seven of them together are on three nodes only.
    message = r"4 worker\(s\) of 7 CPU do not fit: .* the nodes \(1 with 6 CPU, 3 with 8 CPU\) hold 3\."
    with pytest.raises(ClusterError, match=message):
        cluster.check_fits(4, {"CPU": 7})
    assert cluster.could_hold({"CPU": 0.5, "GPU": 0.25}) == 12
    with pytest.raises(ClusterError, match="the cluster has 3 at most"):
        cluster.check_fits(4, {"GPU": 1})


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("a", where="b", next_step="c"),
        DecodeError("a", where="b", code="truncated"),
        CxrError("a"),
    ],
)
def test_errors_survive_the_way_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_error_a_worker_raised_is_found_inside_its_wrappers():
    inner = ConfigError("the cause")
    middle = RuntimeError("wrapped")
    middle.__cause__ = inner
    outer = RuntimeError("group failed")
    outer.worker_failures = {1: middle}  # type: ignore[attr-defined]
    assert cluster.find_cxr_error(outer) is inner
    assert cluster.find_cxr_error(ValueError("other")) is None


def test_ray_starts_here_whatever_cluster_the_environment_names():
    script = "from cxr_ray import cluster; cluster.connect(cpus=1); print(cluster.available('CPU'))"
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr


def test_a_ray_that_cannot_start_is_one_sentence():
    script = "from cxr_ray import cluster; cluster.connect(resources={'CPU': 1})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ClusterError: Ray cannot be started on this machine (" in done.stderr.splitlines()[-1]


def test_run_names_are_readable_and_differ():
    names = {cluster.unique_name("tiny") for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("tiny-") for name in names)
