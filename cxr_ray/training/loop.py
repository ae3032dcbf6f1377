"""The one training loop: plain PyTorch, the same arithmetic under every launcher."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cxr_ray.data.loader import FilmDataset, TrainSampler, to_input, train_loader
from cxr_ray.data.store import Dataset
from cxr_ray.errors import ConfigError, RunError
from cxr_ray.experiment import Experiment, lower_is_better
from cxr_ray.metrics.classification import classification_metrics
from cxr_ray.model.dual_backbone import DualBackbone, build_network
from cxr_ray.model.losses import ClassificationLoss, build_loss
from cxr_ray.model.optimization import build_optimizer, learning_rate_at
from cxr_ray.training.checkpoints import load_checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from cxr_ray.training.inference import Inference, Workers
from cxr_ray.training.run_folder import Evidence, Replaced, RunFolder, Status, evidence_table

# Remote storage is told less often: every request is one that somebody pays for.
_STATUS_INTERVAL_S, _REMOTE_STATUS_INTERVAL_S = 1.0, 10.0


class Reporter(Protocol):
    """Where the loop's news goes: Ray Train, Ray Tune, or nowhere."""

    def report(self, row: dict[str, Any]) -> None:
        """Called by every worker after every epoch, with the row of `history.jsonl`."""


@dataclass
class Progress:
    """What a resumed run must know beside weights and optimiser."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    evidence: Evidence | None = None


def run_loop(
    experiment: Experiment,
    dataset: Dataset,
    folder: RunFolder,
    reporter: Reporter,
    device: torch.device,
) -> Status:
    """Train to the end, to early stopping, or on from the newest valid checkpoint in `folder`.

    Runs in every worker of an initialised `torch.distributed` group, or alone. Only the first worker writes.

    Args:
        experiment: What to train.
        dataset: With train, val and calibration splits; test is never touched.
        folder: The run's folder, `experiment.json` already in it.
        reporter: Told of every epoch.
        device: Where the network lives.

    Returns:
        The run's last status.

    Raises:
        RunError: The loss is no longer a number.
        Replaced: Somebody else started the loop in this folder after this one.
    """
    return _Loop(experiment, dataset, folder, reporter, device).run()


class _Loop:
    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        folder: RunFolder,
        reporter: Reporter,
        device: torch.device,
    ) -> None:
        self.experiment, self.dataset, self.folder = experiment, dataset, folder
        self.reporter, self.device = reporter, device
        self.config = experiment.training
        self.workers = Workers.current()
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.attempt, self.replaced = 0, False
        self.notes: list[str] = []
        self.step, self.steps = 0, 0
        self._status_written = 0.0
        torch.manual_seed(experiment.seed)
        self.network = build_network(experiment.network, len(dataset.classes))
        memory_format = torch.channels_last if self.config.channels_last else torch.contiguous_format
        self.network.to(device).to(memory_format=memory_format)
        self.memory_format = memory_format
        self.autocast = _autocast(self.config.precision, device)
        self.inference = Inference(
            self.network, dataset, self.config, device, self.autocast, self.workers, self._sign_of_life
        )
        self.train_rows = dataset.rows("train")
        self.sampler = TrainSampler(
            dataset.labels[self.train_rows],
            self.config.batch_size,
            self.workers.rank,
            self.workers.count,
            experiment.seed,
            self.config.sampling,
        )
        counts = [dataset.info.counts["train"][name] for name in dataset.classes]
        self.loss: ClassificationLoss = build_loss(experiment.loss, dataset.classes, counts).to(device)
        self.optimizer = build_optimizer(experiment.optimization, self.network)
        films = FilmDataset(dataset, self.train_rows, self.config.image_size, experiment.augment, seed=experiment.seed)
        self.loader = train_loader(films, self.sampler, self.config.loader_processes, pin_memory=device.type == "cuda")

    def run(self) -> Status:
        self._begin()
        self._resume()
        self._write_status(Status(state="running"))
        # After resuming: wrapping broadcasts the first worker's weights to the others.
        model = self._distributed()
        status = Status(state="finished", reason="all epochs done")
        while self.progress.epoch < self.config.epochs:
            if self._out_of_patience():
                break
            row = self._epoch(model)
            self.reporter.report(row)
        if self.progress.epoch < self.config.epochs:
            status = Status(state="stopped", reason=f"no better {self.config.metric} for {self.config.patience} epochs")
        self._write_status(status)
        return status

    def _distributed(self) -> nn.Module:
        if self.workers.count == 1:
            return self.network
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Statistics of batch normalisation are averaged before every validation instead of being overwritten
        # by the first worker's at every step.
        return DistributedDataParallel(self.network, device_ids=ids, broadcast_buffers=False)

    def _begin(self) -> None:
        """Say that the run goes on, which also tells a loop that is still at work here to stop."""
        if self.workers.is_first:
            before = self.folder.status() or Status(state="running")
            self.attempt = before.attempt + 1
            update = {"state": "running", "reason": "", "attempt": self.attempt, "notes": []}
            self.folder.write_status(before.model_copy(update=update))

    def _resume(self) -> None:
        epoch, state, skipped = newest_checkpoint(self.folder.location) if self.workers.is_first else (0, None, [])
        for torn in skipped:
            self.notes.append(f"skipped checkpoint {torn}: its checksums do not verify")
        epoch = self.workers.from_first(epoch)
        if epoch == 0:
            return
        state = state or load_checkpoint(self.folder.location, epoch)
        if state is None:
            # A shared file system may show it late on other nodes; Ray starts the workers again.
            raise OSError(f"{self.folder}: checkpoint {epoch} cannot be read on every node")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        stored = state["evidence"]
        evidence = Evidence(epoch=stored["epoch"], **{key: stored[key].numpy() for key in stored if key != "epoch"})
        self.progress = Progress(epoch, state["best_epoch"], state["best_score"], evidence)
        # From the checkpoint, not from the file, which may be ahead of it or damaged.
        self.history = json.loads(state["history"])
        if self.workers.is_first:
            self.folder.write_history(self.history)
            self.folder.write_evidence(evidence, evidence_table(evidence, self.dataset.manifest))
        self.notes.append(f"resumed after epoch {epoch}")

    def _epoch(self, model: nn.Module) -> dict[str, Any]:
        epoch = self.progress.epoch
        started = time.perf_counter()
        trained = self._train_epoch(model, epoch)
        self.workers.average_buffers(self.network)
        val = self._predict("val")
        labels = torch.from_numpy(self.dataset.labels[val[0]])
        metrics = classification_metrics(
            val[1], labels, self.dataset.classes, precision_floor=self.config.precision_floor
        )
        row = trained | {f"val/{key}": value for key, value in metrics.items()}
        score = self._score(row)
        self.progress.epoch = epoch + 1
        is_best = score > self.progress.best_score
        if is_best:
            self.progress.best_score, self.progress.best_epoch = score, epoch + 1
            self.progress.evidence = self._evidence(val)
        row = {"epoch": epoch + 1, "best": is_best, "best_epoch": self.progress.best_epoch, **row}
        sign = -1 if lower_is_better(self.config.metric) else 1
        row["score"] = sign * self.progress.best_score
        row["seconds"] = round(time.perf_counter() - started, 3)
        self.history.append(row)
        self.step, self.steps = 0, 0
        with self.workers.together():
            if self.workers.is_first:
                self._save(is_best)
        return row

    def _train_epoch(self, model: nn.Module, epoch: int) -> dict[str, float]:
        model.train()
        self.sampler.epoch = epoch
        # Dropout's randomness follows from the epoch, not from what ran before: a resumed run needs no
        # generator state to go on exactly as the uninterrupted one.
        torch.manual_seed(_seed(self.experiment.seed, epoch, self.workers.rank))
        steps = len(self.sampler)
        total = torch.zeros((), device=self.device)
        waited, rate = 0.0, 0.0
        started = ready = time.perf_counter()
        for step, (images, labels, _rows) in enumerate(self.loader):
            waited += time.perf_counter() - ready
            rate = learning_rate_at(self.experiment.optimization, epoch * steps + step, steps, self.config.epochs)
            total += self._step(model, images, labels, rate)
            self.step, self.steps = step + 1, steps
            self._sign_of_life()
            ready = time.perf_counter()
        seconds = time.perf_counter() - started
        loss = self.workers.sum(total).item() / steps
        if not math.isfinite(loss):
            raise RunError(
                f"the training loss became {loss} in epoch {epoch + 1}",
                where=self.folder,
                next_step=f"Lower optimization.learning_rate (now {self.experiment.optimization.learning_rate:g})",
            )
        return {
            "train/loss": loss,
            "learning_rate": rate,
            "images_per_s": round(steps * self.sampler.batch_size / seconds, 1),
            "data_wait_share": round(waited / seconds, 4),
        }

    def _step(self, model: nn.Module, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = images.to(self.device, non_blocking=True)
        inputs = to_input(images).contiguous(memory_format=self.memory_format)
        with self.autocast():
            logits = model(inputs)
        loss = self.loss(logits, labels.to(self.device, non_blocking=True), self.sampler.batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        # Workers' gradients are averaged; the loss is a share of the global sum, so it is scaled back up.
        (loss * self.workers.count).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.experiment.optimization.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _predict(self, split: str) -> tuple[np.ndarray, Tensor]:
        rows = self.dataset.rows(split)
        return rows, self.inference.logits(rows)

    def _evidence(self, val: tuple[np.ndarray, Tensor]) -> Evidence:
        calibration = self._predict("calibration")
        rows = np.concatenate([val[0], calibration[0]])
        return self.inference.evidence(rows, torch.cat([val[1], calibration[1]]), self.progress.best_epoch)

    def _score(self, row: dict[str, Any]) -> float:
        if self.config.metric not in row:
            raise ConfigError(f"'{self.config.metric}' is not measured", where="training.metric")
        value = float(row[self.config.metric])
        return -value if lower_is_better(self.config.metric) else value

    def _save(self, is_best: bool) -> None:
        if self._is_replaced():
            raise Replaced(
                "another process has gone on with this run",
                where=self.folder,
                next_step="Nothing is lost: see how far it is with cxr-ray leaderboard",
            )
        evidence = self.progress.evidence
        assert evidence is not None  # the first epoch is always the best so far
        stored = {"epoch": evidence.epoch} | {
            key: torch.from_numpy(getattr(evidence, key))
            for key in ("rows", "logits", "class_means", "covariance", "counts")
        }
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_epoch": self.progress.best_epoch,
            "best_score": self.progress.best_score,
            "evidence": stored,
            "history": json.dumps(self.history),
        }
        save_checkpoint(self.folder.location, self.progress.epoch, state)
        if is_best:
            self.folder.write_evidence(evidence, evidence_table(evidence, self.dataset.manifest))
        self.folder.write_history(self.history)
        prune_checkpoints(self.folder.location, self.progress.best_epoch)
        self._write_status(Status(state="running"))

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.progress.epoch - self.progress.best_epoch >= patience

    def _sign_of_life(self) -> None:
        interval = _STATUS_INTERVAL_S if self.folder.location.is_local else _REMOTE_STATUS_INTERVAL_S
        if time.monotonic() - self._status_written >= interval:
            # One that cannot be written is no reason to lose the epoch.
            with suppress(OSError):
                self._write_status(Status(state="running"))
            self._status_written = time.monotonic()

    def _write_status(self, status: Status) -> None:
        if not self.workers.is_first or self._is_replaced():
            return
        update = {
            "epoch": self.progress.epoch,
            "epochs": self.config.epochs,
            "step": self.step,
            "steps": self.steps,
            "attempt": self.attempt,
            "notes": self.notes,
        }
        self.folder.write_status(status.model_copy(update=update))
        self._status_written = time.monotonic()

    def _is_replaced(self) -> bool:
        """Whether the loop was started again here: workers outlive a killed driver or a lost node by a moment."""
        if not self.replaced:
            status = self.folder.status()
            self.replaced = status is not None and status.attempt > self.attempt
        return self.replaced


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "fp32" or (precision == "auto" and not _computes_bf16(device)):
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions bf16 on a CPU is emulated and slower than fp32.
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


def network_of(state: dict[str, Any], experiment: Experiment, classes: int) -> DualBackbone:
    """The network of a checkpoint's state, on the CPU, in eval mode."""
    network = build_network(experiment.network, classes)
    network.load_state_dict(state["network"])
    return network.eval()
