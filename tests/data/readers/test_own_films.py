"""Listing: which files, labels and columns an import takes from folders and CSVs, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cxr_ray.data.labels import label_slug
from cxr_ray.data.listing import SourceFile
from cxr_ray.data.readers import list_films
from cxr_ray.errors import DataError
from cxr_ray.paths import locate

PATHS = [f"{label}/{number}.png" for label in ("covid", "normal") for number in range(4)]


def folder_of(root: Path, *paths: str) -> Path:
    for path in paths or PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def csv_file(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    path = root / "labels.csv"
    path.write_bytes(text.encode())
    return path


def csv_with(columns: str = "", values: str = "") -> str:
    """A good CSV of eight images, the given values in every row."""
    return f"path,label{columns}\n" + "".join(f"{path},{Path(path).parent}{values}\n" for path in PATHS)


def list_sources(root: Path, metadata: Path | None) -> tuple[list[SourceFile], list[str]]:
    listing = list_films(locate(root), metadata=metadata)
    return listing.files, listing.notes


def listed(root: Path) -> list[str]:
    return [file.path for file in list_sources(root, None)[0]]


def test_linked_class_folders_and_files_are_followed_in_a_fixed_order(tmp_path):
    elsewhere = folder_of(tmp_path / "elsewhere", *(f"deep/{number}.png" for number in (3, 1, 2, 0)))
    films = folder_of(tmp_path / "films", *(f"normal/{number}.png" for number in range(3)))
    (films / "normal" / "3.png").symlink_to(elsewhere / "deep" / "3.png")
    (films / "covid").symlink_to(elsewhere)
    assert listed(films) == [f"covid/deep/{number}.png" for number in range(4)] + PATHS[4:]


def test_a_link_back_to_a_folder_above_is_not_entered_again(tmp_path):
    films = folder_of(tmp_path / "films")
    (films / "covid" / "all").symlink_to(films)
    (films / "covid" / "self").symlink_to(films / "covid")
    assert listed(films) == PATHS


def test_a_folder_linked_twice_is_listed_twice_so_that_its_duplicates_show(tmp_path):
    films = folder_of(tmp_path / "films")
    (films / "tuberculosis").symlink_to(films / "covid")
    assert listed(films) == PATHS + [f"tuberculosis/{number}.png" for number in range(4)]


def test_a_link_to_nothing_is_listed_so_that_the_import_can_report_it(tmp_path):
    films = folder_of(tmp_path / "films")
    (films / "normal" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (films / "normal" / "self.png").symlink_to(films / "normal" / "self.png")
    assert listed(films) == [*PATHS, "normal/gone.png", "normal/self.png"]


def test_what_is_left_out_is_counted(tmp_path):
    films = folder_of(tmp_path / "films", *PATHS, "loose.png", "README.md", "covid/masks/0.png", "covid/IM0001")
    assert sorted(list_sources(films, None)[1]) == [
        "left out 1 files that are not images by name",
        "left out 1 images that lie in no class folder",
        "left out 1 mask files",
    ]


def test_a_folder_without_images_says_what_lies_there_instead(tmp_path):
    with pytest.raises(DataError, match=r"no images in class folders \(left out 2 images that lie in no class folder"):
        list_sources(folder_of(tmp_path / "films", "1.png", "2.png"), None)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("正常", r"正常: the class folder '正常' cannot name a class: '正常' has no place.* Rename the folder"),
        ("TB-", r"TB-: the class folder 'TB-' cannot name a class: '-' has no place"),
        (os.fsdecode(b"caf\xe9"), r"caf\\xe9: the class folder's name is not UTF-8\. Rename the folder"),
    ],
)
def test_a_class_folder_that_cannot_name_a_class_is_named(tmp_path, folder, message):
    films = folder_of(tmp_path / "films", *PATHS, f"{folder}/0.png")
    with pytest.raises(DataError, match=message):
        list_sources(films, None)


@pytest.mark.parametrize("name", ["正常0", "TB+", "TB-", "covid –", "naïve", "ＣＯＶＩＤ", "<5", "!covid", "2²", ""])
def test_a_label_that_would_lose_its_meaning_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot name a class".replace("+", r"\+")):
        label_slug(name)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("COVID-19", "covid"),
        ("COVID–19 ", "covid"),
        ("No Finding", "normal"),
        ("Pleural/Effusion (left)", "pleural_effusion_left"),
    ],
)
def test_separators_and_brackets_of_a_label_mean_nothing(name, slug):
    assert label_slug(name) == slug


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path'; it has none"),
        ("path,label\n", "has a header, but names no images"),
        ("path,label,ward,ward\na.png,covid,1,2\n", "has more than one column 'ward'"),
        ("path,label,ward,extra.ward\na.png,covid,1,2\n", "has more than one column 'ward'"),
        ("path|label\na.png|covid\n", r"has no column 'path'.*commas, semicolons or tabs"),
        ("path,label\na,b.png,covid\n", r"line 2: has 3 values for 2 columns\. Put values that hold a comma in quotes"),
        ('path,label,note\na.png,covid,"two\nlines"\nb.png,,\n', "line 4: names no label for 'b.png'"),
        (
            'path,label,note\na.png,covid,"open\nb.png,covid,\n',
            r"is not a CSV behind line 1 \(unexpected end of data\)",
        ),
        ("path,label\na\0.png,covid\n", r"line 2: path 'a\\x00\.png' holds a zero byte"),
        ("path,label\na.png,正常0\n", "line 2: label '正常0' cannot name a class: '正常' has no place"),
        ("path,label\na.png,covid\n./a.png,covid\n", "line 3: names the image 'a.png' twice"),
    ],
)
def test_a_broken_csv_is_refused_with_its_place(tmp_path, text, message):
    metadata = csv_file(tmp_path, text)
    with pytest.raises(DataError, match=message) as refused:
        list_sources(tmp_path, metadata)
    assert str(metadata) in str(refused.value)


@pytest.mark.parametrize("age", ["nan", "inf", "-1", "151", "061Y"])
def test_an_age_that_nobody_has_is_refused(tmp_path, age):
    with pytest.raises(DataError, match=rf"line 2: age '{age}' is not a number of years from 0 to 150.*leave it empty"):
        list_sources(tmp_path, csv_file(tmp_path, csv_with(",age", f",{age}")))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("validation", "val"),
        ("valid", "val"),
        ("dev", "val"),
        ("calib", "calibration"),
        ("testing", "test"),
    ],
)
def test_other_names_of_the_splits_are_understood(tmp_path, name, split):
    files, _ = list_sources(tmp_path, csv_file(tmp_path, csv_with(",split", f",{name}")))
    assert {file.split for file in files} == {split}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_of_spreadsheets_part_columns_too(tmp_path, delimiter):
    text = "\ufeff" + csv_with(",ward", ",B 2").replace(",", delimiter).replace("B 2", "B, 2")
    files, _ = list_sources(tmp_path, csv_file(tmp_path, text))
    assert [file.path for file in files] == PATHS
    assert files[0].extra == {"extra.ward": "B, 2"}


def test_a_column_of_a_manifest_keeps_its_name(tmp_path):
    files, _ = list_sources(tmp_path, csv_file(tmp_path, csv_with(",extra.ward,bed", ",C,7")))
    assert files[0].extra == {"extra.ward": "C", "extra.bed": "7"}


def test_rows_that_a_spreadsheet_left_empty_or_short_are_no_mistake(tmp_path):
    text = csv_with(",age,ward", ",,").replace("covid/0.png,covid,,", "covid/0.png,covid") + ",,,\n\n"
    files, _ = list_sources(tmp_path, csv_file(tmp_path, text))
    assert [file.path for file in files] == PATHS


def test_a_folder_given_as_csv_is_told_from_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="is a folder, not a CSV"):
        list_sources(tmp_path, tmp_path)
    with pytest.raises(DataError, match="there is no such file"):
        list_sources(tmp_path, tmp_path / "nowhere.csv")


def test_a_rare_label_is_never_said_to_mean_itself(tmp_path):
    films = folder_of(tmp_path / "films", *PATHS, "tuberculosis/0.png")
    with pytest.raises(
        DataError, match=r"label 'tuberculosis' stands on 1 image\(s\) only \(tuberculosis/0.png\); a class"
    ):
        list_sources(films, None)


def dicom(path: Path) -> None:
    film = pydicom.Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    film.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    film.Rows = film.Columns = 4
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, film, enforce_file_format=True)


def test_dicom_files_without_a_suffix_are_films_of_a_class_folder(tmp_path):
    folder_of(tmp_path, *(f"normal/{n}.png" for n in range(4)), "covid/README", "covid/notes.txt")
    for name in ("IM0001", "IM0002", "1.2.840.10008.5", "1.2.840.10008.12", "DICOMDIR"):
        dicom(tmp_path / "covid" / name)
    listing = list_films(locate(tmp_path), format="folders")
    assert [film.path for film in listing.files if film.label == "covid"] == [
        "covid/1.2.840.10008.12",
        "covid/1.2.840.10008.5",
        "covid/IM0001",
        "covid/IM0002",
    ]
    assert listing.notes == ["left out 3 files that are not images by name"]


def test_a_csv_may_name_films_by_their_whole_address(tmp_path):
    folder_of(tmp_path)
    text = csv_with().replace("covid/0.png", f"{tmp_path}/covid/0.png", 1)
    assert [file.path for file in list_sources(tmp_path, csv_file(tmp_path, text))[0]] == PATHS
    uri = f"file://{tmp_path}"
    listing = list_films(
        locate(uri), metadata=csv_file(tmp_path, csv_with().replace("covid/0.png", f"{uri}/covid/0.png", 1))
    )
    assert [file.path for file in listing.files] == PATHS
    with pytest.raises(DataError, match=r"line 2: path 's3://other/0\.png' leads out of the source folder"):
        list_sources(tmp_path, csv_file(tmp_path, csv_with().replace("covid/0.png", "s3://other/0.png", 1)))


def test_lateral_views_that_a_csv_names_are_set_aside(tmp_path):
    text = csv_with(",view", ",PA") + "covid/9.png,covid,Lateral\n"
    listing = list_films(locate(tmp_path), metadata=csv_file(tmp_path, text))
    assert [file.path for file in listing.files] == PATHS
    assert listing.set_aside == [{"path": "covid/9.png", "reason": "is a lateral view (Lateral)"}]


def test_a_csv_on_object_storage_names_films_there():
    import fsspec

    storage = fsspec.filesystem("memory")
    storage.pipe("/own/metadata.csv", csv_with().encode())
    listing = list_films(locate("memory://own"))
    assert [file.path for file in listing.files] == PATHS
    assert listing.files[0].source == "own"
    assert list_films(locate("memory://own"), metadata="memory://own/metadata.csv").files == listing.files
