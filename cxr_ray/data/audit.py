"""What a dataset's numbers can and cannot be believed for: leakage, duplicates, confounding, quality."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from cxr_ray.data.association import cramers_v, crosstab
from cxr_ray.data.duplicates import NearDuplicate, duplicate_groups, find_near_duplicates
from cxr_ray.data.leakage import Leak, dataset_leaks, describe_leaks
from cxr_ray.data.listing import SetFacts
from cxr_ray.data.mapping import Mapper
from cxr_ray.data.quality_flags import Threshold
from cxr_ray.data.source_probe import CUES, Probe, probe_sources
from cxr_ray.data.splits import SPLITS
from cxr_ray.data.store import Dataset

SCHEMA_VERSION = 1
AGE_BANDS = ((0, 18), (18, 40), (40, 60), (60, 80), (80, 151))
UNKNOWN = "unknown"
_PAIRS_LISTED = 2000
_TOLD = 0.05  # of balanced accuracy above guessing; less is of no use to a network
_CONFOUNDED = 0.3  # Cramér's V; Cohen's "medium" effect for a table with few degrees of freedom


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Film(_Part):
    """One film of a pair: where it lies and what stands beside it."""

    row: int
    path: str
    label: str
    source: str
    split: str
    patient_id: str | None


class Pair(_Part):
    """Two films that show the same; `correlation` as `NearDuplicate` has it, 0.93 to 1."""

    first: Film
    second: Film
    correlation: float


class Duplicates(_Part):
    """Exact and near duplicates.

    Attributes:
        pairs: How many pairs were found; of n copies of one film each is paired with at least one other.
        groups: How many films occur more than once.
        images: How many images that makes.
        across: Pairs by split, first and second; only those that lie in different splits leak.
        across_labels: Pairs whose films stand under different labels.
        across_sources: Pairs whose films come from different sources.
        not_grouped: Pairs that the dataset's duplicate groups do not know of.
        listed: The pairs that matter most, at most 2,000: across splits, then across labels, then across sources.
    """

    pairs: int
    groups: int
    images: int
    across: dict[str, int]
    across_labels: int
    across_sources: int
    not_grouped: int
    listed: list[Pair]


class AuditReport(_Part):
    """What `report.json` of an audit holds.

    Attributes:
        schema_version: Of this file.
        dataset: The dataset's name.
        uri: Where it lies.
        fingerprint: Of everything training can see.
        images: Films in all.
        classes: In the dataset's order.
        findings: What a reader must know, a sentence each, gravest first.
        counts: Films by split and class.
        sources: Films by source and class.
        cramers_v: Association of source and label, 0 to 1; None with one source.
        single_source_classes: Classes that come from one source, with it.
        probes: How well label and source are told without looking at lungs.
        leaks: How many patients and duplicate films lie in more than one split.
        leak_examples: Three of each.
        duplicates: Exact and near duplicates.
        sex: Films by split and sex.
        age: Films by split and band of years.
        view: Films by split and view.
        quality_flags: Films by flag.
        thresholds: What the flags mean here, by flag.
        sets: What is known of the public sets the films come from.
        warnings: Those of the import.
    """

    schema_version: int = SCHEMA_VERSION
    dataset: str
    uri: str
    fingerprint: str
    images: int
    classes: list[str]
    findings: list[str]
    counts: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    cramers_v: float | None
    single_source_classes: dict[str, str]
    probes: list[Probe]
    leaks: dict[str, int]
    leak_examples: list[str]
    duplicates: Duplicates
    sex: dict[str, dict[str, int]]
    age: dict[str, dict[str, int]]
    view: dict[str, dict[str, int]]
    quality_flags: dict[str, int]
    thresholds: dict[str, Threshold]
    sets: list[SetFacts]
    warnings: list[str]


def audit_dataset(dataset: Dataset, *, map: Mapper = map, seed: int = 0) -> AuditReport:
    """Measure what makes a dataset untrustworthy.

    Args:
        dataset: The opened dataset.
        map: Runs the search for duplicates in parallel, in order.
        seed: Of the source probe.
    """
    info = dataset.info
    labels, sources, splits = (dataset.column(name) for name in ("label", "source", "split"))
    leaks = dataset_leaks(dataset)
    duplicates = _duplicates(dataset, find_near_duplicates(dataset.pixels, map=map))
    by_source = crosstab(sources, labels)
    association = cramers_v(sources, labels)
    single = {
        name: present[0]
        for name in info.classes
        if len(present := [source for source, counts in by_source.items() if counts.get(name)]) == 1
    }
    probes = probe_sources(dataset, seed=seed)
    flags = Counter(flag for film in dataset.column("quality_flags") for flag in film or ())
    return AuditReport(
        dataset=info.name,
        uri=dataset.uri,
        fingerprint=info.fingerprint,
        images=dataset.manifest.num_rows,
        classes=info.classes,
        findings=_findings(leaks, duplicates, association, single, probes, len(by_source), flags),
        counts=info.counts,
        sources={source: {name: counts.get(name, 0) for name in info.classes} for source, counts in by_source.items()},
        cramers_v=association,
        single_source_classes=single,
        probes=probes,
        leaks=dict(Counter(leak.kind for leak in leaks)),
        leak_examples=_examples(leaks),
        duplicates=duplicates,
        sex=_by_split(splits, [value or UNKNOWN for value in dataset.column("sex")]),
        age=_by_split(splits, [age_band(value) for value in dataset.column("age")]),
        view=_by_split(splits, [value or UNKNOWN for value in dataset.column("view")]),
        quality_flags=dict(flags.most_common()),
        thresholds=info.thresholds,
        sets=info.sets,
        warnings=info.warnings,
    )


def age_band(years: float | None) -> str:
    """The band of an age: ``0-17``, ``18-39`` ... ``80+``, or ``unknown``."""
    if years is None:
        return UNKNOWN
    low, high = next((low, high) for low, high in AGE_BANDS if years < high)
    return f"{low}+" if high == AGE_BANDS[-1][1] else f"{low}-{high - 1}"


def _by_split(splits: Sequence[str], values: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = crosstab(splits, values)
    return {split: counts[split] for split in SPLITS if split in counts}


def _duplicates(dataset: Dataset, pairs: Sequence[NearDuplicate]) -> Duplicates:
    columns = {name: dataset.column(name) for name in ("path", "label", "source", "split", "patient_id")}
    known = dataset.column("duplicate_group")
    group_of = duplicate_groups(dataset.manifest.num_rows, [(pair.first, pair.second) for pair in pairs])
    sizes = [count for count in Counter(group_of.tolist()).values() if count > 1]

    def differ(pair: NearDuplicate, name: str) -> bool:
        return columns[name][pair.first] != columns[name][pair.second]

    across = Counter(" and ".join(_ordered(columns["split"], pair)) for pair in pairs)
    order = sorted(
        pairs,
        key=lambda pair: (*(not differ(pair, name) for name in ("split", "label", "source")), pair.first, pair.second),
    )

    def film(row: int) -> Film:
        return Film(row=row, **{name: values[row] for name, values in columns.items()})

    return Duplicates(
        pairs=len(pairs),
        groups=len(sizes),
        images=sum(sizes),
        across=dict(across.most_common()),
        across_labels=sum(differ(pair, "label") for pair in pairs),
        across_sources=sum(differ(pair, "source") for pair in pairs),
        not_grouped=sum(known[pair.first] != known[pair.second] for pair in pairs),
        listed=[
            Pair(first=film(pair.first), second=film(pair.second), correlation=pair.correlation)
            for pair in order[:_PAIRS_LISTED]
        ],
    )


def _ordered(splits: Sequence[str], pair: NearDuplicate) -> list[str]:
    return sorted((splits[pair.first], splits[pair.second]), key=SPLITS.index)


def _examples(leaks: Sequence[Leak]) -> list[str]:
    by_kind: dict[str, list[str]] = defaultdict(list)
    for leak in leaks:
        by_kind[leak.kind].append(str(leak))
    return [text for texts in by_kind.values() for text in texts[:3]]


def _findings(
    leaks: Sequence[Leak],
    duplicates: Duplicates,
    association: float | None,
    single: dict[str, str],
    probes: Sequence[Probe],
    sources: int,
    flags: Counter[str],
) -> list[str]:
    findings = []
    if leaks:
        findings.append(f"Leakage: {describe_leaks(leaks)}. Train and tune refuse this dataset.")
    if duplicates.not_grouped:
        findings.append(
            f"{duplicates.not_grouped:,} pair(s) of films show the same, but the dataset does not know it and may "
            "split them; import it again."
        )
    if duplicates.across_labels:
        findings.append(
            f"{duplicates.across_labels:,} pair(s) of films show the same under different labels: one of them is wrong."
        )
    if sources == 1:
        findings.append(
            "All films come from one source: nothing here can tell how a network does on films from elsewhere."
        )
    elif association is not None and association >= _CONFOUNDED:
        findings.append(
            f"Source and label hang together (Cramér's V {association:.2f}): a network can tell classes by the "
            "hospital."
        )
    if single and sources > 1:
        names = ", ".join(f"{name} ({source})" for name, source in single.items())
        findings.append(f"Cannot be assessed across sources, coming from one only: {names}.")
    for probe in probes:
        above = probe.balanced_accuracy - probe.chance
        if (probe.target, probe.cue) == ("label", "frame") and above > max(_TOLD, 3 * probe.spread):
            findings.append(
                f"The label is told from {CUES['frame']} with a balanced accuracy of {probe.balanced_accuracy:.2f} "
                f"(guessing: {probe.chance:.2f}), without seeing a lung."
            )
    if flags:
        listed = ", ".join(f"{count:,} {flag}" for flag, count in flags.most_common())
        findings.append(f"Quality flags: {listed}.")
    return findings
