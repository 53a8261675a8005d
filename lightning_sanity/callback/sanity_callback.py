"""SaliencySanityCallback: when the test runs, on which ranks, and what happens with the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import Unpack, override

from lightning_sanity import similarity as similarity_module
from lightning_sanity.attribution import Method, resolve_all
from lightning_sanity.callback.conclusion import NEVER_REACHED, Conclusion, undecided
from lightning_sanity.callback.deferred_report import Publication
from lightning_sanity.callback.drift import drift
from lightning_sanity.callback.fixed_probe import FixedProbe, stream_warning
from lightning_sanity.callback.kept_state import kept_of, restored
from lightning_sanity.callback.max_time import Allowance
from lightning_sanity.callback.measurement import WATCHED, Instrument, Measurement, Tests
from lightning_sanity.callback.monitors import monitors, shared_key, stale_monitor
from lightning_sanity.callback.narration import Narration
from lightning_sanity.callback.references import References
from lightning_sanity.callback.released_weights import UNKNOWN, Ledger, obstacle, unaveraged
from lightning_sanity.callback.result_files import home
from lightning_sanity.callback.scalars import beside_baseline, beside_random_labels, of_testing
from lightning_sanity.callback.scalars import scalars as scalars_of
from lightning_sanity.callback.trainer import done, ends_training, going_on, logged_step, never_validates
from lightning_sanity.explanation.options import (
    METHODS,
    check_choice,
    check_integer,
    check_kind,
    check_number,
    check_yes_no,
    spelled_out,
)
from lightning_sanity.explanation.probe import check_probe
from lightning_sanity.explanation.targets import check_target
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.parameter_randomization.options import DEFAULTS, WalkOptions, settled, settled_for
from lightning_sanity.parameter_randomization.schedule import AUTO_TRIALS
from lightning_sanity.resources.budget import Interrupted
from lightning_sanity.result.controls import validated
from lightning_sanity.result.sanity_result import Outcome, SanityResult

OPTIONS: WalkOptions = {**DEFAULTS, "trials": "auto"}
"""Few trials are enough to watch a training run; what it ends with is decided."""


class SaliencySanityCallback(pl.Callback):
    """Runs the parameter randomization test at the end of validation or testing, logs it, acts on the verdict.

    Training is not touched: the test works on a detached clone and has random streams of its own. Processes that train
    together share the work and get one result. Weights that are sharded (FSDP2, tensor parallelism) cannot be cloned:
    all processes measure them in place, restore them to the last bit, and hold signals back until then.

    Args:
        methods: Names of ``lightning_sanity.attribution.available()``, functions
            ``(model, inputs, target) -> attribution``, or a dictionary of either.
        probe: What is explained: an int takes that many samples of the validation set, balanced over its classes and
            the same at every validation; or a tensor, ``(inputs, labels)``, a data set, or a loader (its first batch).
        every_n_validations: Measure at every n-th validation only; in between, the last values are logged again with
            their ``age`` in steps.
        on_fail: ``"warn"``; ``"stop"`` ends training when a gated method FAILs; ``"raise"`` raises
            ``SanityCheckFailed`` at the end of ``fit`` or ``validate`` unless every gated method passed.
        on_error: What a test that cannot be run does: ``"warn"``, or ``"raise"`` its error.
        max_time: Most time that the callback may add to one validation: seconds, or below 1 a share of the training
            time. The test drops depths and trials until it fits, then methods; the result says which. A share is saved
            up: validations are skipped, and ``age`` is logged, until there is enough for the smallest test. None is
            skipped if another callback monitors a key of this one, or with ``on_fail="raise"``. ``"auto"`` takes a
            share of 5 %, or 8 seconds where training is short. The first validation is measured in advance, for ten
            seconds at most, or as long as the least test takes. What ``fit`` ends with is measured in full, after
            training where a validation was not known to be the last; only what would take longer than half a minute,
            and than was saved, is thinned, and trials are added for open verdicts as far as was saved. At the end it
            says what all that took. Where no validation may be skipped, ``"auto"`` is no limit, and None never is.
            Figures and page wait if they would take more than a third of the time, at most until the end of ``fit``;
            with ``"auto"`` the first and the last never do, and numbers go out every time. The data randomization test
            is then left out, and its last result kept. A method that hangs is stopped after twice the time, if it runs
            in Python on the main thread of a Unix process. Forming the probe, at the first validation, does not count.
        precision: None measures in the trainer's precision, ``"32"`` in float32.
        name: Tells several instances apart; keys become ``sanity/<name>/...``.
        target: What is explained where the model does not return class scores; see ``parameter_randomization_test``.
            ``"labels"`` explains each sample's own class instead of the predicted one, which a model that is not
            trained yet often gives to all of them.
        log_images: Send figures to the loggers.
        report: Write ``step=<n>.json``, ``latest.json`` and ``report.html`` to the folder ``sanity`` beside the run's
            checkpoints: ``<save_dir>/<name>/<version>/sanity``, or ``<default_root_dir>/sanity`` without a logger.
            Every measurement has a file of its own: ``<stage>-step=<n>.json`` outside training, with
            ``-batch=<b>`` where weights of one step are measured again, with ``-v<k>`` beside another run's.
        keep: How many of this run's measurements keep their files: the last ones, and beside them the best one (whose
            weakest method has the largest lower end of its PSI) and every one in which a method failed or that was not
            valid. The files of others, with the pictures beside them, are removed. None keeps all. What a logger was
            sent stays with the logger.
        baseline: Result file of the last release, on the same probe: a method passes only if its PSI is not worse by
            more than ``max_drop``.
        max_drop: See ``noninferiority.compare``.
        reference_checkpoint: Checkpoint of the same module trained on permuted labels (see ``RandomLabelDataModule``).
            Every measurement then runs the data randomization test against it as well, which informs and never gates.
        verbose: Print a line per measured validation, more only while one takes longer than ten seconds, and at the
            end of ``fit``, ``validate`` and ``test`` the verdicts as a table. Warnings always come: the first time
            in a run that a method FAILs or is INCONCLUSIVE, that the test cannot be run or is not valid, and where
            nothing will be or was measured.
        **options: See ``WalkOptions``. By default here ``trials="auto"``: 3 at validations that others follow; what
            ``fit`` ends with, ``validate`` and ``test`` take 5, and 10 or 20 while a verdict is open.

    Attributes:
        result: The last ``SanityResult`` of this run, or None.
        label_result: That of the data randomization test, or None.
        unmeasured: Why there is no result, in words, or None.

    Logged at every validation, under ``sanity/``: ``passed``, and per method ``<method>/passed``, ``<method>/psi``,
    ``<method>/psi_low``, ``<method>/inconclusive`` (1 where PSI says nothing), ``<method>/<similarity>`` (mean at full
    randomization), ``<method>/<similarity>_auc`` (mean over the cascade), ``<method>/drift`` (correlation of the maps
    with those of the last validation), ``age`` (steps since measured) and ``seconds`` (of the last measurement, files
    included, and figures unless ``max_time`` put them off); with a baseline ``<method>/baseline_drift`` and
    ``<method>/baseline_change`` (PSI minus the baseline's), with a reference checkpoint ``<method>/dri``. They are
    always finite, so that a monitor never breaks: what is undefined is logged as the worst value (PSI 0, similarity 1)
    while the result holds NaN.

    Raises:
        MisconfigurationException: If an argument is wrong.

    Example::

        trainer = L.Trainer(callbacks=[SaliencySanityCallback(["gradient", "gradcam"])])
    """

    @spelled_out(WalkOptions, OPTIONS)
    def __init__(
        self,
        methods: str
        | Sequence[Method | Callable[..., Any] | str]
        | Mapping[str, Method | Callable[..., Any] | str] = METHODS,
        probe: Any = 16,
        *,
        every_n_validations: int = 1,
        on_fail: Literal["warn", "stop", "raise"] = "warn",
        on_error: Literal["warn", "raise"] = "warn",
        max_time: float | Literal["auto"] | None = "auto",
        precision: Literal["32"] | None = None,
        name: str | None = None,
        target: Any = None,
        log_images: bool = True,
        report: bool = True,
        keep: int | None = None,
        baseline: str | Path | None = None,
        max_drop: float = 0.1,
        reference_checkpoint: str | Path | None = None,
        verbose: bool = True,
        **options: Unpack[WalkOptions],
    ) -> None:
        super().__init__()
        self.probe, self.every_n_validations = probe, every_n_validations
        self.on_fail, self.on_error, self.max_time, self.precision = on_fail, on_error, max_time, precision
        self.name, self.log_images, self.report, self.keep = name, log_images, report, keep
        self.baseline, self.max_drop, self.reference_checkpoint = baseline, max_drop, reference_checkpoint
        self.verbose = verbose
        try:
            given = settled({**OPTIONS, **options}, "SaliencySanityCallback")
            self._check()
            check_target(target, labels=True)
            layer = given["layer"] if isinstance(given["layer"], str) else None
            self._gated = [key for key, method in resolve_all(methods, layer).items() if not method.control]
            shown = given["similarities"] or ("ssim", "spearman")
            self._similarities = [similarity_module.resolve(key).name for key in shown]
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(str(error)) from error
        self.seed, self.max_memory = given["seed"], given["max_memory"]
        self.result: SanityResult | None = None
        self.label_result: SanityResult | None = None
        self.unmeasured: str | None = None
        self._test: dict[str, Any] = {**given, "methods": methods, "target": target, "pictures": log_images}
        self._references = References(baseline, max_drop, reference_checkpoint)
        self._validations, self._measured_step, self._seconds = 0, 0, 0.0
        self._drift: dict[str, float] = {}
        self._restored: dict[str, Any] = {}
        self._ledger = Ledger()
        self._prepare(every=False, running=False)

    def _check(self) -> None:
        """Refuse arguments that are wrong whatever the model and the trainer are."""
        check_choice("on_fail", self.on_fail, ("warn", "stop", "raise"))
        check_choice("on_error", self.on_error, ("warn", "raise"))
        check_choice("precision", self.precision, (None, "32"))
        check_integer("every_n_validations", self.every_n_validations, 1)
        check_probe(self.probe)
        for flag in ("log_images", "report", "verbose"):
            check_yes_no(flag, getattr(self, flag))
        if self.keep is not None:
            check_integer("keep", self.keep, 1)
        check_kind("name", self.name, str, "a string")
        check_kind("baseline", self.baseline, (str, Path), "the path of a result file")
        check_kind("reference_checkpoint", self.reference_checkpoint, (str, Path), "the path of a checkpoint")
        check_number("max_time", None if self.max_time == "auto" else self.max_time, above=0)
        check_number("max_drop", self.max_drop, least=0, most=1)

    def _prepare(self, *, every: bool, running: bool) -> None:
        """What a run is measured, told and shown with."""
        self._narration = Narration(self._prefix, verbose=self.verbose)
        raises = self.on_fail == "raise"
        self._conclusion = Conclusion(self._narration, self._gated, raises=raises, running=running)
        watched = WATCHED if self._test["trials"] == "auto" else 1.0
        self._allowance = Allowance(self.max_time, every=every, watched=watched)
        self._publication = Publication(self._prefix, images=self.log_images, report=self.report, keep=self.keep)
        single = self.precision == "32"
        self._probe = FixedProbe(self.probe, self.seed, single_precision=single, narration=self._narration)
        tests = Tests(self._test, single, self.reference_checkpoint, self.on_error == "raise", self.verbose)
        self._instrument = Instrument(tests, self._probe, self._allowance, self._ledger, self._narration)

    # ------------------------------------------------------------------------------------------------------- hooks

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can only go wrong later."""
        if stage == "predict":  # measures nothing, and leaves the last result as it is
            return
        if trainer.barebones:
            raise MisconfigurationException(
                "`Trainer(barebones=True)` drops all logging: remove SaliencySanityCallback"
            )
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        problem = (
            obstacle(callbacks, trainer.strategy, self)
            or shared_key(self, callbacks, trainer)
            or stale_monitor(trainer, self.scalars(trainer), self.every_n_validations)
        )
        if problem is not None:
            raise MisconfigurationException(problem)
        self._references.read()
        self._validations, self.result, self.unmeasured = 0, None, None
        self.label_result, self._drift = None, {}
        # A fit has not begun: a tuner may search first, and leave.
        self._prepare(every=self._always(trainer), running=stage != "fit")
        costs = stream_warning(self.probe)
        if costs is not None:
            self._narration.warn(costs)
        self._ledger.start()

    def _always(self, trainer: pl.Trainer) -> bool:
        """Whether every validation has to be measured."""
        return self.on_fail == "raise" or bool(monitors(trainer, self.scalars(trainer)))

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for the names that were given in the model, and at schedulers that monitor keys: both are known now."""
        self._conclusion.told = False
        self._check_names(pl_module)
        problem = stale_monitor(trainer, self.scalars(trainer), self.every_n_validations)
        if problem is not None:
            raise MisconfigurationException(problem)
        self._allowance.every = self._always(trainer)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember which step the weights are of."""
        step = checkpoint.get("global_step")
        self._ledger.loaded = step if isinstance(step, int) else None

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for the names, where there is no fit."""
        if trainer.state.fn == "validate":
            self._check_names(pl_module)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise."""
        self._check_names(pl_module)

    def _check_names(self, pl_module: pl.LightningModule) -> None:
        try:
            names = {key: self._test[key] for key in DEFAULTS}
            # By name from now on: what is measured may be a copy.
            self._test["layer"] = settled_for(pl_module, names)["layer"]  # type: ignore[arg-type]
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say now that nothing will be measured; start the clock of a ``max_time`` that is a share of the time."""
        self.unmeasured = never_validates(trainer)
        if self.unmeasured is not None:
            self._narration.nothing_to_come(self.unmeasured)
        self._allowance.start()

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep what is read where the probe has to be made of it, and what a batch is, to be told beside a probe."""
        self._probe.see(trainer, batch, first=batch_idx == 0, main=dataloader_idx == 0)

    @override
    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, log and decide."""
        if not trainer.sanity_checking:
            self._observe(trainer, pl_module)
        elif trainer.is_global_zero:  # Lightning's dry validation run: nothing has been trained or will be kept
            self._rehearse(trainer, pl_module)

    def _rehearse(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say, or raise, before training what would be found out after an epoch."""
        error = self._instrument.rehearse(trainer, pl_module)
        if error is not None and self.on_error == "raise" and trainer.world_size == 1:
            raise error
        if error is not None:  # where there are several processes, all raise at the first validation
            self._narration.foresee(str(error))

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise, on the test set."""
        self._observe(trainer, pl_module)

    def _observe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fitting = trainer.state.fn == "fit"
        last, over = (ends_training(trainer), done(trainer)) if fitting else (False, 0.0)
        self._allowance.begin(training=fitting, last=last, done=over)
        due = self._validations % self.every_n_validations == 0
        self._validations += 1
        if due and self._allowance.is_share:  # the clocks of ranks differ: the first decides
            due = trainer.strategy.broadcast(self._allowance.affords())
            if not due:
                self._narration.put_off(self.max_time)
        if due:
            self._measure_and_publish(trainer, pl_module)
        with going_on("the scalars of the randomization test could not be logged"):
            values = self.scalars(trainer)
            pl_module.log_dict(of_testing(values) if trainer.testing else values, on_step=False, on_epoch=True)
        if due and self.result is not None:
            self._act(trainer, self.result)
        if due:
            self._allowance.end(self._thinned, open_verdicts=self._open)

    @property
    def _thinned(self) -> Mapping[str, Any] | None:
        """What the last test left out; None if it gave no result."""
        return None if self.result is None else self.result.settings["thinned"]

    def settle_trials(self, trials: int) -> None:
        """Take so many where the number was left to the test: a release is no look during training."""
        if self._test["trials"] == "auto":
            self._test["trials"] = trials

    @property
    def _open(self) -> bool:
        """Whether there are verdicts that more trials, which the test may add by itself, could decide."""
        return self._test["trials"] == "auto" and undecided(self.result, self._gated, sum(AUTO_TRIALS))

    def _measure_and_publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begun = time.perf_counter()
        self._measure(trainer, pl_module)
        if self.result is None:
            self._outdate(trainer)
        else:
            self._publish(trainer, self.result)
        self._seconds = trainer.strategy.broadcast(time.perf_counter() - begun)

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure in full what training ended with, where its last validation went by or was measured in part."""
        if not trainer.strategy.broadcast(self._allowance.due):
            return
        self._allowance.begin(training=True, last=True)
        self._measure_and_publish(trainer, pl_module)
        for logger in trainer.loggers:
            with going_on("the scalars of the randomization test could not be logged"):
                logger.log_metrics(self.scalars(trainer), logged_step(trainer))
        if self.result is not None:
            self._act(trainer, self.result)
        self._allowance.end(self._thinned)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise after a stand-alone validation, once its metrics are logged."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self._conclude()

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise after testing, once its metrics are logged."""
        self._conclude()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Show what ``max_time`` put off: there is no later occasion."""
        self._show(trainer)
        if self.result is not None:
            self._tell()
        self._conclusion.told = True

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say so, or raise, where the loop was skipped as a whole, so that no other hook was called."""
        if not self._conclusion.told:
            self._conclude()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and show what ``max_time`` put off; raise after training, when no work can be lost."""
        self._catch_up(trainer, pl_module)
        self._show(trainer)
        unseen = self._ledger.unseen()
        if unseen is not None:
            rank_zero_info(unseen)
        self._tell()
        # Rank 0 says, whose weights are saved; the running statistics of other ranks may differ.
        if (
            self.on_fail == "raise"
            and self.result is not None
            and trainer.strategy.broadcast(weights_digest(pl_module) != self.result.weights_digest)
        ):
            self.unmeasured = f"training went on after the last test, at step {self.result.step}"
            self.result = None
        self._conclusion.check(self.result, self.unmeasured)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record whether the checkpoint holds the weights that were measured."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        holds: bool | str = UNKNOWN
        with going_on("whether the checkpoint holds the measured weights could not be told"):
            digest = "" if state is None else state["weights_digest"]
            holds = self._ledger.save(trainer, checkpoint, self, pl_module, digest)
        if state is not None:
            state["matches_measured"] = holds

    @override
    def state_dict(self) -> dict[str, Any]:
        return dict(self._restored) if self.result is None else kept_of(self.result)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored, self._measured_step = restored(state_dict)

    # ----------------------------------------------------------------------------------------------------- measure

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set ``self.result``, the same on every rank; None, and ``self.unmeasured``, if there is none."""
        found = self._instrument.measure(trainer, pl_module, self._restored, self.label_result)
        self.label_result = found.labels
        if found.result is not None:
            try:
                self.result, self.unmeasured = self._judged(trainer, found.result), None
            except Exception as error:  # the same on every rank
                found = Measurement(why=str(error), error=error)
        if found.result is None:
            self._missed(trainer, found)
            return
        self._measured_step = trainer.global_step
        if found.why_unlabelled is not None:
            if self.on_error == "raise":
                raise found.unlabelled or RuntimeError(found.why_unlabelled)
            why = found.why_unlabelled
            self._narration.warn(f"the data randomization test could not be run and has no result: {why}")

    def _missed(self, trainer: pl.Trainer, found: Measurement) -> None:
        """There is no result: warn or raise."""
        self.result, self.unmeasured = None, found.why
        if isinstance(found.error, Interrupted):
            self._narration.warn(f"the randomization test was interrupted and has no result: {found.error}")
        elif self.on_error == "raise":
            raise found.error or RuntimeError(found.why)
        else:
            self._narration.failed(trainer.global_step, str(found.why))

    def _judged(self, trainer: pl.Trainer, result: SanityResult) -> SanityResult:
        """The result as it stands beside weight averaging, the baseline and the last one."""
        untrained = unaveraged(trainer.callbacks)  # type: ignore[attr-defined]
        if untrained is not None:
            verdicts, valid, validity = validated(result.verdicts, untrained)
            result = replace(result, verdicts=verdicts, valid=valid, validity=validity)
        result = self._references.beside(result)
        if self.result is not None and self.result.probe_digest == result.probe_digest:
            self._drift = drift(result, self.result)
        return result

    # ------------------------------------------------------------------------------------------------- log and act

    @property
    def _prefix(self) -> str:
        return f"sanity/{self.name}" if self.name else "sanity"

    def scalars(self, trainer: pl.Trainer) -> dict[str, float]:
        """What is logged now: always the same keys, always finite."""
        found = scalars_of(
            self.result,
            self._gated,
            self._similarities,
            age=max(trainer.global_step - self._measured_step, 0),
            seconds=self._seconds,
            moved=self._drift,
        )
        if self._references.baseline is not None:
            found |= beside_baseline(self.result, self._references.baseline, self._gated)
        if self.reference_checkpoint is not None:
            found |= beside_random_labels(self.label_result, self._gated)
        return {f"{self._prefix}/{key}": value for key, value in found.items()}

    def _outdate(self, trainer: pl.Trainer) -> None:
        """Mark the last result's file: nobody may take it for one about these weights."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with going_on("the last result of the randomization test could not be marked"):
                why = f"the validation at step {trainer.global_step} was not measured: {self.unmeasured}"
                self._publication.outdate(home(trainer), why)

    def _publish(self, trainer: pl.Trainer, result: SanityResult) -> None:
        """Files, numbers and figures, on rank 0; what there is no time for waits."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with going_on("the result of the randomization test could not be shown"):
            self._publication.write(result, self.label_result, logged_step(trainer), home(trainer))
        if trainer.state.fn != "fit" or (self._instrument.parts.draw and not self._allowance.exceeded()):
            self._show(trainer)
            return
        with going_on("the result of the randomization test could not be shown"):
            self._publication.tell(trainer.loggers)

    def _show(self, trainer: pl.Trainer) -> None:
        if self._publication.owes:
            with going_on("the randomization test could not be drawn"), self._allowance.timing("drawing"):
                self._publication.show(trainer.loggers)

    def _act(self, trainer: pl.Trainer, result: SanityResult) -> None:
        self._narration.measured(result, self._gated)
        failed = [key for key in self._gated if result.verdicts[key].outcome is Outcome.FAIL]
        if failed and self.on_fail == "stop":
            rank_zero_info(f"stopping: {', '.join(failed)} failed the randomization test")
            trainer.should_stop = True

    def _conclude(self) -> None:
        self._tell()
        self._conclusion.check(self.result, self.unmeasured)

    def _tell(self) -> None:
        if self.result is None and self.unmeasured is None:
            self.unmeasured = NEVER_REACHED
        cost = self._allowance.account(open_verdicts=self._open)
        self._conclusion.tell(self.result, self.unmeasured, page=self._publication.page, cost=cost)
