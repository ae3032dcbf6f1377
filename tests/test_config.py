"""Reading configuration: what YAML means, and complaints that name file, key, value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from cxr_ray.config import parse_override, read_yaml
from cxr_ray.errors import ConfigError
from cxr_ray.experiment import Experiment, load_experiment
from cxr_ray.tuning.space import Space


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("-2E5", -200000.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("12", 12),
        ("true", True),
        ("null", None),
        # In YAML 1.1 these are booleans and a date.
        ("on", "on"),
        ("no", "no"),
        ("2026-01-31", "2026-01-31"),
        ("2026-13-45", "2026-13-45"),
    ],
)
def test_values_mean_what_they_look_like(tmp_path, written, value):
    file = tmp_path / "a.yaml"
    file.write_text(f"a: {written}\nb: [{written}]\n")
    assert read_yaml(file) == {"a": value, "b": [value]}
    key, overridden = parse_override(f"a.b={written}")
    assert (key, overridden, type(overridden)) == ("a.b", value, type(value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\ntraining:\n  epochs: 3\n  epochs: 4\n", r"a\.yaml, line 4: .*'epochs' stands here again.* line 3"),
        (b"seed: !!timestamp 2026-13-45\n", r"a\.yaml: is not YAML \(month must be in 1\.\.12\)"),
        (b"name: \xff\xfe\n", r"a\.yaml: is not UTF-8 text \(byte 7\)"),
        (b"name: [\n", r"a\.yaml, line 2: is not YAML"),
        (b"name: \x00\n", r"a\.yaml: is not YAML \(unacceptable character"),
        (b"a: " + b"[" * 5000, r"a\.yaml: is not YAML"),
        (b"- a\n", r"a\.yaml: holds no keys"),
        (b"seed: 2026-13-45\n", r"a\.yaml, key seed: '2026-13-45' is not allowed: .*valid integer"),
    ],
)
def test_files_that_cannot_be_read_are_named_with_the_line(tmp_path, content, message):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_experiment(file)
    assert "\n" not in str(raised.value)


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: cannot be read \(Is a directory\)"):
        load_experiment(tmp_path / "folder.yaml")
    with pytest.raises(ConfigError, match=r"nothing\.yaml: there is no such file"):
        load_experiment(tmp_path / "nothing.yaml")


def test_the_same_key_may_stand_in_two_mappings_and_over_a_merged_one(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert read_yaml(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=2026-13-45", r"tiny with --set, key seed: '2026-13-45' is not allowed"),
        ("loss={kind: focal, kind: focal}", r"--set: the value of 'loss' is not YAML: .*'kind' stands here again"),
        ("loss.class_weights=atuo", r"key loss\.class_weights: 'atuo' is not allowed: .*'none' or 'auto', or .*dict"),
        ("loss.class_weights={covid: x}", r"key loss\.class_weights\.covid: 'x' is not allowed: .*valid number"),
        ("loss.class_weights.covid=-1", r"key loss\.class_weights: .*weight of 'covid' is -1\.0; it must be above 0"),
        ("training.epohcs=3", r"key training\.epohcs: unknown key \(did you mean 'epochs'\?\)"),
        ("optimization.learning_rate=.inf", r"key optimization\.learning_rate: inf is not allowed: .*finite"),
    ],
)
def test_what_an_override_gets_wrong_is_said_with_the_readers_own_keys(option, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_experiment("tiny", set_options=["training.epochs=2", option])
    assert "literal" not in str(raised.value)


def number_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if annotation is float:
            found.append(prefix + name)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += number_keys(annotation, f"{prefix}{name}.")
    return found


KEYS = [*number_keys(Experiment), "loss.recall_emphasis.covid", "loss.class_weights.covid"]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", KEYS)
def test_no_setting_takes_a_number_that_is_none(key, value):
    assert "optimization.learning_rate" in KEYS
    with pytest.raises(ConfigError, match=f"key {key}: (nan|-?inf) is not allowed"):
        load_experiment("tiny", set_options=[f"{key}={value}"])


@pytest.mark.parametrize("model", [Experiment, Space])
def test_a_seed_is_one_that_every_generator_takes(model):
    fields = {"base": "tiny", "parameters": {"seed": {"choice": [1]}}} if model is Space else {}
    assert model.model_validate(fields | {"seed": 2**32 - 1}).seed == 2**32 - 1
    with pytest.raises(ValueError, match="less than 4294967296"):
        model.model_validate(fields | {"seed": 2**32})
