"""How heavy work is handed out: the `map` that functions here take, so that nothing in this layer knows Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

# `map(function, items)`, results in the order of the items: the built-in one, or `cxr_ray.cluster.parallel_map`.
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
