"""Reading configuration: YAML files and ``a.b=c`` overrides into pydantic models, with errors people can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cxr_ray.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: No such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror or error})", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = path if line is None else f"{path}, line {line + 1}"
        raise ConfigError(f"is not YAML ({getattr(error, 'problem', None) or error})", where=at) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("holds no keys; expected a YAML mapping", where=path)
    return content


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key, making the mappings on the way; ``a.b.c`` and ``{"a": {"b": ...}}`` agree."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if not isinstance(inner, dict):
            inner = tree[parent] = {}
        tree = inner
    tree[last] = value


def parse_override(text: str) -> tuple[str, Any]:
    """``loss.kind=focal`` to a key and a YAML value.

    Raises:
        ConfigError: No equals sign, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}' is not of the form key=value", where="--set")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of '{key}' is not YAML: {value}", where="--set") from error


def validate(model: type[Model], content: Mapping[str, Any], where: object) -> Model:
    """Build a pydantic model, turning its first complaint into a `ConfigError` with file, key, value, allowed."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(error, model, where) from error


def field_at(model: type[BaseModel], key: str) -> Any:
    """The annotation of a dotted key in a model.

    Raises:
        KeyError: There is no such key; the argument is a hint with the allowed names.
    """
    head, _, rest = key.partition(".")
    fields = model.model_fields
    if head not in fields:
        raise KeyError(f"'{head}' is not a key here{did_you_mean(head, fields)}; allowed are {', '.join(fields)}")
    annotation = fields[head].annotation
    if not rest:
        return annotation
    inner = _submodel(annotation)
    if inner is not None:
        return field_at(inner, rest)
    if any(_is_mapping(option) for option in (annotation, *get_args(annotation))):
        return float
    raise KeyError(f"'{head}' has no keys below it, so '{key}' means nothing")


def _explain(error: ValidationError, model: type[BaseModel], where: object) -> ConfigError:
    first = error.errors()[0]
    # Discriminators and union branches appear in the location too; only keys mean something to the reader.
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "(top level)"
    value = first.get("input")
    at = f"{where}, key {key}"
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(model, path[:-1])
        hint = did_you_mean(path[-1], allowed)
        return ConfigError(f"unknown key{hint}; allowed here are {', '.join(allowed)}", where=at)
    if first["type"] == "missing":
        return ConfigError("is needed and missing", where=at)
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{value!r} is not allowed: {message[0].lower()}{message[1:]}", where=at)


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: type[BaseModel] | None = model
    parts = iter(path)
    for part in parts:
        if current is None or part not in current.model_fields:
            return []
        annotation = current.model_fields[part].annotation
        if _is_mapping(annotation):
            next(parts, None)  # the mapping's own key, which the user chose
        current = _submodel(annotation)
    return [field.alias or name for name, field in current.model_fields.items()] if current else []


def _submodel(annotation: Any) -> type[BaseModel] | None:
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", annotation) is dict
