from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_ray.bundle import Bundle
from cxr_ray.errors import BundleError, ConfigError, DataError, DecodeError
from cxr_ray.evaluation.explain import explain_files

from .conftest import CLASSES


@pytest.fixture
def film(films: Path) -> Path:
    return films / "covid_test_0.png"


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image, np.int16)


def test_every_class_gets_the_overlay_that_the_bundle_draws(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    explained = explain_files(bundle, [film], tmp_path / "out", quiet=True)
    saved = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert saved == explained.model_dump(mode="json")
    (answer,) = explained.films
    expected = bundle.predict(film)
    assert answer.predicted == expected.label
    assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert list(answer.classes) == CLASSES
    for name, evidence in answer.classes.items():
        explanation = bundle.explain(film, name)
        assert evidence.overlay == f"covid_test_0-{name}.png"
        assert evidence.probability == answer.probabilities[name]
        assert evidence.logit == pytest.approx(explanation.logit, abs=1e-4)
        assert evidence.supported == bool((explanation.attribution > 0).any())
        drawn = _pixels(tmp_path / "out" / evidence.overlay)
        assert np.abs(drawn - explanation.overlay()).max() <= 2
    height, width, _ = _pixels(tmp_path / "out" / "covid_test_0.png").shape
    assert width > 2 * height, "the film and three overlays stand side by side"
    assert len(list((tmp_path / "out").iterdir())) == len(CLASSES) + 2


def test_one_class_can_be_asked_for(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    (answer,) = explain_files(bundle, [film], tmp_path / "out", class_name="lung_opacity", quiet=True).films
    assert list(answer.classes) == ["lung_opacity"]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"covid_test_0-lung_opacity.png", "covid_test_0.png", "explanations.json"}


def test_an_unknown_class_is_refused_before_anything_is_written(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no class 'flu'; the bundle knows normal, covid, lung_opacity"):
        explain_files(bundle, [film], tmp_path / "out", class_name="flu", quiet=True)
    assert not list(tmp_path.iterdir())


def test_all_unreadable_files_are_named_and_nothing_is_written(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    text, cut = tmp_path / "notes.png", tmp_path / "cut.png"
    text.write_text("not a film")
    cut.write_bytes(film.read_bytes()[:2000])
    with pytest.raises(DecodeError) as caught:
        explain_files(bundle, [text, film, cut, tmp_path / "gone.png"], tmp_path / "out", quiet=True)
    assert "3 of 4 files cannot be read" in str(caught.value)
    assert all(name in str(caught.value) for name in ("notes.png", "cut.png", "gone.png"))
    assert caught.value.exit_code == 2
    assert {file.name for file in tmp_path.iterdir()} == {"notes.png", "cut.png"}
    with pytest.raises(DecodeError, match=r"cut\.png: is truncated"):
        explain_files(bundle, [cut], tmp_path / "out", quiet=True)


def test_a_folder_stands_for_its_images(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / ".hidden").mkdir()
    for name in ("b.png", "deep/a.png", ".hidden/c.png"):
        shutil.copy(film, source / name)
    (source / "readme.txt").write_text("")
    explained = explain_files(bundle, [source, source / "b.png"], tmp_path / "out", class_name="covid", quiet=True)
    assert [Path(answer.image).name for answer in explained.films] == ["b.png", "a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        explain_files(bundle, [tmp_path / "empty"], tmp_path / "out2", quiet=True)
    with pytest.raises(ConfigError, match="no image was given"):
        explain_files(bundle, [], tmp_path / "out2", quiet=True)


def test_films_of_the_same_name_do_not_overwrite_each_other(bundle: Bundle, film: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = ["a/film.png", "b/film.png", "b/FILM.png", "film-covid.png", "film-2.png"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, source / name)
    explained = explain_files(
        bundle, [source / name for name in names], tmp_path / "out", class_name="covid", quiet=True
    )
    pictures = [name for answer in explained.films for name in (answer.picture, answer.classes["covid"].overlay)]
    assert len({name.lower() for name in pictures}) == 2 * len(names)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*pictures, "explanations.json"}
    assert explained.films[0].picture == "film.png"
    assert explained.films[1].picture == "film-2.png"


@pytest.mark.parametrize("name", ["x" * 240 + ".png", "影 $x$ <script>.png", "weiß_$.png"])
def test_long_and_unusual_file_names_are_explained_too(bundle: Bundle, film: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(film, tmp_path / name)
    (answer,) = explain_files(bundle, [tmp_path / name], tmp_path / "out", class_name="covid", quiet=True).films
    assert (tmp_path / "out" / answer.picture).is_file()
    assert Path(answer.image).name == name


def test_former_explanations_are_replaced_only_when_asked_and_foreign_pictures_never(
    bundle: Bundle, films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = films / "covid_test_0.png", films / "covid_test_1.png"
    explain_files(bundle, [first], out, class_name="covid", quiet=True)
    with pytest.raises(DataError, match="already holds"):
        explain_files(bundle, [second], out, quiet=True)
    explain_files(bundle, [second], out, class_name="covid", overwrite=True, quiet=True)
    assert not (out / "covid_test_0.png").exists()
    shutil.copy(first, out / "my_film.png")
    with pytest.raises(DataError, match=r"holds 'my_film\.png'"):
        explain_files(bundle, [out / "my_film.png"], out, overwrite=True, quiet=True)
    assert (out / "my_film.png").is_file()


def test_a_broken_write_leaves_nothing_behind(
    bundle: Bundle, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxr_ray.evaluation.explain.png", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left"):
        explain_files(bundle, [film], tmp_path / "out", quiet=True)
    assert not list(tmp_path.iterdir())
