"""What several test folders share: one Ray, one small dataset, one trained run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cxr_ray.cluster import prepare_environment

prepare_environment()  # before anything imports torch or Ray
# A shell that runs the tests in the background has them ignore Ctrl-C, and every command they start with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before Ray starts too, whose workers read from the same storage; the one the tests start takes any key.
os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")

import pytest  # noqa: E402

REAL_DATA = os.environ.get("CXR_REAL_DATA")
IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for the whole session, with the dashboard that Serve's REST interface lives in."""
    from cxr_ray import cluster

    cluster.connect(cpus=4, dashboard=True)
    yield
    cluster.disconnect()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory):
    """60 phantoms at 64 px; read only."""
    from cxr_ray.data.phantom_dataset import make_phantoms

    return make_phantoms(tmp_path_factory.mktemp("phantoms") / "dataset", images=60, size=64, quiet=True)


@pytest.fixture(scope="session")
def write_untrained_bundle() -> Callable[..., Path]:
    """Writes a tiny bundle that has learnt nothing, but answers; keywords change its `BundleInfo`."""
    import torch

    from cxr_ray.bundle import BundleInfo, Preprocessing, write_bundle
    from cxr_ray.data.labels import STANDARD
    from cxr_ray.metrics.calibration import identity_calibration
    from cxr_ray.model.dual_backbone import NetworkConfig, build_network

    def write(path: Path, *, classes: Sequence[str] = STANDARD, **changes: Any) -> Path:
        torch.manual_seed(0)
        count = len(classes)
        about: dict[str, Any] = {
            "name": "untrained",
            "created": "2026-01-01T00:00:00+00:00",
            "classes": list(classes),
            "watched_class": "covid",
            "preprocessing": Preprocessing(dataset_size=96, fit="squash", network_size=64),
            "network": NetworkConfig(backbones="tiny"),
            "calibration": identity_calibration(count),
            "thresholds": [1.0] * count,
            "validation": {"images": 0, "metrics": {}, "confusion": [[0] * count] * count},
            "provenance": {},
        }
        info = BundleInfo(**(about | changes))
        network = build_network(info.network, count).train()
        with torch.no_grad():
            for _ in range(20):
                network(torch.randn(4, 1, 64, 64))  # statistics of real activations, without which features vanish
        write_bundle(path, info, network.state_dict(), "# card\n", [{"epoch": 1}])
        return path

    return write


@pytest.fixture(scope="session")
def untrained_bundle(tmp_path_factory: pytest.TempPathFactory, write_untrained_bundle: Callable[..., Path]) -> Path:
    """A tiny bundle for 64-px films that has learnt nothing, but answers; read only."""
    return write_untrained_bundle(tmp_path_factory.mktemp("untrained") / "bundle")


@pytest.fixture(scope="session")
def real_films() -> Path:
    """The folder of 2,007 real films that CXR_REAL_DATA names."""
    if REAL_DATA is None or not Path(REAL_DATA).is_dir():
        message = "needs the real films: set CXR_REAL_DATA to their folder"
        if IN_CI:
            pytest.fail(message)
        pytest.skip(message)
    return Path(REAL_DATA).resolve()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of a server on this machine that speaks S3."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(s3_port: int) -> Callable[[str], str]:
    """Makes the URI of a folder in a bucket of its own on that server."""
    import uuid

    import pyarrow.fs as pafs

    bucket = f"films-{uuid.uuid4().hex[:8]}"
    options = f"region=us-east-1&endpoint_override=127.0.0.1:{s3_port}&scheme=http"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return lambda folder: f"s3://{bucket}/{folder}?{options}"
