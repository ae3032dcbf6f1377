"""The errors that people are meant to read: what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class CxrError(Exception):
    """Root of every error this package raises on purpose; the command line prints it and exits with 2.

    Args:
        problem: What is wrong, one sentence without a full stop, naming the value and what is allowed.
        where: The file, key or address the problem lies in; printed in front.
        next_step: What the reader can do about it, one sentence; printed behind.
    """

    exit_code = 2

    def __init__(self, problem: str, *, where: object = None, next_step: str | None = None) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.next_step = next_step
        message = problem if self.where is None else f"{self.where}: {problem}"
        super().__init__(f"{message}. {next_step}" if next_step else message)

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and Ray carries errors between processes.
        return (_rebuild, (type(self), self.problem, self.where, self.next_step))


def _rebuild(kind: type[CxrError], problem: str, where: str | None, next_step: str | None) -> CxrError:
    return kind(problem, where=where, next_step=next_step)


class ConfigError(CxrError):
    """A key or value in an experiment, a tuning space or on the command line."""


class DataError(CxrError):
    """A dataset, a manifest, or the files one is made from."""


class DecodeError(CxrError):
    """Bytes that are not an image this package reads; `code` is stable and goes into HTTP answers."""

    def __init__(
        self, problem: str, *, where: object = None, next_step: str | None = None, code: str = "not_an_image"
    ) -> None:
        super().__init__(problem, where=where, next_step=next_step)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_decode, (self.problem, self.where, self.next_step, self.code))

    def at(self, where: object) -> Self:
        """The same error, naming the file it happened in."""
        return type(self)(self.problem, where=where, next_step=self.next_step, code=self.code)


def _rebuild_decode(problem: str, where: str | None, next_step: str | None, code: str) -> DecodeError:
    return DecodeError(problem, where=where, next_step=next_step, code=code)


class RunError(CxrError):
    """A training or tuning run that cannot be started, continued or read."""


class BundleError(CxrError):
    """A bundle that is missing, incomplete or does not match its checksums."""


class ClusterError(CxrError):
    """A Ray cluster that cannot be reached or cannot hold what was asked of it."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A hint naming the closest allowed word, or an empty string: ``" (did you mean 'epochs'?)"``."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
