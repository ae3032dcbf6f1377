"""The paediatric pneumonia films of Kermany et al.: patients in the file names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import film_paths, not_this_set
from cxr_ray.paths import Location

_NAMES = (
    (re.compile(r"(?P<patient>person\d+)_(?P<kind>virus|bacteria)_\d+", re.IGNORECASE), None),
    (re.compile(r"(?P<kind>VIRUS|BACTERIA)-(?P<patient>\d+)-\d+", re.IGNORECASE), None),
    (re.compile(r"(?P<patient>NORMAL-\d+)-\d+", re.IGNORECASE), "normal"),
    (re.compile(r"(?P<patient>(NORMAL2-)?IM-\d+)(-\d+)+", re.IGNORECASE), "normal"),
)
_KINDS = {"virus": "viral_pneumonia", "bacteria": "lung_opacity"}

FACTS = SetFacts(
    name="kermany",
    title="Labeled chest X-ray images of children with pneumonia (Kermany et al. 2018)",
    page="https://data.mendeley.com/datasets/rscbjbr9sj/2",
    licence="CC BY 4.0",
    population="paediatric",
    sources=["Guangzhou Women and Children's Medical Center"],
    defects=[
        "All films are of children from 1 to 5 years, taken AP: beside adults' films a network tells age, not disease.",
        "The copy on Kaggle has 16 films in its folder val, and the same persons' numbers in train and in test.",
        "Bacterial pneumonia stands for lung opacity here, which elsewhere has many causes.",
        "The set 'radiography' holds its films of viral pneumonia, and normal ones: merging the two duplicates them.",
    ],
)


def read_kermany(src: Location) -> Listing:
    """List the films by their names: ``person1_virus_6``, ``BACTERIA-1083680-0001``, ``NORMAL2-IM-0035-0001`` ...

    A person's number is one patient whatever the folder and the kind of pneumonia: two people taken for one cost
    nothing, one taken for two leaks. The folders train, val and test are not taken as splits, for the same reason.

    Raises:
        DataError: No film's name is of that kind.
    """
    files: dict[tuple[str, ...], SourceFile] = {}
    folders: dict[str, set[str]] = defaultdict(set)
    left_out = copies = 0
    paths = film_paths(src)
    for path in sorted(paths, key=lambda path: (path.count("/"), path)):
        stem = PurePosixPath(path).stem
        match, label = next(((m, label) for pattern, label in _NAMES if (m := pattern.fullmatch(stem))), (None, None))
        if match is None:
            left_out += 1
            continue
        label = label or _KINDS[match["kind"].lower()]
        patient = f"kermany-{match['patient'].lower()}"
        place = PurePosixPath(path).parts[-3:]
        if place in files:  # the archive on Kaggle holds all films twice, once in a folder more
            copies += 1
            continue
        files[place] = SourceFile(path, label, source="kermany", patient_id=patient, view="AP")
        folders[patient].add(place[0].lower())
    if not files:
        raise not_this_set(src, "kermany", "films named like person1_virus_6.jpeg or NORMAL-28501-0001.jpeg", paths)
    notes = []
    if names := [name for name in ("train", "val", "test") if any(name in held for held in folders.values())]:
        twice = sum(len(held) > 1 for held in folders.values())
        notes.append(
            f"the folders {', '.join(names)} are not used as splits, {twice} patient number(s) being in more than one; "
            "to have them, name them in the column split of a CSV given with --metadata"
        )
    if copies:
        notes.append(f"left out {copies} second copies of films in a folder of the same name further inside")
    if left_out:
        notes.append(f"left out {left_out} film(s) whose names are of no known kind")
    return Listing(list(files.values()), notes, facts=FACTS)
