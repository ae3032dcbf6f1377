"""Spaces are checked whole before Ray starts, and every shipped one is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cxr_ray.errors import ConfigError
from cxr_ray.tuning.run import tune
from cxr_ray.tuning.space import check_space, load_space

SHIPPED = sorted(Path("tune_spaces").glob("*.yaml"))
GOOD = {"base": "tiny", "parameters": {"augment.exposure": {"uniform": [0, 1]}}}


def write(tmp_path: Path, content: dict | str) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_four_spaces_asked_for_are_shipped():
    assert {path.stem for path in SHIPPED} == {
        "augmentation_strength", "joint", "recall_weighted_loss", "smoke",
    }  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_is_valid_and_says_its_question(path, tmp_path):
    from cxr_ray.data.phantom_dataset import make_phantoms

    dataset = make_phantoms(tmp_path / "dataset", images=40, size=224, quiet=True)
    space, experiment = load_space(path)
    check_space(space, experiment, dataset, path)
    assert path.read_text().splitlines()[0].endswith("?") or "?" in path.read_text().split("\n#\n")[0]


def test_the_spaces_over_recall_weights_maximise_recall_at_a_precision():
    for name in ("recall_weighted_loss", "joint"):
        space, experiment = load_space(f"tune_spaces/{name}.yaml")
        assert space.metric == "val/recall_at_precision/covid"
        assert experiment.training.metric == space.metric
        assert experiment.training.precision_floor == 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trails": 4}, r"key trails: unknown key \(did you mean 'trials'\?\)"),
        ({"trials": 0}, r"key trials: 0 is not allowed"),
        ({"base": "tiyn"}, r"'tiyn' is neither a preset \(did you mean 'tiny'\?\)"),
        ({"metric": 3}, r"key metric: 3 is not allowed"),
        ({"parameters": {}}, r"key parameters: .* at least 1 item"),
        ({"parameters": {"los.kind": {"choice": ["focal"]}}}, r"parameters\.los\.kind: 'los' is not a key here \(did"),
        ({"parameters": {"loss.kind": {"chioce": [1]}}}, r"unknown key \(did you mean 'choice'\?\)"),
        ({"parameters": {"loss.kind": {"choice": ["focl"]}}}, r"parameters\.loss\.kind: 'focl' is not allowed"),
        ({"parameters": {"augment.exposure": {"uniform": [0, 2]}}}, r"parameters\.augment\.exposure: 2\.0 is not"),
        ({"parameters": {"augment.exposure": {"uniform": [1, 0]}}}, r"lower end 1 must be below"),
        ({"parameters": {"augment.exposure": {"loguniform": [0, 1]}}}, r"loguniform needs ends above 0"),
        ({"parameters": {"augment.exposure": {"loguniform": [-1, 1]}}}, r"loguniform needs ends above 0, got -1"),
        ({"parameters": {"augment.exposure": {"uniform": [0, float("nan")]}}}, r"exposure\.uniform\.1: nan .* finite"),
        ({"parameters": {"loss.focal_gamma": {"loguniform": [1, float("inf")]}}}, r"loguniform\.1: inf .* finite"),
        ({"parameters": {"loss.focal_gamma": {"choice": [1, float("inf")]}}}, r"loss\.focal_gamma: inf .* finite"),
        ({"resources": {"cpu": float("inf")}}, r"key resources\.cpu: inf is not allowed: .* finite"),
        ({"parameters": {"training.batch_size": {"uniform": [8, 64]}}}, r"training\.batch_size: 29\.\d+ is not"),
        ({"parameters": {"augment.exposure": {"uniform": [0, 1], "choice": [1]}}}, r"give exactly one of choice"),
        ({"overrides": {"augment.exposure": 0.5}}, r"is both fixed under overrides and searched"),
        ({"overrides": {"training.epoch": 3}}, r"overrides\.training\.epoch: 'epoch' is not a key here \(did you mean"),
        ({"scheduler": {"kind": "ahsa"}}, r"key scheduler\.kind: 'ahsa' is not allowed: input should be 'asha' or"),
    ],
)
def test_a_mistake_is_named_with_file_key_value_and_what_is_allowed(tmp_path, change, message):
    path = write(tmp_path, GOOD | change)
    with pytest.raises(ConfigError, match=message) as error:
        load_space(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "val/makro_f1"}, r"'val/makro_f1' is not a validation metric \(did you mean 'macro_f1'\?\)"),
        ({"parameters": {"loss.recall_emphasis.covd": {"uniform": [1, 2]}}}, r"'covd' is not a class .*'covid'"),
        ({"parameters": {"training.image_size": {"choice": [64, 512]}}}, r"asks for 512 px, the dataset holds 64 px"),
        (
            {"overrides": {"training.image_size": 96}},
            r"key overrides\.training\.image_size: .* asks for 96 px, the dataset holds 64 px\. Ask for 64 px or less",
        ),
    ],
)
def test_what_only_the_dataset_can_tell_is_told_before_ray_starts(tmp_path, phantoms, change, message):
    content = GOOD | {"overrides": {"training.image_size": 64}} | change
    if "training.image_size" in content["parameters"]:
        content["overrides"] = {"training.epochs": 1}
        content["parameters"] = {"training.image_size": {"choice": [64, 512]}}
        content["base"] = str(write_base(tmp_path))
    with pytest.raises(ConfigError, match=message):
        tune(write(tmp_path, content), phantoms, storage=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


def write_base(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("network: {backbones: tiny}\ntraining: {image_size: 64}\n")
    return path


def test_a_base_file_is_found_beside_the_space(tmp_path):
    write_base(tmp_path)
    space, experiment = load_space(write(tmp_path, GOOD | {"base": "small.yaml"}))
    assert experiment.training.image_size == 64
    assert space.name == "space"


def test_files_that_are_not_yaml_or_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load_space(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"space\.yaml, line \d+: is not YAML"):
        load_space(write(tmp_path, "base: [\n"))
    with pytest.raises(ConfigError, match=r"space\.yaml, line 2: .*the key 'base' stands here again, first on line 1"):
        load_space(write(tmp_path, "base: tiny\nbase: reference\n"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: cannot be read \(Is a directory\)"):
        load_space(tmp_path / "folder.yaml")


def test_a_range_may_be_written_with_exponents(tmp_path):
    text = "base: tiny\nparameters: {optimization.learning_rate: {choice: [1e-3, 1e-2]}}\n"
    space, _ = load_space(write(tmp_path, text))
    assert space.parameters["optimization.learning_rate"].choice == [0.001, 0.01]
