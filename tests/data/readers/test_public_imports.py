"""Public sets from end to end: a small folder in each set's layout becomes a dataset that knows where it is from."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from cxr_ray.data.importers import import_dataset
from cxr_ray.data.readers import set_facts
from cxr_ray.data.store import Dataset, open_dataset

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def pixels(number: int, channels: int = 1) -> np.ndarray:
    """uint8, (80, 72) or (80, 72, 3): soft blotches, other ones for every number, so that no two films are alike."""
    blotches = np.random.default_rng(number).integers(0, 256, (10, 9), np.uint8)
    gray = np.asarray(Image.fromarray(blotches).resize((72, 80), Image.Resampling.BICUBIC))
    return gray if channels == 1 else np.stack([gray] * channels, axis=-1)


class Films:
    """Writes films below a folder, each with a content of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.written = 0

    def write(self, *paths: str) -> None:
        for path in paths:
            self.written += 1
            self._place(path)
            Image.fromarray(pixels(self.written)).save(self.root / path)

    def mask(self, path: str, *, left: bool) -> None:
        """A lung mask of one half of the film."""
        lungs = np.zeros((80, 72), np.uint8)
        lungs[:, slice(0, 36) if left else slice(36, 72)] = 255
        self._place(path)
        Image.fromarray(lungs).save(self.root / path)

    def text(self, path: str, content: str) -> None:
        self._place(path)
        (self.root / path).write_text(content)

    def dicom(self, path: str) -> None:
        self.written += 1
        film = pydicom.Dataset()
        film.file_meta = FileMetaDataset()
        film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        film.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        film.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{self.written}")
        film.SOPClassUID = ComputedRadiographyImageStorage
        film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID
        film.Modality, film.PatientSex, film.PatientAge, film.ViewPosition = "CR", "F", "051Y", "PA"
        film.PatientID = Path(path).stem
        film.Rows, film.Columns, film.SamplesPerPixel = 80, 72, 1
        film.PhotometricInterpretation, film.PixelRepresentation = "MONOCHROME2", 0
        film.BitsAllocated, film.BitsStored, film.HighBit = 8, 8, 7
        film.PixelData = pixels(self.written).tobytes()
        self._place(path)
        pydicom.dcmwrite(self.root / path, film, enforce_file_format=True)

    def sheet(self, path: str, rows: list[list[str]], *, inline: bool) -> None:
        """A spreadsheet with its texts in the cells, as programs write it, or in a table, as Excel does."""
        texts = [value for row in rows for value in row]
        cells = (
            '<c t="inlineStr"><is><t>{}</t></is></c>'.format
            if inline
            else lambda value: f'<c t="s"><v>{texts.index(value)}</v></c>'
        )
        lines = "".join(f"<row>{''.join(map(cells, row))}</row>" for row in rows)
        self._place(path)
        with zipfile.ZipFile(self.root / path, "w", zipfile.ZIP_DEFLATED) as book:
            book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {MAIN}><sheetData>{lines}</sheetData></worksheet>")
            if not inline:
                items = "".join(f"<si><r><t>{text[:2]}</t></r><r><t>{text[2:]}</t></r></si>" for text in texts)
                book.writestr("xl/sharedStrings.xml", f"<sst {MAIN}>{items}</sst>")

    def _place(self, path: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)


def basu(films: Films) -> None:
    films.root.mkdir()
    for name, each in (("train", 4), ("val", 2), ("test", 2)):
        count = 5 * each
        images = np.stack([pixels(films.written + number, 3) for number in range(count)])
        films.written += count
        names = np.array([f"{number}.png" for number in range(count)])
        labels = np.arange(count) % 5
        np.savez_compressed(films.root / f"{name}.npz", image=images, image_label=labels, image_name=names)


def radiography(films: Films) -> None:
    for number, folder in enumerate(("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")):
        base = f"COVID-19_Radiography_Dataset/{folder}"
        films.write(*(f"{base}/images/{folder}-{film}.png" for film in range(1, 6)))
        for film in range(1, 5):
            films.mask(f"{base}/masks/{folder}-{film}.png", left=bool(number % 2))
        rows = [[f"{folder}-{film}", "PNG", "256*256", "https://sirm.org/category"] for film in range(1, 6)]
        films.sheet(f"{base}.metadata.xlsx", [["FILE NAME", "FORMAT", "SIZE", "URL"], *rows], inline=bool(number % 2))


def tb(films: Films) -> None:
    for label in ("Normal", "Tuberculosis"):
        films.write(*(f"TB_Chest_Radiography_Database/{label}/{label}-{film}.png" for film in range(1, 7)))


def cohen(films: Films) -> None:
    rows = "patientid,offset,sex,age,finding,view,modality,folder,filename, url,license,clinical_notes\n"
    findings = ("Pneumonia/Viral/COVID-19", "No Finding", "Pneumonia/Bacterial/Streptococcus")
    for number, finding in enumerate(findings * 6):
        rows += f'{number // 3},0,M,44,{finding},PA,X-ray,images,{number}.jpg,https://a.org,CC BY,"one,\ntwo"\n'
        films.write(f"images/{number}.jpg")
    rows += "99,0,M,44,Pneumonia/Viral/COVID-19,L,X-ray,images,lateral.jpg,https://a.org,,\n"
    films.write("images/lateral.jpg")
    films.text("metadata.csv", rows)


def rsna(films: Films) -> None:
    rows = "patientId,class\n"
    for kind in ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal"):
        for number in range(5):
            name = f"{kind.replace(' ', '').replace('/', '')}-{number}"
            rows += f"{name},{kind}\n" * (2 if kind == "Lung Opacity" else 1)
            films.dicom(f"stage_2_train_images/{name}.dcm")
    films.text("stage_2_detailed_class_info.csv", rows)


def kermany(films: Films) -> None:
    for number in range(1, 6):
        films.write(f"chest_xray/train/NORMAL/IM-0{number}15-0001.jpeg")
        films.write(f"chest_xray/train/PNEUMONIA/person{number}_bacteria_1.jpeg")
        films.write(f"chest_xray/test/PNEUMONIA/VIRUS-{number}083680-0001.jpeg")


def montgomery(films: Films) -> None:
    for number in range(1, 11):
        name = f"MCUCXR_00{number:02d}_{number % 2}"
        films.write(f"MontgomerySet/CXR_png/{name}.png")
        for side in ("left", "right"):
            films.mask(f"MontgomerySet/ManualMask/{side}Mask/{name}.png", left=side == "left")
        films.text(f"MontgomerySet/ClinicalReadings/{name}.txt", "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n")


def shenzhen(films: Films) -> None:
    for number in range(1, 11):
        name = f"CHNCXR_00{number:02d}_{number % 2}"
        films.write(f"ChinaSet_AllFiles/CXR_png/{name}.png")
        films.text(f"ChinaSet_AllFiles/ClinicalReadings/{name}.txt", "male 45yrs\nnormal\n")


SETS: dict[str, tuple[Callable[[Films], None], dict[str, int]]] = {
    "basu": (basu, dict.fromkeys(("normal", "covid", "lung_opacity", "viral_pneumonia", "tuberculosis"), 8)),
    "radiography": (radiography, dict.fromkeys(("normal", "covid", "lung_opacity", "viral_pneumonia"), 5)),
    "tb": (tb, {"normal": 6, "tuberculosis": 6}),
    "cohen": (cohen, {"normal": 6, "covid": 6, "lung_opacity": 6}),
    "rsna": (rsna, {"normal": 5, "lung_opacity": 5}),
    "kermany": (kermany, {"normal": 5, "lung_opacity": 5, "viral_pneumonia": 5}),
    "montgomery": (montgomery, {"normal": 5, "tuberculosis": 5}),
    "shenzhen": (shenzhen, {"normal": 5, "tuberculosis": 5}),
}


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[str], Dataset]:
    def write_and_import(name: str) -> Dataset:
        SETS[name][0](Films(tmp_path / "films"))
        return import_dataset(tmp_path / "films", tmp_path / "dataset", format=name, size=64, quiet=True)

    return write_and_import


@pytest.mark.parametrize("name", SETS)
def test_a_set_becomes_a_dataset_that_holds_what_is_known_of_the_set(imported, name):
    dataset = open_dataset(imported(name).root)
    assert Counter(dataset.column("label")) == SETS[name][1]
    assert len(set(dataset.column("duplicate_group"))) == dataset.manifest.num_rows
    content = json.loads((dataset.root / "dataset.json").read_text())
    assert content["sets"] == [set_facts(name).model_dump()]
    assert sum(content["licences"].values()) == dataset.manifest.num_rows
    report = json.loads((dataset.root / "import_report.json").read_text())
    assert report["unreadable"] == []


def test_frames_of_the_five_class_set_are_stored_under_the_labels_they_carry(imported):
    dataset = imported("basu")
    assert Counter(dataset.column("split")) == {"train": 20, "val": 5, "calibration": 5, "test": 10}
    for row, (path, label) in enumerate(zip(dataset.column("path"), dataset.column("label"), strict=True)):
        frame = row - dataset.column("path").index(path)
        assert label == ("covid", "lung_opacity", "normal", "viral_pneumonia", "tuberculosis")[frame % 5]
        number = {"train.npz": 0, "val.npz": 20, "test.npz": 30}[path] + frame
        stored = np.asarray(Image.fromarray(pixels(number)).resize((64, 64), Image.Resampling.BILINEAR), np.int16)
        assert np.abs(dataset.pixels[row].astype(np.int16) - stored).mean() < 2


def test_lung_masks_of_the_radiography_database_lie_on_their_own_films(imported):
    dataset = imported("radiography")
    assert dataset.lung_masks is not None
    for row, path in enumerate(dataset.column("path")):
        mask = dataset.lung_masks[row]
        if path.endswith("-5.png"):  # has none
            assert not mask.any()
            continue
        half = mask[:, :32] if "Lung_Opacity" in path or "Viral" in path else mask[:, 32:]
        assert (half == 255).all()
        assert (mask == 255).mean() == 0.5
    assert dataset.info.sources == {"sirm": 20}


def test_both_lungs_of_montgomery_are_one_mask(imported):
    dataset = imported("montgomery")
    assert dataset.lung_masks is not None
    assert all((dataset.lung_masks[row] == 255).all() for row in range(10))
    assert set(dataset.column("sex")) == {"F"}
    assert set(dataset.column("age")) == {27.0}


def test_patients_licences_and_what_was_set_aside_survive_the_import(imported):
    dataset = imported("cohen")
    assert dataset.info.licences == {"CC BY": 18}
    assert set(dataset.column("patient_id")) == {f"cohen-{number}" for number in range(6)}
    report = json.loads((dataset.root / "import_report.json").read_text())
    assert report["set_aside"] == [
        {"path": "images/lateral.jpg", "reason": "is not known to be a frontal view (L)"},
    ]


def test_dicom_films_bring_what_their_headers_tell(imported):
    dataset = imported("rsna")
    assert set(dataset.column("patient_id")) >= {"rsna-Normal-0", "rsna-LungOpacity-4"}
    assert {(row["sex"], row["age"], row["view"]) for row in dataset.manifest.to_pylist()} == {("F", 51.0, "PA")}
    report = json.loads((dataset.root / "import_report.json").read_text())
    assert len(report["set_aside"]) == 5
