"""The shipped serve_config.yaml and the arguments it may hold."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.deployment import deployment_to_schema
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from cxr_ray.errors import ConfigError
from cxr_ray.serving.access import KEYS_VARIABLE
from cxr_ray.serving.app import Classifier, application, build
from cxr_ray.serving.config import ROOT_VARIABLE, ServeArguments, read_arguments
from cxr_ray.serving.launch import APP_NAME

SHIPPED = Path(__file__).parents[2] / "serve_config.yaml"


@pytest.fixture
def shipped() -> dict[str, Any]:
    return yaml.safe_load(SHIPPED.read_text())


def unknown_keys(content: Any, annotation: Any, where: str = "") -> Iterator[str]:
    """Keys in a YAML tree that Ray's schema does not know, and would ignore without a word."""
    if isinstance(content, list):
        for i, item in enumerate(content):
            for inner in get_args(annotation):
                yield from unknown_keys(item, inner, f"{where}[{i}]")
        return
    if not isinstance(content, dict):
        return
    model = next(
        (m for m in (annotation, *get_args(annotation)) if isinstance(m, type) and issubclass(m, BaseModel)), None
    )
    if model is None:
        return
    for key, value in content.items():
        if key not in model.model_fields:
            yield f"{where}.{key}".lstrip(".")
        else:
            yield from unknown_keys(value, model.model_fields[key].annotation, f"{where}.{key}")


def test_the_shipped_file_is_what_ray_expects_and_has_no_unknown_key(shipped: dict[str, Any]) -> None:
    schema = ServeDeploySchema.model_validate(shipped)
    assert list(unknown_keys(shipped, ServeDeploySchema)) == []
    assert schema.http_options.host == "127.0.0.1"
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == (APP_NAME, "/")
    assert [deployment.name for deployment in application.deployments] == [Classifier.name]


@pytest.mark.parametrize(
    "path",
    [
        [],
        ["http_options"],
        ["logging_config"],
        ["applications", 0],
        ["applications", 0, "deployments", 0],
        ["applications", 0, "deployments", 0, "ray_actor_options"],
        ["applications", 0, "deployments", 0, "backpressure_config"],
    ],
)
def test_a_misspelt_key_is_found_at_every_level(shipped: dict[str, Any], path: list[Any]) -> None:
    inner = shipped
    for step in path:
        inner = inner[step]
    inner["max_ongoing_request"] = 1
    (found,) = unknown_keys(shipped, ServeDeploySchema)
    assert found.endswith("max_ongoing_request")


def test_the_shipped_arguments_build_the_application(shipped: dict[str, Any], bundle_path: Path) -> None:
    (application,) = shipped["applications"]
    module, name = application["import_path"].split(":")
    assert getattr(importlib.import_module(module), name) is build
    assert set(application["args"]) == set(ServeArguments.model_fields)
    build({**application["args"], "bundle": str(bundle_path)})


def test_the_shipped_options_are_those_of_the_code(shipped: dict[str, Any]) -> None:
    (deployment,) = shipped["applications"][0]["deployments"]
    del deployment["num_replicas"]  # Ray's own default, spelt out for the reader
    in_code = deployment_to_schema(Classifier).model_dump(include=set(deployment), exclude_unset=True)
    del in_code["request_router_config"]["request_router_class"]  # Ray's own default, spelt out by Ray
    assert in_code == deployment


def test_a_batch_fits_into_the_requests_a_replica_works_on() -> None:
    assert ServeArguments.model_fields["max_batch_size"].default <= Classifier.max_ongoing_requests


def test_a_relative_bundle_lies_below_the_root_or_the_working_directory(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(bundle_path.parent)
    assert read_arguments({"bundle": "bundle"}).bundle == str(bundle_path)
    monkeypatch.chdir("/")
    monkeypatch.setenv(ROOT_VARIABLE, str(bundle_path.parent))
    assert read_arguments({"bundle": "bundle"}).bundle == str(bundle_path)
    assert read_arguments({"bundle": f"file://{bundle_path}"}).bundle == f"file://{bundle_path}"


def test_a_missing_bundle_names_the_key_the_place_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        read_arguments({"bundle": "demo/bundle"})
    for word in ("key bundle", str(tmp_path / "demo/bundle"), ROOT_VARIABLE, "make demo", "cxr-ray promote"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, ["bundle", "missing"]),
        ({"bundle": ""}, ["bundle"]),
        ({"bundle": "b", "max_upload_mbs": 3}, ["max_upload_mbs", "did you mean 'max_upload_mb'"]),
        ({"bundle": "b", "max_upload_mb": 0}, ["max_upload_mb", "0"]),
        ({"bundle": "b", "max_batch_size": 0}, ["max_batch_size"]),
        ({"bundle": "b", "max_megapixels": "nan"}, ["max_megapixels"]),
        ({"bundle": "b", "insecure": "perhaps"}, ["insecure", "perhaps"]),
    ],
)
def test_arguments_that_are_not_allowed_are_named(args: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_arguments(args)
    for word in words:
        assert word in str(caught.value)


def test_without_keys_the_application_is_refused_unless_insecure(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"bundle": str(bundle_path)}
    for empty in ("", " , "):
        monkeypatch.setenv(KEYS_VARIABLE, empty)
        with pytest.raises(ConfigError, match=KEYS_VARIABLE):
            application(args)
    application({**args, "insecure": "true"})
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigError, match="HAProxy"):
        application({**args, "insecure": "true"})
    monkeypatch.setenv(KEYS_VARIABLE, "one, two")
    application(args)


def test_keys_travel_in_no_argument(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "do-not-tell")
    bound = application({"bundle": str(bundle_path)})._bound_deployment
    assert "do-not-tell" not in repr((bound.init_args, bound.ray_actor_options))


def test_ray_is_told_of_errors_in_the_one_way_it_passes_on() -> None:
    with pytest.raises(RayServeException, match=r"serve_config\.yaml, args, key bundle"):
        build({})
