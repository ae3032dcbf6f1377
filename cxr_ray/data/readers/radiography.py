"""The COVID-19 Radiography Database: class folders with lung masks, and sheets that tell where films came from."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from cxr_ray.data.listing import LUNG_MASK, Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import film_paths, not_this_set, plain, value
from cxr_ray.data.readers.workbook import workbook_rows
from cxr_ray.errors import DataError
from cxr_ray.paths import Location

CLASSES = {
    "covid": "covid",
    "lungopacity": "lung_opacity",
    "normal": "normal",
    "viralpneumonia": "viral_pneumonia",
}
# Parts of the addresses in the sheets, and the collection each leads to, named as the other readers name it.
_ORIGINS = (
    ("paultimothymooney", "kermany"),
    ("rsna", "nih"),
    ("bimcv", "bimcv"),
    ("ml-workgroup", "hannover"),
    ("sirm", "sirm"),
    ("eurorad", "eurorad"),
    ("ieee8023", "cohen"),
    ("armiro", "cxnet"),
)

FACTS = SetFacts(
    name="radiography",
    title="COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021)",
    page="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    licence="differs by source; see the page (non-commercial use is the cautious reading)",
    population="mixed",
    sources=[
        "COVID-19: BIMCV, Hannover, SIRM, Eurorad, collections on GitHub (Cohen, COVID-CXNet)",
        "lung opacity: RSNA (NIH)",
        "normal: RSNA (NIH), Kermany (children)",
        "viral pneumonia: Kermany (children)",
    ],
    defects=[
        "Viral pneumonia, and part of normal, are the films of children of the set 'kermany'; COVID-19 is of adults.",
        "Patients are not recorded, so only near duplicates can be kept out of two splits.",
        "Lung opacity and part of normal are RSNA's, which are NIH's: merging these sets duplicates films.",
        "Films are squares of 299 pixels; fine findings are lost.",
    ],
)


def read_radiography(src: Location) -> Listing:
    """List the films, each with its lung mask in ``extra.lung_mask`` and its origin as source, where they are there.

    Raises:
        DataError: There are no folders ``COVID``, ``Lung_Opacity``, ``Normal`` or ``Viral Pneumonia`` with films.
    """
    files, masks, origins, notes = read_class_folders(src, CLASSES)
    if not files:
        expected = "folders COVID, Lung_Opacity, Normal and Viral Pneumonia, each with images (and masks)"
        raise not_this_set(src, "radiography", expected, film_paths(src))
    films = []
    for path, label in files.items():
        origin = origins.get(plain(PurePosixPath(path).stem), "radiography_db")
        extra = {LUNG_MASK: masks[path]} if path in masks else {}
        films.append(SourceFile(path, label, source=origin, extra=extra))
    if len(masks) < len(films):
        notes.append(f"{len(films) - len(masks)} of {len(films)} films have no lung mask")
    if unknown := sum(film.source == "radiography_db" for film in films):
        notes.append(f"no sheet tells the source of {unknown} of {len(films)} films, which is given as radiography_db")
    return Listing(films, notes, facts=FACTS)


def read_class_folders(
    src: Location, classes: dict[str, str]
) -> tuple[dict[str, str], dict[str, str], dict[str, str], list[str]]:
    """The films below folders named after classes, their masks, and what the sheets beside them tell.

    Args:
        src: Any folder above them.
        classes: Slug of the class by its folder's plain name.

    Returns:
        The label of each film by path; the mask of each film that has one; the source by the film's plain name; notes
        on sheets that cannot be read, without which the films are as good.
    """
    labels: dict[str, str] = {}
    masks: dict[tuple[str, str], str] = {}
    for path in film_paths(src):
        parts = PurePosixPath(path).parts
        label = next((classes[plain(part)] for part in reversed(parts[:-1]) if plain(part) in classes), None)
        if label is None:
            continue
        if "masks" in (part.lower() for part in parts[:-1]):
            masks[label, PurePosixPath(path).stem] = path
        else:
            labels[path] = label
    mask_of = {
        path: masks[label, stem] for path, label in labels.items() if (label, stem := PurePosixPath(path).stem) in masks
    }
    return labels, mask_of, *_origins(src)


def _origins(src: Location) -> tuple[dict[str, str], list[str]]:
    """The collection each film came from, by the film's plain name, as far as the sheets tell."""
    origins, notes = {}, []
    for entry in src.walk():
        if not entry.path.lower().endswith("metadata.xlsx"):
            continue
        try:
            rows = workbook_rows(src.child(entry.path))
        except DataError as error:
            notes.append(f"{entry.path} {error.problem}")
            continue
        for row in rows:
            name, address = value(row, "FILE NAME", "file"), value(row, "URL", "source")
            if name and address:
                origins[plain(name.removesuffix(".png"))] = _origin(address)
    return origins, notes


def _origin(address: str) -> str:
    """The collection behind an address; its host where that is none of those known."""
    known = next((origin for part, origin in _ORIGINS if part in address.lower()), None)
    return known or (urlsplit(address.strip()).hostname or address.strip()).removeprefix("www.")
