"""The five-class set of Basu et al. 2021: NumPy archives without patients or sources."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.npz import NpzImages
from cxr_ray.data.readers.common import not_this_set
from cxr_ray.data.splits import LEARNING_SPLITS
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

LABELS = ("covid", "lung_opacity", "normal", "viral_pneumonia", "tuberculosis")  # in the archives' own order
_SPLITS = ("train", "val", "test")

FACTS = SetFacts(
    name="basu",
    title="Chest X-Ray Dataset for Respiratory Disease Classification (Basu, Das, Ghosh et al. 2021)",
    page="https://doi.org/10.7910/DVN/WNQ3GI",
    licence="as its page states (Harvard Dataverse; CC0 1.0 unless the authors say otherwise)",
    population="mixed",
    sources=["a merge of public sets; which film came from which is not recorded"],
    defects=[
        "No patient and no source is known of any film, so nothing but near duplicates can be kept out of two splits, "
        "and nothing can be said about films from elsewhere.",
        "The counts of lung opacity (6,012) and normal (10,192) are those of the COVID-19 Radiography Database: do not "
        "merge the two.",
        "Viral pneumonia in public sets is mostly of children, COVID-19 of adults: a network can tell age instead.",
        "Films are already reduced to a small square; fine findings are lost.",
    ],
)


def read_basu(src: Location) -> Listing:
    """List the films of every ``.npz`` archive below a folder, in the splits that the archives' names tell.

    Raises:
        DataError: There is no archive, or one holds other arrays or labels.
    """
    paths = [entry.path for entry in src.walk() if entry.path.endswith(".npz")]
    if not paths:
        found = [entry.path for entry in src.walk()]
        raise not_this_set(src, "basu", "files *.npz with the arrays image and image_label", found)
    splits = {path: _split(path) for path in paths}
    notes = []
    if not all(splits.values()) or not set(LEARNING_SPLITS) <= set(splits.values()):
        splits = dict.fromkeys(paths)
        notes.append(
            "the authors' splits are not used: that takes an archive named train and one named val, and no other names"
        )
    files = []
    for path, split in splits.items():
        images = NpzImages(src.child(path))
        for frame, label in enumerate(images.labels.tolist()):
            if not 0 <= label < len(LABELS):
                raise DataError(
                    f"label {label} of image {frame} is not one of 0 to {len(LABELS) - 1} ({', '.join(LABELS)})",
                    where=src.child(path),
                )
            files.append(SourceFile(path, LABELS[label], source="basu", split=split, frame=frame))
    return Listing(files, notes, facts=FACTS)


def _split(path: str) -> str | None:
    words = re.split(r"[^a-z]+", PurePosixPath(path).stem.lower())
    return next((split for split in _SPLITS if any(word.startswith(split) for word in words)), None)
