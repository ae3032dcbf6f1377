"""Reading configuration: YAML files and ``a.b=c`` overrides into pydantic models, with errors people can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cxr_ray.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


# What stops PyYAML: besides its own errors, values that do not fit an explicit tag, and endless nesting.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: 1e-3 is a number, yes, on and 2026-01-31 are texts, keys stand once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                problem = f"the key '{key.value}' stands here again, first on line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


def _set_resolvers() -> None:
    prefix = "tag:yaml.org,2002:"
    replaced = [prefix + kind for kind in ("bool", "float", "timestamp")]
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
    special = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    _Loader.add_implicit_resolver(f"{prefix}float", re.compile(f"^(?:{number}|{special})$"), list("-+.0123456789"))
    _Loader.add_implicit_resolver(f"{prefix}bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


_set_resolvers()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: No such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror or error})", where=path) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start + 1})", where=path) from error
    except _NOT_YAML as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = path if line is None else f"{path}, line {line + 1}"
        raise ConfigError(f"is not YAML ({_problem(error)})", where=at) from error
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
        return key.strip(), yaml.load(value, _Loader)
    except _NOT_YAML as error:
        raise ConfigError(f"the value of '{key}' is not YAML: {value} ({_problem(error)})", where="--set") from error


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
    if any(_is_mapping(option) for option in _options(annotation)):
        return float
    raise KeyError(f"'{head}' has no keys below it, so '{key}' means nothing")


def _problem(error: BaseException) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _explain(error: ValidationError, model: type[BaseModel], where: object) -> ConfigError:
    complaints = [(_keys(model, detail["loc"]), detail) for detail in error.errors()]
    # A union complains once for each of its branches: the one that looked deepest was meant, or several together.
    first = complaints[0][0]
    same = [(path, detail) for path, detail in complaints if all(a == b for a, b in zip(path, first, strict=False))]
    path = max((path for path, _ in same), key=len)
    details = [detail for other, detail in same if other == path]
    at = f"{where}, key {'.'.join(path) or '(top level)'}"
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        allowed = _fields_at(model, path[:-1])
        hint = did_you_mean(path[-1], allowed)
        return ConfigError(f"unknown key{hint}; allowed here are {', '.join(allowed)}", where=at)
    if kind == "missing":
        return ConfigError("is needed and missing", where=at)
    messages = [detail["msg"].removeprefix("Value error, ") for detail in details]
    allowed = ", or ".join(f"{message[0].lower()}{message[1:]}" for message in messages)
    return ConfigError(f"{details[0].get('input')!r} is not allowed: {allowed}", where=at)


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys of an error's location: pydantic puts the branch of a union behind its key, which is no key."""
    keys: list[str] = []
    annotation: Any = model
    parts = iter(location)
    for part in parts:
        keys.append(str(part))
        annotation = _inside(annotation, str(part))
        if len(_options(annotation)) > 1:
            next(parts, None)
    return keys


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    annotation: Any = model
    for key in path:
        annotation = _inside(annotation, key)
    submodel = _submodel(annotation)
    return [field.alias or name for name, field in submodel.model_fields.items()] if submodel else []


def _inside(annotation: Any, key: str) -> Any:
    """The annotation of what lies under a key; None where that says nothing."""
    for option in _options(annotation):
        if _is_mapping(option):
            return get_args(option)[1]
    submodel = _submodel(annotation)
    fields = submodel.model_fields.items() if submodel else ()
    return next((field.annotation for name, field in fields if key in (name, field.alias)), None)


def _options(annotation: Any) -> list[Any]:
    """The branches of a union, None left out; anything else is its own only branch."""
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [option for option in get_args(annotation) if option is not NoneType]


def _submodel(annotation: Any) -> type[BaseModel] | None:
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict
