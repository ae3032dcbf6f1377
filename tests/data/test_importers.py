"""Import: what a folder of films becomes, and what stops it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import JPEG2000LosslessDecoder
from pydicom.uid import ComputedRadiographyImageStorage

from cxr_ray import cluster
from cxr_ray.data import import_work, importers
from cxr_ray.data.import_chunk import Chunk
from cxr_ray.data.importers import import_dataset
from cxr_ray.data.leakage import checked_for_leakage
from cxr_ray.data.phantom_dataset import make_phantoms, write_phantom_films
from cxr_ray.data.resize import fit_square
from cxr_ray.data.splitting import resplit_dataset
from cxr_ray.data.store import open_dataset
from cxr_ray.errors import ConfigError, DataError
from cxr_ray.paths import locate

COLUMNS: tuple[str, ...] = ("path", "label", "source", "patient_id", "split", "view", "sex", "age", "ward")


def make_films(folder: Path, per_class: int = 12, classes: tuple[str, ...] = ("normal", "COVID-19")) -> Path:
    random = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 255, (40, 30), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.png")
    return folder


def write_csv(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "labels.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_for(folder: Path, **values) -> list[dict[str, object]]:
    files = sorted(folder.rglob("*.png"))
    return [
        {"path": file.relative_to(folder).as_posix(), "label": file.parent.name}
        | {key: value(number) if callable(value) else value for key, value in values.items()}
        for number, file in enumerate(files)
    ]


def test_class_folders_become_classes_in_the_projects_order(tmp_path):
    films = make_films(tmp_path / "films", classes=("zebra", "TB", "covid19", "Normal"))
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert dataset.classes == ["normal", "covid", "tuberculosis", "zebra"]
    assert dataset.manifest.num_rows == 48
    assert open_dataset(tmp_path / "out").info == dataset.info


def test_stored_pixels_are_the_resized_files_in_manifest_order(tmp_path):
    films = make_films(tmp_path / "films")
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    for row, path in enumerate(dataset.column("path")):
        expected = fit_square(np.asarray(Image.open(films / path)), 64, "squash")
        np.testing.assert_array_equal(dataset.pixels[row], expected)


def test_csv_columns_reach_the_manifest(tmp_path):
    films = make_films(tmp_path / "films")
    rows = rows_for(films, source="hospital", patient_id=lambda i: f"p{i // 2}", view="PA", sex="F", age=61.5, ward="C")
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    first = dataset.manifest.slice(0, 1).to_pylist()[0]
    expected = {"source": "hospital", "patient_id": "p0", "view": "PA", "sex": "F", "age": 61.5, "extra.ward": "C"}
    assert {key: first[key] for key in expected} == expected
    assert (first["width"], first["height"], first["bit_depth"]) == (30, 40, 8)


def test_image_ids_are_unique_and_pixel_hashes_find_exact_duplicates(tmp_path):
    films = make_films(tmp_path / "films")
    copy = films / "normal" / "copy.png"
    copy.write_bytes((films / "normal" / "000.png").read_bytes())
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert len(set(dataset.column("image_id"))) == 25
    by_path = {row["path"]: row for row in dataset.manifest.to_pylist()}
    one, other = by_path["normal/000.png"], by_path["normal/copy.png"]
    assert one["duplicate_group"] == other["duplicate_group"]
    assert one["split"] == other["split"]


def test_no_patient_and_no_duplicate_crosses_splits_and_shares_are_kept(tmp_path):
    films = make_films(tmp_path / "films", per_class=120)
    rows = rows_for(films, patient_id=lambda i: f"p{i // 3}", source=lambda i: f"s{i // 3 % 2}")
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    splits_of = defaultdict(set)
    for patient, split in zip(dataset.column("patient_id"), dataset.column("split"), strict=True):
        splits_of[patient].add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    counts = Counter(dataset.column("split"))
    for split, share in (("train", 0.65), ("val", 0.10), ("calibration", 0.10), ("test", 0.15)):
        assert abs(counts[split] / 240 - share) < 0.03
        assert abs(dataset.info.counts[split]["covid"] - dataset.info.counts[split]["normal"]) <= 6


def test_the_same_seed_gives_the_same_dataset_byte_for_byte(tmp_path):
    films = make_films(tmp_path / "films")
    one = import_dataset(films, tmp_path / "a", size=64, quiet=True)
    two = import_dataset(films, tmp_path / "b", size=64, quiet=True)
    assert one.info.fingerprint == two.info.fingerprint
    for name in ("manifest.parquet", "pixels-00000.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert import_dataset(films, tmp_path / "c", size=64, seed=1, quiet=True).info.fingerprint != one.info.fingerprint


def test_a_given_split_is_honoured_and_calibration_taken_from_val_with_a_warning(tmp_path):
    films = make_films(tmp_path / "films", per_class=20)
    rows = rows_for(films, split=lambda i: ("train", "train", "val", "val", "test")[i % 5])
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    given = {str(row["path"]): row["split"] for row in rows}
    for path, split in zip(dataset.column("path"), dataset.column("split"), strict=True):
        assert split == given[path] or (split == "calibration" and given[path] == "val")
    assert sum(dataset.info.counts["calibration"].values()) == 8
    assert dataset.info.warnings == [
        "the split column names no calibration images: 8 of the 16 val images were taken for it"
    ]


def test_calibration_taken_from_val_is_balanced_and_leaves_every_class_there(tmp_path):
    films = make_films(tmp_path / "films", per_class=40, classes=("normal", "covid", "tuberculosis"))
    rows = rows_for(films, split=lambda i: ("train", "val")[i % 2], source=lambda i: f"s{i // 2 % 2}")
    for number, row in enumerate(row for row in rows if row["label"] == "tuberculosis"):
        row |= {"split": "val" if number < 4 else "train", "patient_id": f"p{number // 4}"}
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    assert dataset.info.counts["calibration"] == {"normal": 10, "covid": 10, "tuberculosis": 0}
    assert dataset.info.counts["val"] == {"normal": 10, "covid": 10, "tuberculosis": 4}
    sources = Counter(dataset.column("source")[row] for row in dataset.rows("calibration"))
    assert sources == {"s0": 10, "s1": 10}


def test_where_val_has_no_patient_to_spare_nothing_is_taken_and_that_is_said(tmp_path):
    films = make_films(tmp_path / "films")
    rows = rows_for(films, split=lambda i: ("train", "val")[i % 2], patient_id=lambda i: f"p{i % 2}{i // 12}")
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    assert sum(dataset.info.counts["calibration"].values()) == 0
    assert dataset.info.warnings == [
        "the split column names no calibration images, and val has none to spare (the films of each class belong "
        "to one patient): probabilities will not be calibrated"
    ]


def test_a_given_split_with_a_patient_on_both_sides_is_imported_with_a_warning_and_mended_by_a_resplit(tmp_path):
    films = make_films(tmp_path / "films")
    rows = rows_for(films, split=lambda i: ("train", "val", "test")[i % 3], patient_id=lambda i: f"p{i // 2}")
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    (leak,) = (warning for warning in dataset.info.warnings if "leaks" in warning)
    assert "patient(s) lie in more than one split, for example patient p" in leak
    assert "train and tune refuse it until 'cxr-ray data resplit'" in leak
    with pytest.raises(DataError, match="lie in more than one split"):
        checked_for_leakage(dataset)
    mended = resplit_dataset(dataset, tmp_path / "mended")
    assert checked_for_leakage(mended) is mended
    assert mended.info.warnings == []
    again = resplit_dataset(mended, tmp_path / "given", split="given")
    assert [split for split in again.column("split") if split != "calibration"] == [
        row["split"] for row, split in zip(rows, again.column("split"), strict=True) if split != "calibration"
    ]


def test_a_patient_in_two_sources_is_one_patient(tmp_path):
    films = make_films(tmp_path / "films", per_class=60)
    rows = rows_for(films, patient_id=lambda i: f"{i // 2}", source=lambda i: f"s{i % 2}")
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    splits_of = defaultdict(set)
    for patient, split in zip(dataset.column("patient_id"), dataset.column("split"), strict=True):
        splits_of[patient].add(split)
    assert len(splits_of) == 60
    assert "0" in splits_of, "in a CSV, nought may be the first of the patients"
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_a_class_of_one_patient_is_refused_with_the_reason(tmp_path):
    films = make_films(tmp_path / "films")
    rows = rows_for(films, patient_id=lambda i: "p" if i < 12 else "")
    message = r"its 12 images show 1 different patient\(s\) or film\(s\)\)\. Add images of it \(from more"
    with pytest.raises(DataError, match=message):
        import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)


def test_placeholders_are_no_patient(tmp_path):
    films = make_films(tmp_path / "films")
    rows = rows_for(films, patient_id=lambda i: ("Unknown", "n/a", "anonymous", "")[i % 4])
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    assert set(dataset.column("patient_id")) == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "covdi"}, r"label 'covdi' stands on 1 image\(s\) only .*did you mean 'covid'"),
        ({"label": ""}, r"labels\.csv, line 2: names no label"),
        ({"path": "../elsewhere.png"}, "leads out of the source folder"),
        ({"split": "trian"}, r"split 'trian' is not one of train, val, calibration, test \(did you mean 'train'\?\)"),
        ({"split": "train"}, "gives a split for 1 images and none for 23"),
        ({"age": "old"}, "age 'old' is not a number of years"),
    ],
)
def test_a_mistake_in_the_csv_is_named_with_its_place(tmp_path, change, message):
    films = make_films(tmp_path / "films")
    rows = rows_for(films)
    rows[0] |= change
    with pytest.raises(DataError, match=message):
        import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    assert not (tmp_path / "out").exists()


def test_unreadable_files_are_listed_with_the_reason_and_skipped(tmp_path):
    films = make_films(tmp_path / "films", per_class=30)
    (films / "normal" / "bad.png").write_bytes((films / "normal" / "000.png").read_bytes()[:100])
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert dataset.manifest.num_rows == report["imported"] == 60
    assert report["unreadable"] == [
        {"path": "normal/bad.png", "code": "truncated", "reason": "is truncated: the file ends before its last pixel"}
    ]


def test_files_with_names_or_kinds_that_cannot_be_imported_are_listed_and_skipped(tmp_path):
    films = make_films(tmp_path / "films", per_class=60)
    content = (films / "normal" / "000.png").read_bytes()
    (films / "normal" / os.fsdecode(b"caf\xe9.png")).write_bytes(content)
    (films / "normal" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert dataset.manifest.num_rows == 120
    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert [(bad["path"], bad["reason"]) for bad in report["unreadable"]] == [
        ("normal/caf\\xe9.png", "has a name that is not UTF-8. Rename it"),
        ("normal/gone.png", "cannot be read (No such file or directory)"),
    ]
    (films / "normal" / "folder.png").mkdir()
    os.mkfifo(films / "normal" / "pipe.png")
    rows = rows_for(films)
    rows = [row for row in rows if str(row["path"]).isascii()]
    dataset = import_dataset(films, tmp_path / "csv", metadata=write_csv(films, rows), size=64, quiet=True)
    report = json.loads((tmp_path / "csv" / "import_report.json").read_text())
    assert {bad["path"]: bad["reason"] for bad in report["unreadable"]} == {
        "normal/folder.png": "is a folder or another thing that is not a file",
        "normal/gone.png": "cannot be read (No such file or directory)",
        "normal/pipe.png": "is a folder or another thing that is not a file",
    }


def test_a_class_that_cannot_be_read_at_all_stops_the_import(tmp_path):
    films = make_films(tmp_path / "films", per_class=100)
    (films / "tuberculosis").mkdir()
    for number in range(4):
        (films / "tuberculosis" / f"{number}.png").write_text("no film")
    with pytest.raises(DataError, match=r"none of the 4 files of class 'tuberculosis' can be used: .*0\.png is not an"):
        import_dataset(films, tmp_path / "out", size=64, quiet=True)


def test_files_whose_decoder_was_missing_are_decoded_when_the_same_import_is_run_again(tmp_path, monkeypatch):
    films = make_films(tmp_path / "films")
    for number in range(4):
        film = pydicom.dcmread(str(get_testdata_file("MR_small_jp2klossless.dcm")))
        film.SOPClassUID, film.Modality, film.PatientID = ComputedRadiographyImageStorage, "CR", f"p{number}"
        film.save_as(films / "normal" / f"{number}.dcm")
    with monkeypatch.context() as without_decoder:
        without_decoder.setattr(JPEG2000LosslessDecoder, "_available", {})
        with pytest.raises(
            DataError, match=r"4 of 28 .*not installed\. Install it with: pip install 'cxr_ray\[dicom\]'"
        ):
            import_dataset(films, tmp_path / "out", size=64, quiet=True)
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert dataset.manifest.num_rows == 28
    report = json.loads((tmp_path / "out" / "import_report.json").read_text())
    assert report["unreadable"] == []
    assert report["notes"] == []


def test_many_unreadable_files_stop_the_import_unless_told_to_go_on(tmp_path):
    films = make_films(tmp_path / "films")
    for number in range(3):
        (films / "normal" / f"bad{number}.png").write_text("no film")
    with pytest.raises(
        DataError, match=r"3 of 27 files are unreadable, more than 5%: normal/bad0\.png is not an image"
    ):
        import_dataset(films, tmp_path / "out", size=64, quiet=True)
    with pytest.raises(DataError, match="was interrupted"):
        open_dataset(tmp_path / "out")
    dataset = import_dataset(films, tmp_path / "out", size=64, keep_going=True, quiet=True)
    assert dataset.manifest.num_rows == 24


def test_a_finished_dataset_is_not_touched_without_overwrite(tmp_path):
    films = make_films(tmp_path / "films")
    first = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    with pytest.raises(DataError, match="already holds a finished dataset"):
        import_dataset(films, tmp_path / "out", size=96, quiet=True)
    assert open_dataset(tmp_path / "out").info == first.info
    assert import_dataset(films, tmp_path / "out", size=96, overwrite=True, quiet=True).info.image_size == 96


def test_a_folder_with_other_things_in_it_is_not_written_to(tmp_path):
    films = make_films(tmp_path / "films")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not empty"):
        import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_import_killed_midway_is_completed_without_redoing_shards(tmp_path, monkeypatch):
    films = make_films(tmp_path / "films", per_class=40)
    monkeypatch.setattr(import_work, "SHARD_IMAGES", 16)
    whole = import_dataset(films, tmp_path / "whole", size=64, quiet=True)
    script = (
        "import time, cxr_ray.data.import_work as i; i.SHARD_IMAGES = 16; original = i.decode_chunk\n"
        "from cxr_ray.data.importers import import_dataset\n"
        "def slow(chunk):\n    time.sleep(0.3); return original(chunk)\n"
        f"i.decode_chunk = slow; import_dataset({str(films)!r}, {str(tmp_path / 'out')!r}, size=64, quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / ".out.importing" / ".import").glob("shard-*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="was interrupted"):
        open_dataset(tmp_path / "out")
    finished = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".out.importing").glob("pixels-*.npy")}
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert dataset.info.fingerprint == whole.info.fingerprint
    assert (tmp_path / "out/manifest.parquet").read_bytes() == (tmp_path / "whole/manifest.parquet").read_bytes()


def test_the_mapper_given_does_the_work_in_order(tmp_path):
    films = make_films(tmp_path / "films")
    seen = []

    def counting_map(function, items):
        for item in items:
            if isinstance(item, Chunk):
                seen.append(len(item.files))
            yield function(item)

    import_dataset(films, tmp_path / "out", size=64, map=counting_map, quiet=True)
    assert sum(seen) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, "--size: size 32 is not allowed; 64 to 4096"),
        ({"size": 100_000}, "--size: size 100000 is not"),
        ({"seed": -1}, "--seed: seed -1 is negative"),
        ({"fit": "strech"}, "--fit: fit 'strech'"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        import_dataset(tmp_path, tmp_path / "out", **options)


def test_missing_and_empty_folders_are_explained(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        import_dataset(tmp_path / "nowhere", tmp_path / "out", quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        import_dataset(tmp_path / "empty", tmp_path / "out", quiet=True)


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_every_fit_makes_squares_of_wide_and_tall_films(fit):
    wide = np.tile(np.linspace(0, 255, 200).astype(np.uint8), (100, 1))
    for film in (wide, wide.T):
        square = fit_square(np.ascontiguousarray(film), 64, fit)
        assert square.shape == (64, 64)
    padded = fit_square(wide, 64, "pad")
    assert (padded[:15] == 0).all() and padded[20:40].max() > 200
    assert fit_square(wide, 64, "crop").max() < 200


def test_phantom_datasets_carry_masks_and_repeat_exactly(tmp_path, phantoms):
    again = make_phantoms(tmp_path / "again", images=60, size=64, quiet=True)
    assert again.info.fingerprint == phantoms.info.fingerprint
    assert phantoms.masks is not None
    for row, label in enumerate(phantoms.column("label")):
        assert phantoms.masks[row].any() == (label != "normal")


def test_phantom_films_written_as_files_import_like_any_others(tmp_path):
    films = write_phantom_films(tmp_path / "films", images=60, size=96, quiet=True)
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert dataset.manifest.num_rows == 60
    assert len(set(dataset.column("patient_id"))) == 60
    assert dataset.info.licences == {"synthetic, free of rights": 60}


def test_films_on_object_storage_import_as_those_on_disk(s3, local_ray, tmp_path):
    films = write_phantom_films(tmp_path / "films", images=60, size=64, quiet=True)
    (films / "covid" / "phantom-00001.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    uri = s3("films")
    for file in sorted(path for path in films.rglob("*") if path.is_file()):
        locate(uri).child(file.relative_to(films).as_posix()).write_bytes(file.read_bytes())
    here = import_dataset(films, tmp_path / "here", size=64, quiet=True)
    there = import_dataset(uri, tmp_path / "there", size=64, map=cluster.parallel_map, quiet=True)
    assert there.manifest.equals(here.manifest)
    assert [shard.sha256 for shard in there.info.shards] == [shard.sha256 for shard in here.info.shards]
    reports = [json.loads((data.root / "import_report.json").read_text()) for data in (here, there)]
    assert reports[0]["unreadable"] == reports[1]["unreadable"] != []


def test_a_film_on_its_head_is_flagged_and_its_score_kept_in_the_manifest(tmp_path):
    films = write_phantom_films(tmp_path / "films", images=60, size=64, quiet=True)
    turned = films / "normal" / "phantom-00000.png"
    Image.open(turned).rotate(180).save(turned)
    dataset = import_dataset(films, tmp_path / "out", size=64, quiet=True)
    scores = dict(zip(dataset.column("path"), dataset.column("upside_down"), strict=True))
    threshold = dataset.info.thresholds["upside_down"].value
    assert {path for path, score in scores.items() if score > threshold} == {"normal/phantom-00000.png"}
    flagged = [
        path for path, flags in zip(dataset.column("path"), dataset.column("quality_flags"), strict=True) if flags
    ]
    assert flagged == ["normal/phantom-00000.png"]


@pytest.mark.real_data
def test_the_real_films_import_with_patients_kept_apart(tmp_path, real_films):
    dataset = import_dataset(real_films, tmp_path / "out", size=64, quiet=True)
    assert dataset.manifest.num_rows == 2007
    assert dataset.info.sources == {
        "cohen": 46, "cxnet": 238, "kermany": 530, "nih": 250, "radiography_db": 521, "tb_db": 422,
    }  # fmt: skip
    splits_of = defaultdict(set)
    for patient, split in zip(dataset.column("patient_id"), dataset.column("split"), strict=True):
        if patient is not None:
            splits_of[patient].add(split)
    assert max(len(splits) for splits in splits_of.values()) == 1


def test_columns_are_known_by_any_spelling_and_laterals_by_any_wording(tmp_path):
    films = make_films(tmp_path / "films", per_class=20)
    rows = rows_for(films, patient_id=lambda n: f"p{n // 4}", view=lambda n: "Left Lateral View" if n % 10 == 0 else "")
    metadata = write_csv(films, rows)
    text = metadata.read_text()
    header = {"path": "Path", "label": "Label", "patient_id": "Patient ID", "view": "ViewPosition"}
    metadata.write_text(text.replace(",".join(COLUMNS), ",".join(header.get(name, name) for name in COLUMNS)))
    dataset = import_dataset(films, tmp_path / "out", metadata=metadata, size=64, quiet=True)
    assert dataset.manifest.num_rows == 36
    assert set(dataset.column("patient_id")) == {f"p{number}" for number in range(10)}


def test_a_column_that_an_import_keeps_for_itself_is_refused(tmp_path):
    films = make_films(tmp_path / "films")
    metadata = write_csv(films, rows_for(films))
    metadata.write_text(metadata.read_text().replace("ward", "given_split"))
    with pytest.raises(DataError, match=r"has a column 'given_split'.*Name it 'split', or otherwise"):
        import_dataset(films, tmp_path / "out", metadata=metadata, size=64, quiet=True)


def test_folders_named_like_splits_are_splits_and_those_inside_them_classes(tmp_path):
    for split, films in (("train", 12), ("val", 4), ("test", 4)):
        make_films(tmp_path / "films" / split, per_class=films)
    dataset = import_dataset(tmp_path / "films", tmp_path / "out", size=64, quiet=True)
    assert dataset.classes == ["normal", "covid"]
    assert {
        split
        for split, path in zip(dataset.column("split"), dataset.column("path"), strict=True)
        if path.startswith("test/")
    } == {"test"}
    assert dataset.info.split.strategy == "given"
    notes = json.loads((tmp_path / "out" / "import_report.json").read_text())["notes"]
    assert "the folders test, train, val are taken for splits, and the folders in them for classes" in notes


def test_an_archive_of_arrays_among_the_films_of_a_csv_is_an_unreadable_film_and_no_more(tmp_path):
    films = make_films(tmp_path / "films", per_class=30)
    (films / "covid-archive.npz").write_bytes(b"PK no archive")
    rows = [*rows_for(films), {"path": "covid-archive.npz", "label": "normal"}]
    dataset = import_dataset(films, tmp_path / "out", metadata=write_csv(films, rows), size=64, quiet=True)
    assert dataset.manifest.num_rows == 60


def test_half_written_files_of_a_killed_import_do_not_stay(tmp_path, monkeypatch):
    films = make_films(tmp_path / "films")
    work = tmp_path / ".out.importing"

    def stop(*_: object, **__: object) -> None:
        (work / ".manifest.parquet.a1b2c3").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as breaking:
        breaking.setattr(importers, "write_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            import_dataset(films, tmp_path / "out", size=64, quiet=True)
    import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert not list((tmp_path / "out").glob(".*"))


def test_what_comes_to_lie_in_the_way_of_an_import_is_not_replaced(tmp_path, monkeypatch):
    films = make_films(tmp_path / "films")
    written = importers.write_dataset

    def meanwhile(*arguments: Any, **options: Any) -> None:
        written(*arguments, **options)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")

    monkeypatch.setattr(importers, "write_dataset", meanwhile)
    with pytest.raises(DataError, match="is not empty"):
        import_dataset(films, tmp_path / "out", size=64, quiet=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_resumed_import_sees_changes_in_hidden_folders(tmp_path, monkeypatch):
    films = make_films(tmp_path / "films")
    hidden = make_films(tmp_path / "films" / ".more", per_class=1, classes=("normal",)) / "normal" / "000.png"
    rows = [*rows_for(films)]
    assert any(str(row["path"]).startswith(".more") for row in rows)
    metadata = write_csv(films, rows)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as breaking:
        breaking.setattr(importers, "write_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            import_dataset(films, tmp_path / "out", metadata=metadata, size=64, quiet=True)
    Image.new("L", (40, 30), 200).save(hidden)
    dataset = import_dataset(films, tmp_path / "out", metadata=metadata, size=64, quiet=True)
    row = dataset.column("path").index(".more/normal/000.png")
    assert (dataset.pixels[row] == 200).all()


def test_a_class_of_copies_of_one_film_is_refused_as_one_film(tmp_path):
    films = make_films(tmp_path / "films")
    for file in (films / "normal").iterdir():
        file.write_bytes((films / "normal" / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"its 12 images show 1 different patient\(s\) or film\(s\)"):
        import_dataset(films, tmp_path / "out", size=64, quiet=True)


def test_lung_masks_of_class_numbers_are_masks(tmp_path):
    films = make_films(tmp_path / "films")
    lungs = np.zeros((40, 30), np.uint8)
    lungs[:, :10], lungs[:, 20:] = 1, 2
    (tmp_path / "films" / "masks").mkdir()
    Image.fromarray(lungs).save(films / "masks" / "lungs.png")
    rows = [row for row in rows_for(films) if "masks" not in str(row["path"])]
    metadata = write_csv(films, [row | {"ward": "masks/lungs.png"} for row in rows])
    metadata.write_text(metadata.read_text().replace("ward", "extra.lung_mask"))
    dataset = import_dataset(films, tmp_path / "out", metadata=metadata, size=64, quiet=True)
    assert dataset.lung_masks is not None
    assert (dataset.lung_masks[0] == 255).mean() == pytest.approx(2 / 3, abs=0.02)
    Image.fromarray(np.where(lungs > 1, 255, 0).astype(np.uint8)).save(films / "masks" / "lungs.png")
    other = import_dataset(films, tmp_path / "other", metadata=metadata, size=64, quiet=True)
    assert other.info.fingerprint != dataset.info.fingerprint  # or a node's copy of one would be taken for the other
