"""Films in NumPy archives: read one by one, whatever the size, and nothing unpickled."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cxr_ray.data.npz import NpzImages
from cxr_ray.errors import DataError
from cxr_ray.paths import locate

SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def films(count: int = 12, shape: tuple[int, ...] = (8, 9, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def archive(path: Path, save=np.savez, **arrays: np.ndarray) -> NpzImages:
    save(path, **arrays)
    return NpzImages(locate(path))


@SAVES
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3)])
def test_films_and_labels_come_as_they_were_saved(tmp_path, save, shape):
    saved = films(shape=shape)
    images = archive(tmp_path / "a.npz", save, image=saved, image_label=np.arange(12, dtype=np.uint8))
    assert (images.count, images.shape, images.dtype) == (12, (12, *shape), np.uint8)
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == list(range(12))
    np.testing.assert_array_equal(np.stack(list(images.frames(0, 12))), saved)
    np.testing.assert_array_equal(np.stack(list(images.frames(7, 9))), saved[7:9])


@pytest.mark.parametrize(
    ("image", "label"),
    [("images", "labels"), ("Image", "Image Label"), ("image", "image_labels"), (" image ", "label")],
)
def test_names_of_the_arrays_may_drift(tmp_path, image, label):
    extra = {"image names": np.array(["a.png"] * 12)}
    images = archive(tmp_path / "a.npz", **{image: films(), label: np.arange(12.0).reshape(12, 1)}, **extra)
    assert images.labels.tolist() == list(range(12))
    np.testing.assert_array_equal(next(images.frames(3, 4)), films()[3])


@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool])
def test_rows_of_zeros_and_a_one_are_labels_too(tmp_path, kind):
    rows = np.eye(5, dtype=kind)[[0, 3, 4, 1, 2, 0] * 2]
    assert archive(tmp_path / "a.npz", image=films(), image_label=rows).labels.tolist() == [0, 3, 4, 1, 2, 0] * 2


def test_floating_point_films_keep_their_type_and_byte_order(tmp_path):
    saved = (films() / 255).astype(">f4")
    images = archive(tmp_path / "a.npz", image=saved, image_label=np.arange(12))
    np.testing.assert_array_equal(np.stack(list(images.frames(0, 12))), saved)


def test_films_are_read_from_object_storage_as_from_a_disk(tmp_path):
    import fsspec

    np.savez_compressed(tmp_path / "a.npz", image=films(), image_label=np.arange(12))
    fsspec.filesystem("memory").pipe("/npz/a.npz", (tmp_path / "a.npz").read_bytes())
    images = NpzImages(locate("memory://npz/a.npz"))
    np.testing.assert_array_equal(next(images.frames(11, 12)), films()[11])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": films()}, r"no array 'image_label'; it has image\. Expected the arrays image and image_label"),
        ({"picture": films(), "label": np.arange(12)}, "no array 'image'; it has label, picture"),
        ({"image": films(), "label": np.arange(11)}, r"labels of type int64 and shape \(11,\) for 12 images"),
        ({"image": films(), "label": np.array(["covid"] * 12)}, "labels of type <U5"),
        ({"image": films(), "label": np.arange(12) / 2}, "labels that are not whole numbers"),
        ({"image": films(), "label": np.ones((12, 5))}, "rows of labels that are not zeros and a single one"),
        ({"image": films(), "label": np.zeros((12, 5))}, "rows of labels that are not zeros and a single one"),
        ({"image": films(), "label": np.eye(12) * 2}, "rows of labels that are not zeros and a single one"),
        ({"image": films(), "label": np.zeros((12, 0))}, r"shape \(12, 0\) for 12 images"),
        ({"image": films(), "label": np.eye(12, 1001)}, r"shape \(12, 1001\) for 12 images"),
        ({"image": films(), "label": np.array([0, None] * 6)}, "holds Python objects, which are never unpickled"),
        ({"image": np.array([films(), None], object), "label": np.arange(2)}, "holds Python objects"),
        ({"image": np.asfortranarray(films()), "label": np.arange(12)}, "stored in Fortran order.* Save it in C order"),
        ({"image": films().astype(np.int16), "label": np.arange(12)}, "images of type int16"),
        ({"image": films(shape=(8, 9, 4)), "label": np.arange(12)}, r"shape \(12, 8, 9, 4\)"),
        ({"image": films(shape=()), "label": np.arange(12)}, r"shape \(12,\)\. Expected uint8 or floating point"),
    ],
)
def test_an_archive_of_anything_else_is_refused_by_name(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as refused:
        archive(tmp_path / "a.npz", **arrays)
    assert str(refused.value).startswith(f"{tmp_path / 'a.npz'}: ")


@SAVES
def test_an_archive_cut_short_is_refused_in_a_sentence(tmp_path, save):
    archive(tmp_path / "a.npz", save, image=films(), image_label=np.arange(12))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read as an \.npz archive \(File is not a zip file\)"):
        NpzImages(locate(tmp_path / "a.npz"))


@SAVES
def test_a_flipped_bit_is_found_at_the_end_at_the_latest(tmp_path, save):
    images = archive(tmp_path / "a.npz", save, image=films(200), image_label=np.arange(200))
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "a.npz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz archive"):
        list(images.frames(0, 200))


def test_a_header_that_promises_more_than_the_archive_holds_costs_no_memory(tmp_path):
    content = b"\x93NUMPY\x01\x00"
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 1000000, 1000000, 3), }".ljust(117) + "\n"
    content += len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as opened:
        opened.writestr("image.npy", content)
        opened.writestr("image_label.npy", content)
    with pytest.raises(DataError, match=r"says that its images are of shape \(4, 1000000, 1000000, 3\), and holds 128"):
        NpzImages(locate(tmp_path / "a.npz"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_stays_flat_on_an_archive_of_300_megabytes(tmp_path, compression):
    path = tmp_path / "a.npz"
    count, one = 2000, 224 * 224 * 3
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 224, 224, 3), }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as opened:
        with opened.open("image.npy", "w", force_zip64=True) as stream:
            stream.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
            for number in range(count):
                stream.write(bytes([number % 251]) * one)
        with opened.open("image_label.npy", "w") as stream:
            np.save(stream, np.arange(count))
    measured = subprocess.run(
        [
            sys.executable,
            "-c",
            "import re, sys\n"
            "from pathlib import Path\n"
            "from cxr_ray.data.npz import NpzImages\n"
            "from cxr_ray.paths import locate\n"
            # Not ru_maxrss, which a process inherits from the one that started it.
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024\n"
            "images = NpzImages(locate(sys.argv[1]))\n"
            "before = peak()\n"
            "right = sum(int(film[0, 0, 0]) == n % 251 for n, film in enumerate(images.frames(0, images.count)))\n"
            "print(right, peak() - before)",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    right, grown = map(int, measured.stdout.split())
    assert right == count
    assert grown < 20, f"{grown} MB more for {count * one / 1e6:.0f} MB"


def test_images_larger_than_any_film_are_refused_before_one_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((1, 9000, 9000), np.uint8), image_label=np.zeros(1))
    with pytest.raises(DataError, match="each has 9,000 x 9,000 pixels, more than the 50,000,000"):
        NpzImages(locate(tmp_path / "a.npz"))
