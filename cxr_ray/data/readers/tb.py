"""The TB Chest Radiography Database: two class folders."""

from __future__ import annotations

from pathlib import PurePosixPath

from cxr_ray.data.listing import Listing, SetFacts, SourceFile
from cxr_ray.data.readers.common import film_paths, not_this_set, plain
from cxr_ray.data.readers.radiography import read_class_folders
from cxr_ray.paths import Location

CLASSES = {"normal": "normal", "tuberculosis": "tuberculosis"}

FACTS = SetFacts(
    name="tb",
    title="Tuberculosis (TB) Chest X-ray Database (Rahman et al. 2020)",
    page="https://www.kaggle.com/datasets/tawsifurrahman/tuberculosis-tb-chest-xray-dataset",
    licence="differs by source; see the page",
    population="mixed",
    sources=["NLM (Montgomery, Shenzhen)", "Belarus", "NIAID TB Portals", "RSNA"],
    defects=[
        "Many tuberculosis films are tinted photographs (251 of 422 in one sample), which tells the class by colour.",
        "Normal films are partly RSNA's: merging with 'rsna' or 'radiography' duplicates films.",
        "Patients are not recorded.",
    ],
)


def read_tb(src: Location) -> Listing:
    """List the films below the folders ``Normal`` and ``Tuberculosis``.

    Raises:
        DataError: There are no such folders with films.
    """
    files, _, origins, notes = read_class_folders(src, CLASSES)
    if not files:
        raise not_this_set(src, "tb", "folders Normal and Tuberculosis with films", film_paths(src))
    films = [
        SourceFile(path, label, source=origins.get(plain(PurePosixPath(path).stem), "tb_db"))
        for path, label in files.items()
    ]
    if unknown := sum(film.source == "tb_db" for film in films):
        notes.append(f"no sheet tells the source of {unknown} of {len(films)} films, which is given as tb_db")
    return Listing(films, notes, facts=FACTS)
