"""Looks at the test split: one line each in the dataset's `looks.jsonl`, whoever looked and whatever came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from cxr_ray.data.store import LOOKS_FILE
from cxr_ray.errors import DataError
from cxr_ray.paths import Location, locate

UNKNOWN = "unknown"


class Look(BaseModel):
    """One opening of a split by one bundle.

    Attributes:
        time: ISO 8601, UTC.
        bundle: The bundle's id.
        experiment: Fingerprint of the experiment it was trained by; None where the bundle does not say.
        split: ``test``.
        images: How many images were opened.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: str
    bundle: str
    experiment: str | None = None
    split: str
    images: int


def read_looks(dataset_uri: str) -> list[Look]:
    """All looks at a dataset so far, oldest first; none where nobody has looked."""
    file = locate(dataset_uri).child(LOOKS_FILE)
    return _parse(file.read_bytes()) if file.exists() else []


def record_look(dataset_uri: str, *, bundle_id: str, experiment: str | None, split: str, images: int) -> list[Look]:
    """Add a look, on disk when this returns, and give back all looks, this one last.

    Local files are appended to, so that looks at the same time all stay. Object stores cannot append: there
    the file is written anew, and of two looks in the same second one may be lost.

    Args:
        dataset_uri: Where the dataset lies, not where its copy for this node lies.
        bundle_id: Of the bundle that looks.
        experiment: Fingerprint of its experiment.
        split: The split it opens.
        images: How many images that split has.

    Raises:
        DataError: The look cannot be written down, so the split must stay closed.
    """
    look = Look(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=bundle_id,
        experiment=experiment,
        split=split,
        images=images,
    )
    file = locate(dataset_uri).child(LOOKS_FILE)
    line = (json.dumps(look.model_dump()) + "\n").encode()
    try:
        before = file.read_bytes() if file.exists() else b""
        if before and not before.endswith(b"\n"):
            # A look torn by a crash stays a look; without this the new one would be torn with it.
            line = b"\n" + line
        _append(file, before, line)
    except OSError as error:
        raise DataError(
            f"the look at {split} cannot be recorded ({error.strerror or error}), so {split} stays closed",
            where=file,
            next_step="Make the dataset's folder writable, or evaluate on val",
        ) from error
    return read_looks(dataset_uri)


def looks_sentence(looks: Sequence[Look]) -> str:
    """What the number of looks at the test split means for the numbers read from it, in plain sentences."""
    bundles = len({look.bundle for look in looks})
    if not looks:
        return "Nobody has looked at the test split yet."
    if len(looks) == 1:
        return "This is the first look at the test split: no choice has adapted to these images yet."
    if bundles == 1:
        return (
            f"The test split has been looked at {len(looks)} times, always by the same bundle: no choice between "
            "bundles has adapted to these images yet."
        )
    return (
        f"The test split has been looked at {len(looks)} times, by {bundles} bundles. Whenever a bundle is kept or "
        "dropped because of it, the choice adapts a little to these very images: the best of several scores is partly "
        "luck, and overstates what new films will give. Only films that no choice has seen can tell by how much."
    )


def _append(file: Location, before: bytes, line: bytes) -> None:
    if not file.is_local:
        file.write_bytes(before + line)
        return
    with file.local.open("ab") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def _parse(content: bytes) -> list[Look]:
    looks = []
    for line in content.decode(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            looks.append(Look.model_validate_json(line))
        except ValidationError:
            looks.append(Look(time=UNKNOWN, bundle=UNKNOWN, split="test", images=0))
    return looks
