"""One untrained bundle and one running service for all tests of serving."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cxr_ray.bundle import Bundle, Preprocessing, load_bundle
from cxr_ray.serving.launch import LocalService, deploy_locally

CLASSES = ["normal", "covid", "tuberculosis"]
MAX_UPLOAD_MB = 2


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, write_untrained_bundle: Callable[..., Path]) -> Path:
    """An untrained tiny bundle: its answers mean nothing, but they differ between films and are repeatable."""
    return write_untrained_bundle(
        tmp_path_factory.mktemp("serving") / "bundle",
        classes=CLASSES,
        preprocessing=Preprocessing(dataset_size=128, fit="pad", network_size=96),
        validation={"images": 9, "metrics": {"macro_f1": 0.2, "recall/covid": float("nan")}},
        provenance={"dataset": {"name": "phantoms", "fingerprint": "0123456789abcdef"}},
        warnings=["untrained"],
    )


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return load_bundle(bundle_path)


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8, (200, 160): a bright ellipse on a ramp, with a little grain."""
    y, x = np.mgrid[0:200, 0:160]
    ellipse = ((y - 100) / 80) ** 2 + ((x - 80) / 50) ** 2 < 1
    grain = np.random.default_rng(0).integers(0, 20, (200, 160))
    return (y // 2 + 100 * ellipse + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def films(pixels: np.ndarray) -> dict[str, bytes]:
    """The same film as a file of every format."""
    return {
        **{name: _encode(pixels, name) for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")},
        "DICOM": _dicom(pixels),
    }


@pytest.fixture(scope="session")
def service(local_ray: None, bundle_path: Path) -> Iterator[LocalService]:
    running = deploy_locally(bundle_path, port=_free_port(), blocking=False, max_upload_mb=MAX_UPLOAD_MB)
    assert running is not None
    yield running
    running.stop()


@pytest.fixture
def client(service: LocalService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


@pytest.fixture
def free_port() -> int:
    return _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _encode(pixels: np.ndarray, form: str) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form)
    return sink.getvalue()


def _dicom(pixels: np.ndarray) -> bytes:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.WindowCenter, film.WindowWidth = 2048, 4096  # all of the 12 bits: what the PNG of the same film shows
    film.PixelData = (4095 - pixels.astype(np.uint16) * 16).tobytes()
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, film, enforce_file_format=True)
    return sink.getvalue()
