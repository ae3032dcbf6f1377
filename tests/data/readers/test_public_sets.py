"""Public sets: every reader against a small folder in the layout that its authors publish the set in."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest

from cxr_ray.data.listing import Listing, SourceFile
from cxr_ray.data.readers import FORMATS, list_films, set_facts
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import locate

SETS = [name for name in FORMATS if name not in ("folders", "csv")]


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def read(root: Path, name: str) -> Listing:
    listing = list_films(locate(root), format=name)
    assert listing.files == sorted(listing.files, key=lambda film: (film.path, film.frame))
    assert listing.facts == set_facts(name)
    return listing


def by_name(listing: Listing) -> dict[str, SourceFile]:
    return {film.path.rpartition("/")[2]: film for film in listing.files}


def workbook(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """A spreadsheet as Excel writes it: texts in a table of their own, empty cells left out."""
    texts = list(dict.fromkeys(value for row in rows for value in row))
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'

    def cell(row: int, column: int, value: str) -> str:
        return f'<c r="{"ABCDE"[column]}{row}" t="s"><v>{texts.index(value)}</v></c>'

    cells = [
        f'<row r="{number}">' + "".join(cell(number, i, value) for i, value in enumerate(row) if value != "") + "</row>"
        for number, row in enumerate(rows, start=1)
    ]
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{''.join(cells)}</sheetData></worksheet>"
        )
        items = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{items}</sst>")


@pytest.mark.parametrize("name", SETS)
def test_a_folder_of_something_else_is_told_with_what_was_looked_for_and_found(tmp_path, name):
    touch(tmp_path, "holiday/beach.png", "holiday/notes.txt")
    message = rf"{tmp_path}: is not the set '{name}': expected .*; found (holiday/beach\.png|no such files)"
    with pytest.raises(DataError, match=message) as refused:
        list_films(locate(tmp_path), format=name)
    assert f"cxr-ray data fetch {name}" in str(refused.value)


@pytest.mark.parametrize("name", SETS)
def test_what_is_known_of_a_set_is_there_to_be_read_before_its_numbers(name):
    facts = set_facts(name)
    assert facts.name == name
    assert facts.page.startswith("https://")
    assert facts.population in ("adult", "paediatric", "mixed")
    assert facts.licence
    assert facts.sources
    assert facts.defects
    assert all(text.endswith(".") for text in facts.defects)


def test_a_misspelt_format_is_named_with_the_right_one(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no format 'kermanny' \(did you mean 'kermany'\?\); there are basu, .*, csv"
    ):
        list_films(locate(tmp_path), format="kermanny")


def test_a_set_with_a_sheet_of_its_own_takes_no_other(tmp_path):
    with pytest.raises(ConfigError, match="--metadata: the format cohen needs no CSV"):
        list_films(locate(tmp_path), format="cohen", metadata=tmp_path / "labels.csv")


def basu(root: Path, *names: str, labels: list[int] | None = None) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        numbers = np.array(labels or [0, 1, 2, 3, 4] * 4)
        np.savez(root / name, image=np.zeros((len(numbers), 4, 4, 3), np.uint8), image_label=numbers)
    return root


def test_basu_takes_labels_in_the_archives_order_and_the_authors_splits(tmp_path):
    listing = read(basu(tmp_path, "train_data.npz", "Validation.npz", "test.npz"), "basu")
    assert len(listing.files) == 60
    assert [film.label for film in listing.files[:5]] == [
        "covid",
        "lung_opacity",
        "normal",
        "viral_pneumonia",
        "tuberculosis",
    ]
    assert {(film.path, film.split) for film in listing.files} == {
        ("train_data.npz", "train"),
        ("Validation.npz", "val"),
        ("test.npz", "test"),
    }
    assert [film.frame for film in listing.files if film.path == "test.npz"] == list(range(20))
    assert {(film.source, film.patient_id) for film in listing.files} == {("basu", None)}


@pytest.mark.parametrize("names", [["5194114.npz"], ["train.npz"], ["train.npz", "test.npz"], ["train.npz", "5.npz"]])
def test_basu_without_archives_for_learning_is_split_anew(tmp_path, names):
    listing = read(basu(tmp_path, *names), "basu")
    assert {film.split for film in listing.files} == {None}
    assert "the authors' splits are not used" in listing.notes[0]


def test_basu_names_a_label_that_no_class_has(tmp_path):
    with pytest.raises(DataError, match=r"a\.npz: label 5 of image 3 is not one of 0 to 4 \(covid, lung_opacity"):
        read(basu(tmp_path, "a.npz", labels=[0, 1, 2, 5]), "basu")


ORIGINS = {
    "COVID": "https://github.com/armiro/COVID-CXNet",
    "Lung_Opacity": "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
    "NORMAL": "https://www.kaggle.com/paultimothymooney/chest-xray-pneumonia",
    "Viral Pneumonia": "https://films.example.org/viral",
}


def radiography(root: Path) -> Path:
    base = root / "COVID-19_Radiography_Dataset"
    for folder in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        touch(base, *(f"{folder}/{kind}/{folder}-{n}.png" for kind in ("images", "masks") for n in range(1, 5)))
    for name, url in ORIGINS.items():  # the sheet of normal films writes their names in capitals
        rows = [["FILE NAME", "FORMAT", "SIZE", "URL"], *([f"{name}-{n}", "PNG", "256*256", url] for n in range(1, 5))]
        workbook(base / f"{name.title() if name == 'NORMAL' else name}.metadata.xlsx", rows)
    return base


def test_radiography_takes_classes_from_folders_and_sources_from_the_sheets(tmp_path):
    base = radiography(tmp_path)
    listing = read(tmp_path, "radiography")
    assert Counter((film.label, film.source) for film in listing.files) == {
        ("covid", "cxnet"): 4,
        ("lung_opacity", "nih"): 4,
        ("normal", "kermany"): 4,
        ("viral_pneumonia", "films.example.org"): 4,
    }
    film = by_name(listing)["Normal-3.png"]
    assert film.path == f"{base.name}/Normal/images/Normal-3.png"
    assert film.extra == {"extra.lung_mask": f"{base.name}/Normal/masks/Normal-3.png"}
    assert listing.notes == []


def test_radiography_goes_on_without_sheets_or_masks_and_says_so(tmp_path):
    base = radiography(tmp_path)
    for sheet in base.glob("[LNV]*.xlsx"):
        sheet.unlink()
    (base / "COVID.metadata.xlsx").write_bytes(b"PK\3\4 but no more")
    (base / "Normal" / "masks" / "Normal-1.png").unlink()
    listing = read(base, "radiography")
    assert {film.source for film in listing.files} == {"radiography_db"}
    assert by_name(listing)["Normal-1.png"].extra == {}
    assert [note.split(" (")[0] for note in listing.notes] == [
        "COVID.metadata.xlsx is not a spreadsheet that can be read",
        "1 of 16 films have no lung mask",
        "no sheet tells the source of 16 of 16 films, which is given as radiography_db",
    ]


def test_tb_takes_two_folders_and_what_the_sheets_tell(tmp_path):
    base = tmp_path / "TB_Chest_Radiography_Database"
    touch(base, *(f"{label}/{label}-{n}.png" for label in ("Normal", "Tuberculosis") for n in range(1, 5)))
    rows = [["FILE NAME", "URL"], ["Tuberculosis-1", "http://www.films.example.org/tb"], ["Tuberculosis-2", ""]]
    workbook(base / "Tuberculosis.metadata.xlsx", rows)
    films = by_name(listing := read(tmp_path, "tb"))
    assert Counter(film.label for film in listing.files) == {"normal": 4, "tuberculosis": 4}
    assert films["Tuberculosis-1.png"].source == "films.example.org"
    assert films["Tuberculosis-2.png"].source == "tb_db"
    assert listing.notes == ["no sheet tells the source of 7 of 8 films, which is given as tb_db"]
    assert any("tinted" in defect for defect in set_facts("tb").defects)


LATE = "patientid,offset,sex,age,finding,RT_PCR_positive,view,modality,location,folder,filename,url,license,notes,"
EARLY = "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license,notes"


def cohen_rows(findings: list[str], view: str = "PA", modality: str = "X-ray") -> str:
    return "".join(
        f"{n // 2},{n},M,6{n},{finding},Y,{view},{modality},Rome,images,{finding.split('/')[-1]}-{view}-{n}.png,"
        f'https://sirm.org,CC BY-NC-SA,"two\nlines",\n'
        for n, finding in enumerate(findings)
    )


def test_cohen_takes_frontal_xrays_with_their_own_licences_and_sets_the_rest_aside(tmp_path):
    findings = ["Pneumonia/Viral/COVID-19"] * 4 + ["Pneumonia/Viral/SARS"] * 2 + ["Pneumonia/Viral/Influenza/H1N1"] * 2
    findings += ["No Finding"] * 4 + ["Tuberculosis"] * 4 + ["Pneumonia/Bacterial/Klebsiella"] * 2
    findings += ["Pneumonia/Fungal/Pneumocystis"] * 2 + ["todo", "Unknown", ""]
    text = f"{LATE}\n{cohen_rows(findings)}{cohen_rows(findings[:1], view='L')}"
    text += cohen_rows(findings[:1], view="Axial", modality="CT") + cohen_rows(findings[:1], view="")
    (tmp_path / "metadata.csv").write_text(text)
    names = [f"{finding.split('/')[-1]}-PA-{n}.png" for n, finding in enumerate(findings)]
    touch(tmp_path, *(f"images/{name}" for name in names), "images/COVID-19-L-0.png", "images/COVID-19--0.png")
    touch(tmp_path, "annotations/COVID-19-PA-3.png")
    listing = read(tmp_path, "cohen")
    assert Counter(film.label for film in listing.files) == dict.fromkeys(
        ("covid", "viral_pneumonia", "normal", "tuberculosis", "lung_opacity"), 4
    )
    film = by_name(listing)["COVID-19-PA-3.png"]
    assert (film.path, film.source, film.patient_id) == ("images/COVID-19-PA-3.png", "cohen", "cohen-1")
    assert (film.view, film.sex, film.age) == ("PA", "M", 63)
    assert film.extra["extra.licence"] == "CC BY-NC-SA"
    assert film.extra["extra.url"] == "https://sirm.org"
    assert sorted(entry["reason"] for entry in listing.set_aside) == [
        "has a finding that is no class here (none given)",
        "has a finding that is no class here (none given)",
        "has a finding that is no class here (todo)",
        "is no X-ray (CT)",
        "is not known to be a frontal view (L)",
        "is not known to be a frontal view (none given)",
    ]


def test_cohen_of_april_2020_is_read_by_the_same_names(tmp_path):
    findings = ["COVID-19"] * 4 + ['"COVID-19, ARDS"'] + ["SARS"] * 4 + ["Streptococcus"]
    rows = [f"{n},0,F,,{finding},,AP Supine,2020,Rome,{n}.jpg,,a.org,," for n, finding in enumerate(findings)]
    (tmp_path / "metadata.csv").write_text("\n".join([EARLY, *rows]))
    touch(tmp_path, *(f"images/{n}.jpg" for n in range(9)))
    listing = read(tmp_path, "cohen")
    assert Counter(film.label for film in listing.files) == {"covid": 5, "viral_pneumonia": 4}
    assert {film.extra["extra.url"] for film in listing.files} == {"a.org"}
    assert listing.notes == ["1 film(s) of metadata.csv are not in the folder"]


def test_a_class_too_small_to_split_is_set_aside_and_not_taken_for_a_misspelling(tmp_path):
    findings = ["Pneumonia/Viral/COVID-19"] * 4 + ["Pneumonia/Viral/SARS"] * 4 + ["No Finding"] * 2
    (tmp_path / "metadata.csv").write_text(f"{LATE}\n{cohen_rows(findings)}")
    touch(tmp_path, *(f"images/{finding.split('/')[-1]}-PA-{n}.png" for n, finding in enumerate(findings)))
    listing = read(tmp_path, "cohen")
    assert {film.label for film in listing.files} == {"covid", "viral_pneumonia"}
    assert listing.set_aside[0] == {
        "path": "images/No Finding-PA-8.png",
        "reason": "is one of 2 film(s) of the class 'normal'",
    }


def rsna(root: Path, detailed: str = "", **classes: int) -> Path:
    names = {"Normal": "Normal", "Opacity": "Lung Opacity", "Other": "No Lung Opacity / Not Normal"}
    rows, boxes = "patientId,class\n", "patientId,x,y,width,height,Target\n"
    for kind, count in classes.items():
        for n in range(count):
            repeated = 1 + (kind == "Opacity") * (n % 3)
            rows += f"{kind}-{n},{names[kind]}\n" * repeated
            boxes += f"{kind}-{n},1.0,2.0,3.0,4.0,1\n" * repeated
            touch(root, f"stage_2_train_images/{kind}-{n}.dcm")
    touch(root, "stage_2_test_images/unknown.dcm")
    (root / "stage_2_train_labels.csv").write_text(boxes)
    (root / "stage_2_detailed_class_info.csv").write_text(rows + detailed)
    return root


def test_rsna_counts_a_film_once_however_many_boxes_it_has(tmp_path):
    root = rsna(tmp_path, "gone,Normal\n", Normal=5, Opacity=6, Other=3)
    touch(root, "stage_2_train_images_jpg/Normal-0.jpg")
    listing = read(root, "rsna")
    assert Counter((film.label, film.source) for film in listing.files) == {
        ("normal", "nih"): 5,
        ("lung_opacity", "nih"): 6,
    }
    assert by_name(listing)["Normal-0.dcm"].patient_id == "rsna-Normal-0"
    assert listing.set_aside[0] == {
        "path": "stage_2_train_images/Other-0.dcm",
        "reason": "is of no class here (No Lung Opacity / Not Normal)",
    }
    assert len(listing.set_aside) == 3
    assert listing.notes == ["1 film(s) of the table are not in the folder"]


def test_rsna_refuses_a_film_of_two_classes(tmp_path):
    root = rsna(tmp_path, "Normal-1,Lung Opacity\n", Normal=5, Opacity=5)
    with pytest.raises(DataError, match="gives the film 'Normal-1' two classes, 'Normal' and 'Lung Opacity'"):
        read(root, "rsna")


KAGGLE = [
    *(f"train/NORMAL/IM-011{n}-0001.jpeg" for n in range(3)),
    "test/NORMAL/NORMAL2-IM-0035-0001-0002.jpeg",
    *(f"train/PNEUMONIA/person1_bacteria_{n}.jpeg" for n in range(4)),
    *(f"train/PNEUMONIA/person{n}_virus_6.jpeg" for n in range(2, 5)),
    "test/PNEUMONIA/person1_virus_6.jpeg",
    "val/PNEUMONIA/unnamed.jpeg",
]


def test_kermany_takes_patients_from_names_and_leaves_the_folders_of_kaggle(tmp_path):
    touch(tmp_path, *(f"chest_xray/{path}" for path in KAGGLE), *(f"chest_xray/chest_xray/{path}" for path in KAGGLE))
    listing = read(tmp_path, "kermany")
    films = by_name(listing)
    assert Counter(film.label for film in listing.files) == {"normal": 4, "lung_opacity": 4, "viral_pneumonia": 4}
    assert all(film.path.count("chest_xray") == 1 for film in listing.files)
    assert {(film.split, film.source, film.view) for film in listing.files} == {(None, "kermany", "AP")}
    assert films["person1_virus_6.jpeg"].patient_id == films["person1_bacteria_0.jpeg"].patient_id == "kermany-person1"
    assert films["NORMAL2-IM-0035-0001-0002.jpeg"].patient_id == "kermany-normal2-im-0035"
    assert "train, test are not used as splits, 1 patient number(s) being in more than one" in listing.notes[0]
    assert listing.notes[1:] == [
        "left out 12 second copies of films in a folder of the same name further inside",
        "left out 2 film(s) whose names are of no known kind",
    ]
    assert set_facts("kermany").population == "paediatric"


def test_kermany_of_mendeley_keeps_a_patients_films_together(tmp_path):
    names = [f"{kind}-1083680-000{n}.jpeg" for kind in ("BACTERIA", "VIRUS") for n in range(1, 5)]
    touch(tmp_path, *(f"train/PNEUMONIA/{name}" for name in names))
    touch(tmp_path, *(f"train/NORMAL/NORMAL-28501-000{n}.jpeg" for n in range(1, 5)))
    films = by_name(read(tmp_path, "kermany"))
    assert {films[name].patient_id for name in names} == {"kermany-1083680"}
    assert films["NORMAL-28501-0001.jpeg"].label == "normal"


def test_montgomery_joins_films_readings_and_both_lung_masks(tmp_path):
    root = tmp_path / "MontgomerySet"
    names = [f"MCUCXR_000{n}_{n % 2}" for n in range(1, 9)]
    touch(root, *(f"CXR_png/{name}.png" for name in names), "CXR_png/Thumbs.db", "CXR_png/CHNCXR_0001_0.png")
    touch(root, *(f"ManualMask/{side}Mask/{name}.png" for side in ("left", "right") for name in names[:7]))
    (root / "ClinicalReadings").mkdir()
    for n, name in enumerate(names[:7]):
        (root / "ClinicalReadings" / f"{name}.txt").write_text(f"Patient's Sex: F \nPatient's Age: 02{n}Y\nnormal\n")
    films = by_name(listing := read(tmp_path, "montgomery"))
    assert Counter(film.label for film in listing.files) == {"normal": 4, "tuberculosis": 4}
    film = films["MCUCXR_0003_1.png"]
    assert (film.source, film.patient_id, film.sex, film.age) == ("montgomery", "montgomery-0003", "F", 22)
    masks = "|".join(f"MontgomerySet/ManualMask/{side}Mask/MCUCXR_0003_1.png" for side in ("left", "right"))
    assert film.extra == {"extra.lung_mask": masks}
    assert (films["MCUCXR_0008_0.png"].sex, films["MCUCXR_0008_0.png"].extra) == (None, {})
    assert listing.notes == ["the readings of 1 of 8 films tell no sex or no age"]


@pytest.mark.parametrize(
    ("reading", "sex", "age"),
    [
        ("male 45yrs\nnormal", "M", 45),
        ("Female, 63 yrs\r\nSTB", "F", 63),
        ("female  7 years", "F", 7),
        ("normal", None, None),
    ],
)
def test_shenzhen_readings_tell_sex_and_age(tmp_path, reading, sex, age):
    names = [f"CHNCXR_000{n}_{n % 2}" for n in range(1, 9)]
    touch(tmp_path, *(f"ChinaSet_AllFiles/CXR_png/{name}.png" for name in names), "test/CHNCXR_0001_1.png")
    touch(tmp_path, *(f"masks/{name}_mask.png" for name in names))
    (tmp_path / "ChinaSet_AllFiles" / "ClinicalReadings").mkdir()
    for name in names:
        (tmp_path / "ChinaSet_AllFiles" / "ClinicalReadings" / f"{name}.txt").write_text(reading)
    listing = read(tmp_path, "shenzhen")
    assert {(film.sex, film.age, film.source) for film in listing.files} == {(sex, age, "shenzhen")}
    assert Counter(film.label for film in listing.files) == {"normal": 4, "tuberculosis": 4}
    assert listing.files[0].path == "ChinaSet_AllFiles/CXR_png/CHNCXR_0001_1.png"
    assert listing.files[0].extra == {"extra.lung_mask": "masks/CHNCXR_0001_1_mask.png"}


def test_films_on_object_storage_are_listed_like_those_on_a_disk(tmp_path):
    import fsspec

    storage = fsspec.filesystem("memory")
    for path in radiography(tmp_path).rglob("*"):
        if path.is_file():
            storage.pipe(f"/sets/{path.relative_to(tmp_path)}", path.read_bytes() or b"-")
    storage.pipe("/sets/COVID-19_Radiography_Dataset/COVID/images/.hidden.png", b"-")
    storage.pipe("/sets/__MACOSX/COVID/images/COVID-1.png", b"-")
    remote = list_films(locate("memory://sets"), format="radiography")
    assert remote == list_films(locate(tmp_path), format="radiography")
