"""A measurement: both tests on the weights as they are now, agreed between the processes that train together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_sanity.callback.fixed_probe import FixedProbe
from lightning_sanity.callback.max_time import Allowance, Parts
from lightning_sanity.callback.narration import Narration
from lightning_sanity.callback.released_weights import Ledger, subject
from lightning_sanity.callback.trainer import gatherer, interruptible, occasion, progress_lines
from lightning_sanity.data_randomization.drt import data_randomization_test
from lightning_sanity.data_randomization.logged import memorization_logged
from lightning_sanity.explanation.options import DEFAULTS as COMMON
from lightning_sanity.explanation.probe import Probe
from lightning_sanity.model import checkpoint
from lightning_sanity.model.clone import clone, weights_digest
from lightning_sanity.model.sharded import measured_in_place
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test, rehearse
from lightning_sanity.parameter_randomization.schedule import AUTO_TRIALS
from lightning_sanity.resources.fatal_errors import must_end
from lightning_sanity.resources.processes import Share, Together
from lightning_sanity.result.sanity_result import SanityResult

_WATCHING = 3  # trials of a measurement that others will follow, where the test may choose: enough to see how it goes
WATCHED = _WATCHING / AUTO_TRIALS[0]
"""The share of a whole measurement's trials that such a one makes, where the test may choose."""


@dataclass(frozen=True)
class Measurement:
    """What a measurement gave: a result, or why there is none.

    Attributes:
        result: Of the parameter randomization test; the same on every process, or None on all.
        labels: Of the data randomization test, likewise.
        why: Why there is no result, in words; the same on every process.
        error: What was raised on this process in its place, if anything was.
        why_unlabelled: Why the data randomization test has no result, where it was to be run.
        unlabelled: What it raised on this process, if anything.
    """

    result: SanityResult | None = None
    labels: SanityResult | None = None
    why: str | None = None
    error: BaseException | None = None
    why_unlabelled: str | None = None
    unlabelled: Exception | None = None


@dataclass(frozen=True)
class Tests:
    """What is measured, and how; the same all through a run.

    Attributes:
        options: Arguments of the parameter randomization test; the data randomization test takes those it knows.
        single_precision: Whether float32 is measured in, whatever the trainer's own precision is.
        reference: Checkpoint of the model trained on permuted labels, if it is compared.
        raises: Whether errors will be raised, and keep their tracebacks.
        lines: Whether there is an occasional line of progress.
    """

    options: Mapping[str, Any]
    single_precision: bool
    reference: str | Path | None
    raises: bool
    lines: bool


class Instrument:
    """Measures as often as asked, on the same probe, within the time that there is.

    Args:
        tests: What is measured, and how.
        probe: What is explained.
        allowance: How long it may take.
        ledger: Told of every measurement.
        narration: Told what there was no time for.

    Attributes:
        parts: How the time of the last measurement was divided.
    """

    def __init__(
        self, tests: Tests, probe: FixedProbe, allowance: Allowance, ledger: Ledger, narration: Narration
    ) -> None:
        self._tests, self._probe = tests, probe
        self._allowance, self._ledger, self._narration = allowance, ledger, narration
        self.parts = Parts()

    def rehearse(self, trainer: pl.Trainer, module: pl.LightningModule) -> Exception | None:
        """What will keep it from measuring, as far as the untrained model tells; one process finds out alone.

        Args:
            trainer: The trainer, in its dry validation run.
            module: Its module.
        """
        clone_fn, single = self._tests.options["clone_fn"], self._tests.single_precision
        if measured_in_place(module, clone_fn):
            return None
        try:
            probe = self._probe.early(trainer, module)
            if probe is not None:
                with nullcontext() if single else trainer.precision_plugin.forward_context():
                    options = {**self._tests.options, "target": self._target(probe), "labels": probe.labels}
                    del options["pictures"]
                    rehearse(subject(module, Share(), clone_fn, single), probe.inputs, **options)
        except Exception as error:
            return self._probe.beside_a_batch(error)
        return None

    def measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, restored: Mapping[str, Any], kept: SanityResult | None
    ) -> Measurement:
        """Measure the weights as they are now; what goes wrong is part of the answer.

        Args:
            trainer: The running trainer.
            module: Its module.
            restored: See ``FixedProbe.of``.
            kept: The last result of the data randomization test, which stands where there is no time for another.
        """
        gather = gatherer(trainer)
        kind = Together if measured_in_place(module, self._tests.options["clone_fn"]) else Share
        share = kind(trainer.global_rank, trainer.world_size, gather)
        result, labels, error = None, None, None
        try:
            result, labels = self._run(trainer, module, share, restored, kept)
        except (Exception, SystemExit) as raised:
            if must_end(raised):
                raise
            error = self._kept(self._probe.beside_a_batch(raised) if isinstance(raised, Exception) else raised)
            share.fail(error)
        # Ranks must agree, or the next collective hangs; and they must log the same value.
        unlabelled = labels if isinstance(labels, Exception) else None
        told = [None if each is None else str(each) for each in (error, unlabelled)]
        found = gather((*told, 0.0 if result is None else result.seconds))
        why = next((message for message, _, _ in found if message is not None), None)
        why_unlabelled = next((message for _, message, _ in found if message is not None), None)
        return Measurement(
            None if result is None or why is not None else replace(result, seconds=max(each for *_, each in found)),
            labels if isinstance(labels, SanityResult) and why_unlabelled is None else None,
            why,
            error,
            why_unlabelled,
            unlabelled,
        )

    def _kept(self, error: BaseException) -> BaseException:
        """A traceback keeps the clone alive, and is wanted only where it will be shown."""
        if self._tests.raises:
            return error
        error.__cause__ = None
        return error.with_traceback(None)

    def _run(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        share: Share,
        restored: Mapping[str, Any],
        kept: SanityResult | None,
    ) -> tuple[SanityResult, SanityResult | Exception | None]:
        """The result, and that of the comparison with the stored model or why there is none."""
        tick = interruptible(trainer, progress_lines(trainer) if self._tests.lines else lambda done, total, label: None)
        known = self._probe.known
        probe = self._probe.of(trainer, module, share, restored)
        single = self._tests.single_precision
        measured = subject(module, share, self._tests.options["clone_fn"], single)
        parts = self._allowance.divide(free=not known)
        self.parts = parts if self._allowance.max_time is None else share.exchange(parts)[0]
        with nullcontext() if single else trainer.precision_plugin.forward_context():
            options = {**self._tests.options, "target": self._target(probe), "labels": probe.labels}
            if options["trials"] == "auto" and not self.parts.decide:
                options |= {"trials": _WATCHING}
            if trainer.fast_dev_run:  # type: ignore[attr-defined]  # only whether it runs at all
                options |= {"trials": 1, "max_steps": 1}
            with self._allowance.timing("test"):
                result = parameter_randomization_test(
                    measured,
                    probe.inputs,
                    **options,
                    max_seconds=self.parts.test,
                    extend_within=self.parts.extend,
                    share=share,
                    progress=tick,
                )
            labels = self._compared(trainer, measured, probe, options, kept)
        digest = result.weights_digest if measured is module or share.rank else weights_digest(module)
        step = self._ledger.measure(trainer, digest)
        settings = {**result.settings, **occasion(trainer)}
        return replace(result, step=step, probe_ids=probe.ids, weights_digest=digest, settings=settings), labels

    def _target(self, probe: Probe) -> Any:
        """What is explained of the probe's samples."""
        if self._tests.options["target"] != "labels":
            return self._tests.options["target"]
        if probe.labels is None:
            raise ValueError(
                "target='labels' needs one class index per sample, which the probe does not have: pass a class index, "
                "a function outputs -> (N,), or one of lightning_sanity.targets"
            )
        return probe.labels

    def _compared(
        self,
        trainer: pl.Trainer,
        measured: nn.Module,
        probe: Probe,
        options: Mapping[str, Any],
        kept: SanityResult | None,
    ) -> SanityResult | Exception | None:
        """The data randomization test against the stored model; every rank runs it, with the same result.

        An error is returned: it informs beside the other test, and must not cost its result.
        """
        if self._tests.reference is None:
            return None
        if not self.parts.compare:
            self._narration.warn("max_time is too short for the data randomization test: its last result is kept")
            return kept
        shared = {name: options[name] for name in ("target", "labels", "methods", "pictures", *COMMON)}
        try:
            learned = memorization_logged(trainer, self._tests.reference)
            other = clone(measured, options["clone_fn"])
            try:
                other.load_state_dict(checkpoint.load(self._tests.reference))
            except RuntimeError as error:
                raise ValueError(f"`reference_checkpoint` does not fit the model: {error}") from error
            with self._allowance.timing("labels"):
                return data_randomization_test(
                    measured, other, probe.inputs, memorization=learned, progress=False, **shared
                )
        except Exception as error:
            return error if self._tests.raises else error.with_traceback(None)
