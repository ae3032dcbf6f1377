"""`--address`: training and tuning on a cluster that somebody else started, token authentication on."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(600)

FAST = ["training.image_size=64", "training.batch_size=16", "training.precision=fp32", "training.epochs=2"]


SETS = [part for option in FAST for part in ("--set", option)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a head node in processes of its own, and the environment that may talk to it."""
    port = free_port()
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
            "--num-cpus=2", "--include-dashboard=false", f"--ray-client-server-port={free_port()}",
            f"--temp-dir={folder}", "--disable-usage-stats",
        ]  # fmt: skip
        with (Path(folder) / "head.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (Path(folder) / "head.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (Path(folder) / "head.log").read_text()
            time.sleep(0.2)
        try:
            yield f"127.0.0.1:{port}", environment
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cxr_ray", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_training_runs_on_a_cluster_that_runs_already(head, phantoms, tmp_path):
    address, environment = head
    done = run(
        environment, "train", "tiny", "--data", phantoms.root, "--storage", tmp_path, "--name", "run", "--workers", "2",
        "--address", address, *SETS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


def test_tuning_runs_on_a_cluster_that_runs_already(head, phantoms, tmp_path):
    address, environment = head
    overrides = {key: yaml.safe_load(value) for key, value in (option.split("=") for option in FAST)}
    space = tmp_path / "space.yaml"
    parameters = {"augment.exposure": {"uniform": [0, 1]}}
    space.write_text(yaml.safe_dump({"base": "tiny", "trials": 2, "overrides": overrides, "parameters": parameters}))
    done = run(
        environment,
        "tune",
        space,
        "--data",
        phantoms.root,
        "--storage",
        tmp_path,
        "--name",
        "run",
        "--address",
        address,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").glob("trial_*/history.jsonl"))) == 2


def test_without_the_token_the_cluster_is_refused_in_one_sentence(head, phantoms, tmp_path):
    address, environment = head
    done = run(
        environment | {"RAY_AUTH_TOKEN": "0" * 64}, "train", "tiny", "--data", phantoms.root, "--storage", tmp_path,
        "--address", address, *SETS,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster can be joined" in done.stderr
    assert "Traceback" not in done.stderr
