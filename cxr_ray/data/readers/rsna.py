"""The RSNA Pneumonia Detection Challenge 2018: DICOM films of NIH's ChestX-ray14, read again by radiologists."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import film_paths, find_file, not_this_set, plain, sheet_rows, value
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

_TEST = re.compile(r"(^|[/_-])test[/_-]", re.IGNORECASE)  # a folder of films whose class is not published
CLASSES = {"normal": "normal", "lungopacity": "lung_opacity"}

FACTS = SetFacts(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge (2018)",
    page="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    licence="as the competition's rules state; the films are NIH's ChestX-ray14",
    population="mixed",
    sources=["NIH Clinical Center (ChestX-ray14)"],
    defects=[
        "Every film carries an id of its own as its patient's, so films of one NIH patient cannot be kept together.",
        "The table of boxes repeats a film once for each box; counting its rows counts films twice.",
        "Films that are neither normal nor show an opacity (about 11,800) belong to no class here and are set aside.",
        "The films are in 'radiography' and partly in 'tb': merging the sets duplicates them.",
    ],
)


def read_rsna(src: Location) -> Listing:
    """List the training films whose class is Normal or Lung Opacity; those that are neither are set aside.

    Raises:
        DataError: There are no films, or no ``stage_2_detailed_class_info.csv``, without which a film that shows no
            opacity cannot be told from a normal one.
    """
    paths = [entry.path for entry in src.walk()]
    sheet = find_file(paths, r".*detailed_class_info.*\.csv")
    in_order = sorted(film_paths(src), key=lambda path: (path.lower().endswith(".dcm"), path))  # DICOM before copies
    films = {PurePosixPath(path).stem: path for path in in_order if not _TEST.search(path)}
    if not sheet or not films:
        expected = "stage_2_detailed_class_info.csv and the folder stage_2_train_images with DICOM films"
        raise not_this_set(src, "rsna", expected, paths)
    classes: dict[str, str] = {}
    for row in sheet_rows(src.child(sheet)):  # a film has a row for each of its boxes, all with one class
        name, found = value(row, "patientId"), value(row, "class")
        if name and found and classes.setdefault(name, found) != found:
            raise DataError(
                f"gives the film '{name}' two classes, '{classes[name]}' and '{found}'",
                where=src.child(sheet),
                next_step="Take the sheet as the challenge publishes it",
            )
    files, set_aside, missing = [], [], 0
    for name, found in classes.items():
        label = CLASSES.get(plain(found))
        if name not in films:
            missing += 1
        elif label is None:
            set_aside.append({"path": films[name], "reason": f"is of no class here ({found})"})
        else:
            files.append(SourceFile(films[name], label, source="nih", patient_id=f"rsna-{name}"))
    notes = [f"{missing} film(s) of the table are not in the folder"] if missing else []
    if unlisted := len(set(films) - set(classes)):
        notes.append(f"left out {unlisted} film(s) that the table does not name")
    return Listing(files, notes, set_aside, FACTS)
