"""What `cxr-ray serve` refuses before it starts anything, and that it cleans up."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import httpx
import pytest

from cxr_ray.errors import BundleError, ClusterError, ConfigError
from cxr_ray.serving import launch
from cxr_ray.serving.access import KEYS_VARIABLE
from cxr_ray.serving.launch import LocalService, deploy_locally


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_arguments: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(launch, "_start", started)


@pytest.mark.usefixtures("nothing_starts")
def test_a_missing_or_damaged_bundle_is_found_before_ray_starts(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        deploy_locally(tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle_path, damaged)
    with (damaged / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(BundleError, match="corrupted"):
        deploy_locally(damaged)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.2", "::", "example.org"])
def test_other_machines_are_not_served_without_keys(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=KEYS_VARIABLE):
        deploy_locally(bundle_path, host=host)


@pytest.mark.usefixtures("nothing_starts")
def test_a_port_that_is_taken_is_named(bundle_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port}.*in use.*--port"):
            deploy_locally(bundle_path, port=port)


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize("port", [0, -1, 99999])
def test_a_port_that_cannot_be_is_refused(bundle_path: Path, port: int) -> None:
    with pytest.raises(ClusterError, match=f"{port} is no port"):
        deploy_locally(bundle_path, port=port)


def test_a_second_service_on_the_same_ray_is_refused_and_the_first_lives_on(
    service: LocalService, bundle_path: Path, free_port: int
) -> None:
    with pytest.raises(ClusterError, match="runs on this cluster already"):
        deploy_locally(bundle_path, port=free_port, blocking=False)
    assert httpx.get(f"{service.url}/healthz").status_code == 200
