"""A bundle answers as it did when it was made, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_ray.bundle import load_bundle, write_bundle
from cxr_ray.errors import BundleError, DecodeError


@pytest.fixture
def copy(untrained_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(untrained_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (150, 120), np.uint8)


def test_every_kind_of_input_gives_the_same_answer(untrained_bundle, film, tmp_path):
    bundle = load_bundle(untrained_bundle)
    file = tmp_path / "film.png"
    Image.fromarray(film).save(file)
    inputs = (film, np.stack([film] * 3, axis=-1), Image.fromarray(film), file, str(file), file.read_bytes())
    answers = [bundle.predict(image) for image in inputs]
    assert all(answer == answers[0] for answer in answers)
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)
    assert answers[0].label in bundle.classes
    assert answers[0].model == bundle.id


def test_a_batch_gives_the_answers_of_its_films(untrained_bundle, film):
    bundle = load_bundle(untrained_bundle)
    films = np.stack([bundle.prepare(film), bundle.prepare(255 - film)])
    together = bundle.predict_prepared(films)
    for one, image in zip(together, (film, 255 - film), strict=True):
        alone = bundle.predict(image)
        assert one.label == alone.label
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_an_explanation_sums_with_the_bias_to_the_logit(untrained_bundle, film):
    bundle = load_bundle(untrained_bundle)
    for name in bundle.classes:
        explanation = bundle.explain(film, name)
        bias = float(bundle.network.classifier.bias[bundle.class_index(name)])
        assert explanation.attribution.sum() + bias == pytest.approx(explanation.logit, abs=1e-4)
        assert explanation.overlay().shape == (64, 64, 3)


def test_an_unknown_class_is_refused_naming_those_there_are(untrained_bundle, film):
    with pytest.raises(BundleError, match="there is no class 'flu'; the bundle knows normal, covid"):
        load_bundle(untrained_bundle).explain(film, "flu")


def test_arrays_that_are_not_films_are_refused(untrained_bundle):
    with pytest.raises(DecodeError, match="float64 with shape"):
        load_bundle(untrained_bundle).predict(np.zeros((9, 9)))


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json", "README.md", "history.jsonl"])
def test_one_changed_byte_anywhere_is_found_and_named(copy, name):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"'{name}' is corrupted .*Copy the bundle again"):
        load_bundle(copy)


def test_a_bundle_whose_network_code_has_changed_does_not_load(untrained_bundle, monkeypatch):
    from cxr_ray.model import backbones

    original = backbones.build_backbones

    def coarser(preset):
        residual, xception, channels = original(preset)
        xception.stem[1].conv.stride = (1, 1)  # the same weights, another network
        return residual, xception, channels

    monkeypatch.setattr("cxr_ray.model.dual_backbone.build_backbones", coarser)
    with pytest.raises(BundleError, match="does not answer as it did when it was made"):
        load_bundle(untrained_bundle)


def test_missing_added_and_linked_files_are_refused(copy, tmp_path):
    (copy / "weights.pkl").write_bytes(b"no")
    with pytest.raises(BundleError, match=r"'weights\.pkl' does not belong to a bundle"):
        load_bundle(copy)
    (copy / "weights.pkl").unlink()
    (copy / "README.md").rename(tmp_path / "card")
    with pytest.raises(BundleError, match=r"'README\.md' is missing"):
        load_bundle(copy)
    (copy / "README.md").symlink_to(tmp_path / "card")
    with pytest.raises(BundleError, match=r"'README\.md' does not belong"):
        load_bundle(copy)


def test_what_is_not_a_bundle_is_explained(tmp_path):
    with pytest.raises(BundleError, match=r"there is no such folder.*cxr-ray promote"):
        load_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="there is no bundle here"):
        load_bundle(tmp_path)


def test_a_bundle_is_never_overwritten(untrained_bundle):
    bundle = load_bundle(untrained_bundle)
    with pytest.raises(BundleError, match="already exists"):
        write_bundle(untrained_bundle, bundle.info, bundle.network.state_dict(), "", [])


def test_a_bundle_is_written_and_read_by_uri_through_the_nodes_cache(untrained_bundle, film, monkeypatch, tmp_path):
    import fsspec

    monkeypatch.setenv("CXR_CACHE", str(tmp_path / "cache"))
    bundle = load_bundle(untrained_bundle)
    uri = "memory://bundles/one"
    written = write_bundle(uri, bundle.info, bundle.network.state_dict(), "# card\n", bundle.history())
    again = load_bundle(uri)
    assert again.id == written
    assert again.predict(film).probabilities == bundle.predict(film).probabilities
    fsspec.filesystem("memory").rm("/bundles", recursive=True)
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == [f"bundle-{written[:16]}"]


def test_a_bundle_predicts_and_explains_without_ray(untrained_bundle):
    script = (
        "import sys, numpy, cxr_ray\n"
        f"bundle = cxr_ray.load_bundle({str(untrained_bundle)!r})\n"
        "film = numpy.zeros((80, 70), numpy.uint8)\n"
        "bundle.predict(film), bundle.explain(film)\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
