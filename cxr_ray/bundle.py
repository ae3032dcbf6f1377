"""The bundle: one folder that holds a deployable classifier; written once, verified, used without Ray."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cxr_ray.cache import local_copy
from cxr_ray.data.decode import MAX_PIXELS, decode_square
from cxr_ray.data.loader import to_input
from cxr_ray.data.resize import Fit, fit_square
from cxr_ray.data.shards import file_sha256
from cxr_ray.errors import BundleError, DataError, DecodeError, did_you_mean
from cxr_ray.explanation.cam import class_maps
from cxr_ray.explanation.overlay import overlay
from cxr_ray.metrics.calibration import Calibration
from cxr_ray.model.dual_backbone import DualBackbone, NetworkConfig, build_network
from cxr_ray.paths import Location, locate

SCHEMA_VERSION = 1
MODEL_FILE, INFO_FILE, CARD_FILE, HISTORY_FILE = "model.safetensors", "bundle.json", "README.md", "history.jsonl"
SUMS_FILE = "SHA256SUMS"
FILES = (MODEL_FILE, INFO_FILE, CARD_FILE, HISTORY_FILE)

_COPY_AGAIN = "Copy the bundle again from where it was made, or promote the run again"
# Of the largest logit. Kernels differ between processors and versions of PyTorch by far less, other code by more.
_CANARY_TOLERANCE = 2e-3

ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image


class Preprocessing(BaseModel):
    """How a film becomes the network's input: squared as the dataset was, then reduced.

    Attributes:
        dataset_size: Edge of the stored squares the network was trained from, pixels.
        fit: ``squash``, ``pad`` or ``crop``.
        network_size: Edge of the network's input, pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_size: int
    fit: Fit
    network_size: int


class BundleInfo(BaseModel):
    """What `bundle.json` holds.

    Attributes:
        classes: In the order of the network's outputs.
        watched_class: The class whose misses cost most.
        thresholds: One a class; the label is the class whose probability is largest in units of its
            threshold.
        validation: Metrics on the validation split by key, its confusion matrix and number of images.
        provenance: Run, trial, experiment, dataset, versions: everything needed to make it again.
        warnings: Sentences that every reader should see.
        canary: Logits of a fixed synthetic film when the bundle was written; loading compares them, because
            the same weights answer otherwise under other network code. Set by `write_bundle`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    classes: list[str]
    watched_class: str
    preprocessing: Preprocessing
    network: NetworkConfig
    calibration: Calibration
    thresholds: list[float]
    validation: dict[str, Any]
    provenance: dict[str, Any]
    warnings: list[str] = []
    canary: list[float] = []


@dataclass(frozen=True)
class Prediction:
    """One answer: the label, and every class's calibrated probability (summing to 1)."""

    label: str
    probabilities: dict[str, float]
    model: str


@dataclass(frozen=True)
class Explanation:
    """Where the evidence for one class lies.

    Attributes:
        class_name: The class explained.
        attribution: float32, (h, w): Grad-CAM before the ReLU, in logit units, on the network's grid.
        logit: The class's logit; equals ``attribution.sum() + bias``.
        film: uint8, (S, S): what the network saw.
        prediction: The answer for the same film.
    """

    class_name: str
    attribution: np.ndarray
    logit: float
    film: np.ndarray
    prediction: Prediction

    def overlay(self, opacity: float = 0.45) -> np.ndarray:
        """The film with the heatmap on top: uint8 RGB, (S, S, 3)."""
        return overlay(self.film, self.attribution, opacity)


class Bundle:
    """A loaded, verified bundle; see `load_bundle`. Safe to call from one thread at a time."""

    def __init__(self, info: BundleInfo, bundle_id: str, network: DualBackbone, root: Path, uri: str) -> None:
        self.info = info
        self.id = bundle_id
        self.network = network
        self.root = root
        self.uri = uri
        self._thresholds = torch.tensor(info.thresholds, dtype=torch.float32)

    @property
    def classes(self) -> list[str]:
        return self.info.classes

    def history(self) -> list[dict[str, Any]]:
        """Every epoch of the training run, as written by the loop."""
        return [json.loads(line) for line in (self.root / HISTORY_FILE).read_text().splitlines()]

    def prepare(self, image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """A film as the network sees it.

        Args:
            image: A path, the bytes of a file, a PIL image, or an array (uint8, gray (H, W) or RGB).
            max_pixels: Larger films are refused from their header.

        Returns:
            uint8, (network_size, network_size).

        Raises:
            DecodeError: Not a film this package reads.
        """
        preprocessing = self.info.preprocessing
        size, fit = preprocessing.dataset_size, preprocessing.fit
        if isinstance(image, np.ndarray | Image.Image):
            square = fit_square(_pixels(image), size, fit)
        else:
            square, _ = decode_square(image, size, fit, max_pixels=max_pixels)
        return fit_square(square, preprocessing.network_size, "squash")

    def predict(self, image: ImageLike) -> Prediction:
        """Classify one film; see `prepare` for what may be given and raised."""
        return self.predict_prepared(self.prepare(image)[None])[0]

    def explain(self, image: ImageLike, class_name: str | None = None) -> Explanation:
        """Grad-CAM of one class, by default the predicted one.

        Raises:
            BundleError: The bundle has no such class.
            DecodeError: Not a film this package reads.
        """
        return self.explain_prepared(self.prepare(image)[None], [class_name])[0]

    def predict_prepared(self, films: np.ndarray) -> list[Prediction]:
        """Answers for films from `prepare`: uint8, (N, S, S)."""
        return self.predict_features(self.features(films))

    def explain_prepared(self, films: np.ndarray, class_names: Sequence[str | None]) -> list[Explanation]:
        """Explanations for films from `prepare`, uint8 (N, S, S); see `explain_features`."""
        return self.explain_features(self.features(films), films, class_names)

    def predict_features(self, features_nchw: Tensor) -> list[Prediction]:
        """Answers for N films from their `features`."""
        return self._answers(self._logits(features_nchw))

    def explain_features(
        self, features_nchw: Tensor, films: np.ndarray, class_names: Sequence[str | None]
    ) -> list[Explanation]:
        """Explanations of N films from their `features`: the network's body is not run again.

        Args:
            features_nchw: From `features`.
            films: uint8, (N, S, S), the same films.
            class_names: N names or None, which is the predicted class.

        Raises:
            BundleError: The bundle has no such class.
        """
        logits = self._logits(features_nchw)
        answers = self._answers(logits)
        names = [name or answer.label for name, answer in zip(class_names, answers, strict=True)]
        targets = torch.tensor([self.class_index(name) for name in names], device=features_nchw.device)
        maps = class_maps(self.network, features_nchw, targets).cpu().numpy()
        chosen = logits.gather(1, targets[:, None].cpu()).squeeze(1).tolist()
        return [
            Explanation(name, attribution, logit, film, answer)
            for name, attribution, logit, film, answer in zip(names, maps, chosen, films, answers, strict=True)
        ]

    def features(self, films: np.ndarray) -> Tensor:
        """The network's last feature maps, float32 (N, C, h, w), of films from `prepare`."""
        device = next(self.network.parameters()).device
        images = torch.from_numpy(np.ascontiguousarray(films))[:, None].to(device)
        images = to_input(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            features = self.network.features(images)
        # A plain copy: autograd, which Captum needs, refuses tensors made in inference mode.
        return features.clone()

    def logits(self, films: np.ndarray) -> np.ndarray:
        """float32, (N, K), of films from `prepare`."""
        return self._logits(self.features(films)).numpy()

    def class_index(self, name: str) -> int:
        """Number of a class. Raises BundleError naming the classes there are."""
        if name not in self.classes:
            hint = did_you_mean(name, self.classes)
            raise BundleError(f"there is no class '{name}'{hint}; the bundle knows {', '.join(self.classes)}")
        return self.classes.index(name)

    def decide(self, probabilities_nk: Tensor) -> Tensor:
        """int64, (N,): class numbers by the bundle's thresholds, of calibrated probabilities."""
        return (probabilities_nk / self._thresholds).argmax(dim=1)

    def _logits(self, features_nchw: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network.classify(features_nchw).cpu()

    def _answers(self, logits_nk: Tensor) -> list[Prediction]:
        probabilities = self.info.calibration.probabilities(logits_nk)
        labels = self.decide(probabilities).tolist()
        return [
            Prediction(self.classes[k], dict(zip(self.classes, row, strict=True)), self.id)
            for k, row in zip(labels, probabilities.tolist(), strict=True)
        ]


def load_bundle(path: str | os.PathLike[str] | Location, device: str = "cpu") -> Bundle:
    """Load a bundle, verifying every byte; needs no Ray.

    Args:
        path: Local folder or URI.
        device: A torch device.

    Raises:
        BundleError: There is none, a file is missing, added or changed, or it does not describe itself.
    """
    location = locate(path)
    if not location.child(SUMS_FILE).exists():
        if location.child(INFO_FILE).exists():
            raise BundleError(
                f"'{SUMS_FILE}' is missing, so nothing here can be verified",
                where=location,
                next_step=_COPY_AGAIN,
            )
        raise BundleError(
            "there is no bundle here" if location.exists() else "there is no such folder",
            where=location,
            next_step="Make one with: cxr-ray promote RUN --out BUNDLE",
        )
    sums = location.child(SUMS_FILE).read_bytes()
    bundle_id = hashlib.sha256(sums).hexdigest()
    files = _listed(sums, location) | {SUMS_FILE: bundle_id}
    try:
        root = local_copy(location, f"bundle-{bundle_id[:16]}", files)
    except DataError as error:
        raise BundleError(error.problem, where=error.where, next_step=error.next_step) from error
    verify_bundle(root)
    try:
        info = BundleInfo.model_validate_json((root / INFO_FILE).read_bytes())
        network = build_network(info.network, len(info.classes))
        network.load_state_dict(load_file(root / MODEL_FILE))
    except (ValidationError, SafetensorError, RuntimeError) as error:
        problem = f"does not describe itself ({str(error).splitlines()[0]})"
        raise BundleError(problem, where=location, next_step="Promote the run again") from error
    network.eval().requires_grad_(False)
    now, then = np.array(_canary(network, info.preprocessing.network_size)), np.array(info.canary)
    if now.shape != then.shape or np.abs(now - then).max() > _CANARY_TOLERANCE * np.abs(then).max():
        raise BundleError(
            "does not answer as it did when it was made: the network's code has changed since",
            where=location,
            next_step=f"Use the cxr_ray it was made with (versions: {info.provenance.get('versions', 'unknown')})",
        )
    network.to(torch.device(device)).to(memory_format=torch.channels_last)
    return Bundle(info, bundle_id, network, root, location.uri)


def verify_bundle(root: Path) -> None:
    """Check a local bundle folder against its checksums.

    Raises:
        BundleError: Naming the first file that is missing, changed, linked or not listed.
    """
    sums = _listed((root / SUMS_FILE).read_bytes() if (root / SUMS_FILE).is_file() else b"", root)
    for entry in sorted(root.iterdir()):
        if entry.name not in (*FILES, SUMS_FILE) or entry.is_symlink() or not entry.is_file():
            problem = f"'{entry.name}' does not belong to a bundle"
            raise BundleError(problem, where=root, next_step="Remove it, or copy the bundle again")
    for name, digest in sums.items():
        if not (root / name).is_file():
            raise BundleError(f"'{name}' is missing", where=root, next_step=_COPY_AGAIN)
        if file_sha256(root / name) != digest:
            raise BundleError(f"'{name}' is corrupted (its sha256 has changed)", where=root, next_step=_COPY_AGAIN)


def _listed(sums: bytes, where: object) -> dict[str, str]:
    """The files that a bundle's checksums name, each with its sha256."""
    try:
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in sums.decode().splitlines())}
    except (UnicodeDecodeError, ValueError) as error:
        raise BundleError(f"{SUMS_FILE} is damaged", where=where, next_step=_COPY_AGAIN) from error
    if set(listed) != set(FILES):
        raise BundleError(f"{SUMS_FILE} does not list {', '.join(FILES)}", where=where, next_step=_COPY_AGAIN)
    return listed


def write_bundle(
    out: str | os.PathLike[str],
    info: BundleInfo,
    weights: dict[str, Tensor],
    card: str,
    history: list[dict[str, Any]],
) -> str:
    """Write a bundle folder; it counts as one when it is whole.

    Args:
        out: A folder that does not exist yet, local path or URI.
        info: The content of `bundle.json`.
        weights: The network's state.
        card: The model card, Markdown.
        history: One row an epoch.

    Returns:
        The bundle's id.

    Raises:
        BundleError: `out` exists; a bundle never changes.
    """
    target = locate(out)
    if target.exists():
        raise BundleError("already exists", where=target, next_step="Choose another folder: a bundle never changes")
    network = build_network(info.network, len(info.classes)).eval()
    network.load_state_dict(weights)
    info = info.model_copy(update={"canary": _canary(network, info.preprocessing.network_size)})
    contents = {
        MODEL_FILE: save({name: tensor.contiguous() for name, tensor in weights.items()}),
        INFO_FILE: (info.model_dump_json(indent=2) + "\n").encode(),
        CARD_FILE: card.encode(),
        HISTORY_FILE: "".join(json.dumps(row) + "\n" for row in history).encode(),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()).encode()
    target.make_dir()
    try:
        for name, content in contents.items():
            target.child(name).write_bytes(content)
        # Last: a folder without checksums is not a bundle.
        target.child(SUMS_FILE).write_bytes(sums)
    except BaseException:
        target.delete_dir()
        raise
    return hashlib.sha256(sums).hexdigest()


def _canary(network: DualBackbone, size: int) -> list[float]:
    """Logits of a film that is the same everywhere: rings, which excite every scale of the network."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    film = np.cos(20 * np.hypot(rows - 0.4, columns - 0.6)).astype(np.float32)
    with torch.inference_mode():
        return network(torch.from_numpy(film)[None, None]).squeeze(0).tolist()


def _pixels(image: np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("L"))
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise DecodeError(f"array of {image.dtype} with shape {image.shape}; expected uint8 (H, W) or (H, W, 3)")
    return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))
