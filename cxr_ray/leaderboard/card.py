"""The model card of a bundle: what it is for, what it was made from, how well it did, and where that ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cxr_ray.bundle import BundleInfo
from cxr_ray.data.splits import SPLITS
from cxr_ray.leaderboard.text import counted, metric_words, score_text, value_text
from cxr_ray.training.run_folder import DatasetSummary, RunInfo

_NETWORKS = {
    "reference": "ResNet50V2 and Xception side by side, one convolutional and three identity blocks on top",
    "tiny": "a narrow ResNetV2 and a narrow Xception side by side, one convolutional and three identity blocks on top",
}
_LOSSES = {"cross_entropy": "cross-entropy", "focal": "focal loss"}
_FITS = {"squash": "stretched to a square", "pad": "padded to a square", "crop": "cropped to the centre square"}


def model_card(info: BundleInfo, run: RunInfo) -> str:
    """Markdown for the bundle's `README.md`.

    Args:
        info: What the bundle says of itself.
        run: What the training run, or trial, says of itself.
    """
    parts = (
        f"# {_text(info.name)}",
        _purpose(info),
        "## Classes",
        _classes(info),
        "## Data",
        _data(run.dataset),
        "## Training",
        _training(info, run),
        "## Validation",
        _validation(info),
        "## Probabilities and labels",
        _calibration(info),
        "## How to use it",
        _use(),
        "## Limits",
        _limits(info),
    )
    return "\n\n".join(parts) + "\n"


def _purpose(info: BundleInfo) -> str:
    warnings = "".join(f"\n\n**{_text(warning)}**" for warning in info.warnings)
    return (
        f"A classifier of chest radiographs into {len(info.classes)} classes, promoted {info.created} by "
        "cxr-ray.\n\n"
        "**For research use. Not a medical device.** No diagnosis or treatment may rest on its answers or heatmaps.\n\n"
        "Its id is the sha256 of the file `SHA256SUMS` beside this card (`sha256sum SHA256SUMS`); every answer carries "
        f"it. A bundle never changes: one with another id is another model.{warnings}"
    )


def _classes(info: BundleInfo) -> str:
    names = ", ".join(f"`{name}`" for name in info.classes)
    return f"{names}. The watched class, whose misses cost most, is `{info.watched_class}`."


def _data(data: DatasetSummary) -> str:
    splits = [split for split in SPLITS if split in data.counts]
    rows = [[f"`{name}`", *(f"{data.counts[split].get(name, 0):,}" for split in splits)] for name in data.classes]
    totals = ["all", *(f"{sum(data.counts[split].values()):,}" for split in splits)]
    listed = [
        f"Dataset {_text(data.name)}, fingerprint `{data.fingerprint}`; films {_FITS[data.fit]} of "
        f"{data.image_size} pixels.",
        _table(["images", *splits], [*rows, totals]),
        _list("Sources, with images:", (f"{_text(name)}: {count:,}" for name, count in data.sources.items())),
        _list("Licences, with images:", (f"{_text(name)}: {count:,}" for name, count in data.licences.items())),
    ]
    if data.warnings:
        listed.append(_list("Warnings of the import:", map(_text, data.warnings)))
    return "\n\n".join(listed)


def _training(info: BundleInfo, run: RunInfo) -> str:
    experiment, provenance = run.experiment, info.provenance
    loss, optimization, training, augment = (
        experiment.loss,
        experiment.optimization,
        experiment.training,
        experiment.augment,
    )
    weights = value_text(loss.class_weights)
    emphasis = ", ".join(f"`{name}` times {factor:g}" for name, factor in loss.recall_emphasis.items())
    patience = f"stopping after {training.patience} without a better one" if training.patience else "no early stopping"
    flip = "mirrored at random" if augment.horizontal_flip else "never mirrored"
    from_search = ", ".join(f"`{key}` = {_text(value_text(value))}" for key, value in run.parameters.items())
    trial = f", trial {_text(run.trial)}" if run.trial else ""
    lines = [
        f"Run {_text(provenance['run'])}{trial}; experiment fingerprint `{run.experiment_fingerprint}`.",
        f"Network: {_NETWORKS[experiment.network.backbones]} (`{experiment.network.backbones}`), input "
        f"{training.image_size} x {training.image_size} pixels, one channel, from random weights; dropout "
        f"{experiment.network.dropout:g}.",
        f"Loss: {_LOSSES[loss.kind]}, class weights {weights}, recall emphasis {emphasis or 'none'}, label smoothing "
        f"{loss.label_smoothing:g}" + (f", gamma {loss.focal_gamma:g}." if loss.kind == "focal" else "."),
        f"Optimiser: AdamW, learning rate up to {optimization.learning_rate:.4g} over "
        f"{optimization.warmup_epochs:g} warm-up epoch(s), then down a cosine; weight decay "
        f"{optimization.weight_decay:.4g}, batches of {training.batch_size} over {counted(run.workers, 'worker')}.",
        f"Augmentation: exposure {augment.exposure:.4g}, geometry {augment.geometry:.4g} (0 off, 1 strongest), {flip}.",
        f"Length: {provenance['epochs']} of at most {training.epochs} epochs, {patience}; these are the weights of "
        f"epoch {provenance['best_epoch']}, the best by {metric_words(provenance['metric'])} on val. Seed "
        f"{experiment.seed}, precision {training.precision}.",
    ]
    if from_search:
        lines.append(f"Chosen by the search: {from_search}.")
    return "\n".join(f"- {line}" for line in lines)


def _validation(info: BundleInfo) -> str:
    metrics, counts = info.validation["metrics"], info.validation["images_by_class"]
    rows = [
        [f"`{name}`", f"{counts[name]:,}"]
        + [score_text(metrics[f"val/{kind}/{name}"]) for kind in ("recall", "precision", "f1")]
        for name in info.classes
    ]
    means = (score_text(metrics[f"val/{key}"]) for key in ("macro_recall", "macro_precision", "macro_f1"))
    rows.append(["mean over classes", f"{info.validation['images']:,}", *means])
    return (
        f"On {info.validation['images']:,} validation images, by the largest logit:\n\n"
        f"{_table(['class', 'n', 'recall', 'precision', 'F1'], rows)}\n\n"
        f"Accuracy {score_text(metrics['val/accuracy'])}, cross-entropy {score_text(metrics['val/loss'])}. "
        "`bundle.json` holds all metrics and the confusion matrix."
    )


def _calibration(info: BundleInfo) -> str:
    calibration = info.calibration
    if calibration.images:
        made = (
            f"Probabilities are `softmax(logits / temperature + bias)`, fitted on {calibration.images:,} images: one "
            "half of the calibration split; the other half fitted nothing."
        )
    else:
        made = "Probabilities are the plain softmax: there were too few images to calibrate them."
    rows = [
        [f"`{name}`", f"{bias:+.3f}", f"{threshold:.3f}"]
        for name, bias, threshold in zip(info.classes, calibration.bias, info.thresholds, strict=True)
    ]
    biases = _table(["class", "bias", "threshold"], rows)
    return (
        f"{made} The temperature is {calibration.temperature:.3f}.\n\n{biases}\n\n"
        "The label is the class whose probability is largest in units of its threshold. These thresholds keep the "
        "decision the network was trained for, its largest logit, whatever the biases."
    )


def _use() -> str:
    return """```sh
cxr-ray evaluate BUNDLE --data DATASET --out REPORT   # how good it is on the test split
cxr-ray explain BUNDLE FILM --out HEATMAPS            # answers with heatmaps
cxr-ray serve BUNDLE                                  # answers over HTTP
```

```python
from cxr_ray import load_bundle

bundle = load_bundle("BUNDLE")
prediction = bundle.predict("film.png")
print(prediction.label, prediction.probabilities)
heatmap = bundle.explain("film.png").overlay()
```"""


def _limits(info: BundleInfo) -> str:
    provenance = info.provenance
    trials = provenance["compared_trials"]
    chosen = f"the best of {trials:,} trials and its best epoch" if trials > 1 else "the best epoch"
    limits = [
        f"All numbers here are measured on val, which also chose {chosen}: they look better than they are. Evaluate on "
        "the test split, and on films of another hospital, before believing them.",
        "In public collections class and source go together. A network can tell hospitals, devices or file histories "
        "apart instead of findings, and score well without seeing a disease.",
        "Labels are the sources' own; nobody has read the films again.",
        "A film of anything else, a lateral view or another organ say, still gets one of these labels.",
        "A heatmap shows what the answer rests on, not where a disease is.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    aligned = ["---", *("---:" for _ in headers[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, aligned, *rows))


def _list(title: str, items: Iterable[str]) -> str:
    return "\n".join((title, "", *(f"- {item}" for item in items)))


def _text(value: str) -> str:
    """Foreign text as Markdown that shows just that, on one line."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(value.split()))
