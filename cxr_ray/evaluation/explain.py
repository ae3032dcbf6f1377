"""Explain single films: heatmaps by class as pictures, and the numbers behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cxr_ray.bundle import Bundle, load_bundle
from cxr_ray.data.decode import SUFFIXES
from cxr_ray.errors import ConfigError, DataError, DecodeError
from cxr_ray.evaluation.evaluate import best_device
from cxr_ray.evaluation.folder import file_name, free_folder, whole_folder
from cxr_ray.evaluation.pictures import ClassPicture, contact_picture, png
from cxr_ray.explanation.cam import class_maps
from cxr_ray.explanation.overlay import overlay, png_bytes
from cxr_ray.paths import locate
from cxr_ray.progress import progress

SCHEMA_VERSION = 1
EXPLANATIONS_FILE = "explanations.json"
_BATCH_SIZE = 16
_NAMED_AT_MOST = 10  # of many unreadable files
_STEM_BYTES = 150  # leaves room for a class's name in the 255 bytes that file systems allow


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEvidence(_Record):
    """What speaks for one class.

    Attributes:
        probability: Calibrated, 0 to 1.
        logit: The network's output; the heatmap's values sum to it, less the class's bias.
        supported: Whether any place of the film speaks for the class; if not, the overlay is the plain film.
        overlay: File name of the picture.
    """

    probability: float
    logit: float
    supported: bool
    overlay: str


class FilmExplanation(_Record):
    """One film: its label, every class's probability, and the evidence for the classes asked for."""

    image: str
    predicted: str
    probabilities: dict[str, float]
    classes: dict[str, ClassEvidence]
    picture: str


class Explanations(_Record):
    """What `explanations.json` holds.

    Attributes:
        schema_version: Of this file.
        created: ISO 8601, UTC.
        bundle: The bundle's id.
        bundle_name: Its name.
        films: In the order given.
        left_out: Files in the folders given that are not images by name.
        notice: What such pictures must not be used for.
        folder: Where the pictures lie (not in the file).
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    bundle: str
    bundle_name: str
    films: list[FilmExplanation]
    left_out: int = 0
    notice: str = "For research use. Not a medical device. Each heatmap is scaled to its own brightest place."
    folder: str = Field(default="", exclude=True)


@dataclass(frozen=True)
class _Names:
    """File names of one film's pictures: the contact picture, and one overlay a class."""

    picture: str
    overlays: dict[str, str]


def explain_files(
    bundle: str | Path | Bundle,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    class_name: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Explanations:
    """Write heatmaps of films: ``<stem>-<class>.png`` each, ``<stem>.png`` beside one another, and a JSON file.

    All films are read before anything is written. Films of the same name are told apart by ``-2``, ``-3`` ...

    Args:
        bundle: A loaded bundle, or where it lies.
        images: Files, or folders, which stand for the images in them and in their subfolders.
        out: The folder to write, local or a URI.
        class_name: Explain this class only; by default all of them.
        overwrite: Replace former explanations in `out`.
        quiet: No progress display.

    Returns:
        The content of `explanations.json`.

    Raises:
        BundleError: There is no bundle, it is damaged, or it does not know the class.
        DecodeError: Films cannot be read; names all of them (from the eleventh on, how many).
        DataError: There are no images, or `out` is taken.
    """
    folder = free_folder(out, marker=EXPLANATIONS_FILE, contents=_former_contents, overwrite=overwrite)
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, best_device())
    classes = bundle.classes if class_name is None else [bundle.classes[bundle.class_index(class_name)]]
    files, left_out = list_images(images)
    with progress("Reading", len(files), quiet=quiet) as line:
        films = []
        bad: list[DecodeError] = []
        for file in files:
            try:
                films.append(bundle.prepare(file))
            except DecodeError as error:
                bad.append(error)
            line.advance()
    if bad:
        raise _unreadable(bad, len(files))
    names = _name_pictures(files, classes)
    done: list[FilmExplanation] = []
    with (
        whole_folder(folder, marker=EXPLANATIONS_FILE) as partial,
        progress("Explaining", len(files), quiet=quiet) as line,
    ):
        for start in range(0, len(films), _BATCH_SIZE):
            part = slice(start, start + _BATCH_SIZE)
            batch = np.stack(films[part])
            for explanation in _explain_batch(bundle, batch, files[part], names[part], classes, partial):
                done.append(explanation)
                line.advance()
        explanations = Explanations(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            bundle=bundle.id,
            bundle_name=bundle.info.name,
            films=done,
            left_out=left_out,
            folder=folder.uri,
        )
        locate(partial / EXPLANATIONS_FILE).write_json(explanations.model_dump(mode="json"))
    return explanations


def list_images(paths: Sequence[str | Path]) -> tuple[list[Path], int]:
    """Files as given, and in place of each folder its images, sorted; each file once.

    Returns:
        The files, and how many others lie in the folders.

    Raises:
        ConfigError: Nothing was given.
        DataError: A folder holds no images.
    """
    if not paths:
        raise ConfigError("no image was given", next_step="Name one or more image files, or a folder of them")
    files: list[Path] = []
    left_out = 0
    for path in (Path(path).expanduser() for path in paths):
        if not path.is_dir():
            files.append(path)
            continue
        visible = [file for file in sorted(path.rglob("*")) if _is_visible_file(file, path)]
        found = [file for file in visible if file.suffix.lower() in SUFFIXES]
        left_out += len(visible) - len(found)
        if not found:
            raise DataError(
                f"holds no images (files named {', '.join(sorted(SUFFIXES))})",
                where=path,
                next_step="Name the folder that holds the films, or the files themselves",
            )
        files += found
    return list(dict.fromkeys(files)), left_out


def _former_contents(explanations: bytes) -> set[str]:
    try:
        films = Explanations.model_validate_json(explanations).films
    except ValidationError:
        return set()
    overlays = {evidence.overlay for film in films for evidence in film.classes.values()}
    return {EXPLANATIONS_FILE} | {film.picture for film in films} | overlays


def _is_visible_file(file: Path, root: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)


def _unreadable(errors: list[DecodeError], files: int) -> DecodeError:
    if len(errors) == 1:
        error = errors[0]
        next_step = error.next_step or "Nothing was written: leave the file out, or mend it"
        return DecodeError(error.problem, where=error.where, next_step=next_step, code=error.code)
    named = "; ".join(f"{error.where} {error.problem}" for error in errors[:_NAMED_AT_MOST])
    more = f"; and {len(errors) - _NAMED_AT_MOST} more" if len(errors) > _NAMED_AT_MOST else ""
    return DecodeError(
        f"{len(errors)} of {files} files cannot be read: {named}{more}",
        next_step="Nothing was written: leave these files out, or mend them",
        code=errors[0].code,
    )


def _name_pictures(files: Sequence[Path], classes: Sequence[str]) -> list[_Names]:
    """Names that no two pictures share, not even where upper and lower case are the same to the file system."""
    taken: set[str] = set()
    names = []
    for file in files:
        number = 1
        while True:
            stem = _short(file.stem) + (f"-{number}" if number > 1 else "")
            overlays = {name: f"{stem}-{file_name(name, k)}.png" for k, name in enumerate(classes)}
            wanted = {name.lower() for name in (f"{stem}.png", *overlays.values())}
            if not wanted & taken:
                break
            number += 1
        taken |= wanted
        names.append(_Names(f"{stem}.png", overlays))
    return names


def _short(stem: str) -> str:
    return os.fsencode(stem)[:_STEM_BYTES].decode(errors="ignore")


def _explain_batch(
    bundle: Bundle,
    films: np.ndarray,
    files: Sequence[Path],
    names: Sequence[_Names],
    classes: Sequence[str],
    folder: Path,
) -> Iterator[FilmExplanation]:
    """Write the pictures of some films (uint8, (N, S, S)); the features are computed once for all classes."""
    features = bundle.features(films)
    with torch.no_grad():
        logits_nk = bundle.network.classify(features).cpu()
    probabilities_nk = bundle.info.calibration.probabilities(logits_nk)
    labels = bundle.decide(probabilities_nk).tolist()
    targets = [bundle.class_index(name) for name in classes]
    repeated = features.repeat_interleave(len(targets), dim=0)
    wanted = torch.tensor(targets * len(films), device=features.device)
    maps = class_maps(bundle.network, repeated, wanted).cpu().numpy()
    maps = maps.reshape(len(films), len(targets), *maps.shape[1:])
    for i, film in enumerate(films):
        overlays = [overlay(film, attribution) for attribution in maps[i]]
        for name, pixels in zip(classes, overlays, strict=True):
            (folder / names[i].overlays[name]).write_bytes(png_bytes(pixels))
        explanation = FilmExplanation(
            # A name that is not UTF-8 cannot stand in JSON.
            image=os.fsencode(files[i]).decode(errors="replace"),
            predicted=bundle.classes[labels[i]],
            probabilities=dict(zip(bundle.classes, probabilities_nk[i].tolist(), strict=True)),
            classes={
                name: ClassEvidence(
                    probability=float(probabilities_nk[i, k]),
                    logit=float(logits_nk[i, k]),
                    supported=bool((attribution > 0).any()),
                    overlay=names[i].overlays[name],
                )
                for name, k, attribution in zip(classes, targets, maps[i], strict=True)
            },
            picture=names[i].picture,
        )
        panels = [
            ClassPicture(name, evidence.probability, evidence.supported, pixels)
            for (name, evidence), pixels in zip(explanation.classes.items(), overlays, strict=True)
        ]
        title = Path(explanation.image).name
        picture = contact_picture(film, title, panels, explanation.predicted, explanation.probabilities)
        (folder / names[i].picture).write_bytes(png(picture))
        yield explanation
