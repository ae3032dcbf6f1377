"""What a reader of a data set hands to the import: the films it lists, and what is known about the set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

LUNG_MASK = "extra.lung_mask"  # paths of a film's lung masks, below the source folder, parted by |
Population = Literal["adult", "paediatric", "mixed", "unknown"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One film to import, before it is opened.

    Attributes:
        path: Relative to the source folder, with ``/``.
        label: The slug of its class.
        source: Where the film came from; in public sets of this task nearly a function of the label.
        patient_id: None where unknown.
        split: One of `cxr_ray.data.splits.SPLITS` where the set gives one.
        view: As the set writes it (PA, AP ...), None where unknown.
        sex: As the set writes it, None where unknown.
        age: Years, None where unknown.
        extra: Further columns, ``extra.<name>`` to text; ``extra.licence`` is the film's own licence.
        frame: Which image of a file that holds many; 0 in a file that holds one.
    """

    path: str
    label: str
    source: str
    patient_id: str | None = None
    split: str | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    extra: dict[str, str] = field(default_factory=dict)
    frame: int = 0


class SetFacts(BaseModel):
    """What should be known about a public set before a number from it is believed; goes into `dataset.json`.

    Attributes:
        name: As in ``--format``.
        title: As its authors call it.
        page: Where its authors publish it.
        licence: In their words, or what is known of it.
        population: Adults, children, or both.
        sources: Where its films were taken from.
        defects: What is known to be wrong with it, a sentence each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    page: str
    licence: str
    population: Population
    sources: list[str]
    defects: list[str]


@dataclass(frozen=True)
class Listing:
    """The films of a source folder.

    Attributes:
        files: Sorted by (path, frame); (path, frame) is unique.
        notes: Sentences for the import report: what was taken, and what was left out.
        set_aside: Films that are listed but not wanted (lateral views, CT slices): ``path`` and ``reason`` each.
        facts: About the public set, None where the films are the user's own.
    """

    files: list[SourceFile]
    notes: list[str] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    facts: SetFacts | None = None
