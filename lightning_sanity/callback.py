"""SaliencySanityCallback: when the test runs, on which ranks, and what happens with the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_sanity import probe as probes
from lightning_sanity import similarity as similarity_module
from lightning_sanity.attribution import Method, resolve_all
from lightning_sanity.cascade import Progress
from lightning_sanity.diagnostics import check_names
from lightning_sanity.probe import Probe
from lightning_sanity.randomization import Reinitialize
from lightning_sanity.randomization_tests import parameter_randomization_test
from lightning_sanity.report.loggers import log_result
from lightning_sanity.result import Outcome, SanityCheckFailed, SanityResult
from lightning_sanity.units import ORDERS, Granularity
from lightning_sanity.verdict import Criterion

_PROGRESS_EVERY = 10.0  # seconds between lines


class SaliencySanityCallback(pl.Callback):
    """Runs the parameter randomization test at the end of validation, logs it, and acts on the verdict.

    Training is not touched: the test works on a detached clone and has random streams of its own.

    Args:
        methods: Names of ``lightning_sanity.attribution.available()``, functions
            ``(model, inputs, target) -> attribution``, or a dictionary of either.
        probe: What is explained: an int takes that many samples of the validation set, balanced over its classes and
            the same at every validation; or a tensor, ``(inputs, labels)``, a data set, or a loader (its first batch).
        every_n_validations: Measure at every n-th validation only; in between, the last values are logged again with
            their ``age`` in steps.
        order: See ``parameter_randomization_test``, like all arguments not described here.
        granularity: See there.
        max_steps: See there.
        similarities: See there; logged as ``<method>/<similarity>``.
        reinitialize: See there.
        norm_stats: See there.
        trials: See there. Few are enough to watch a training run; a release wants 20.
        repeats: See there.
        diagnostics: See there.
        criterion: See there.
        on_fail: ``"warn"``; ``"stop"`` ends training when a gated method FAILs; ``"raise"`` raises
            ``SanityCheckFailed`` at the end of ``fit`` or ``validate`` unless every gated method passed.
        on_error: A test that cannot be run is a ``"warn"`` ing, or ``"raise"`` s.
        seed: See there.
        name: Tells several instances apart; keys become ``sanity/<name>/...``.
        forward: See there.
        layer: See there.
        target: See there; what is explained where the model does not return class scores.
        explain: See there; which of several inputs.
        tokens: See there.
        clone_fn: See there.
        log_images: Send figures to the loggers.
        report: Write ``step=<n>.json`` and ``latest.json`` under ``<trainer.log_dir>/sanity/``.

    Attributes:
        result: The last ``SanityResult`` of this run, or None.

    Logged at every validation, under ``sanity/``: ``passed``, and per method ``<method>/passed``, ``<method>/psi``,
    ``<method>/psi_low``, ``<method>/<similarity>`` (mean at full randomization), ``<method>/<similarity>_auc`` (mean
    over the cascade), ``age`` and ``seconds``. They are always finite, so that a monitor never breaks: what is
    undefined is logged as the worst value (PSI 0, similarity 1) while the result holds NaN.

    Raises:
        MisconfigurationException: If an argument is wrong.

    Example::

        trainer = L.Trainer(callbacks=[SaliencySanityCallback(["gradient", "gradcam"])])
    """

    def __init__(
        self,
        methods: str | Sequence[Method | Callable[..., Any] | str] | Mapping[str, Method | Callable[..., Any] | str] = (
            "gradient",
            "gradcam",
            "guided_backprop",
        ),
        probe: Any = 16,
        *,
        every_n_validations: int = 1,
        order: str = "cascading",
        granularity: Granularity = "layer",
        max_steps: int | None = None,
        similarities: Sequence[str] | None = None,
        reinitialize: Reinitialize = "default",
        norm_stats: str = "auto",
        trials: int | Literal["auto"] = 3,
        repeats: int = 3,
        diagnostics: Sequence[str] = ("cross_image",),
        criterion: Criterion | None = None,
        on_fail: Literal["warn", "stop", "raise"] = "warn",
        on_error: Literal["warn", "raise"] = "warn",
        seed: int = 0,
        name: str | None = None,
        forward: Callable[..., Any] | None = None,
        layer: str | None = None,
        target: Any = None,
        explain: int | str | None = None,
        tokens: Any = None,
        clone_fn: Callable[..., Any] | None = None,
        log_images: bool = True,
        report: bool = True,
    ) -> None:
        super().__init__()
        _check_choice("order", order, ORDERS)
        _check_choice("on_fail", on_fail, ("warn", "stop", "raise"))
        _check_choice("on_error", on_error, ("warn", "raise"))
        _check_at_least("every_n_validations", every_n_validations, 1)
        if trials != "auto":
            _check_at_least("trials", trials, 1)
        if isinstance(probe, int):
            _check_at_least("probe", probe, 2)
        try:
            self._gated = [key for key, method in resolve_all(methods, layer).items() if not method.control]
            self._similarities = [similarity_module.resolve(key).name for key in similarities or ("ssim", "spearman")]
            check_names(diagnostics)
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(str(error)) from error
        self.probe, self.every_n_validations = probe, every_n_validations
        self.on_fail, self.on_error = on_fail, on_error
        self.seed, self.name, self.log_images, self.report = seed, name, log_images, report
        self.result: SanityResult | None = None
        self._test: dict[str, Any] = {
            "methods": methods,
            "similarities": None if similarities is None else tuple(similarities),
            "order": order,
            "granularity": granularity,
            "max_steps": max_steps,
            "reinitialize": reinitialize,
            "norm_stats": norm_stats,
            "trials": trials,
            "repeats": repeats,
            "diagnostics": tuple(diagnostics),
            "criterion": criterion,
            "seed": seed,
            "forward": forward,
            "layer": layer,
            "target": target,
            "explain": explain,
            "tokens": tokens,
            "clone_fn": clone_fn,
            "pictures": log_images,
        }
        self._probe: Probe | None = None
        self._validations = 0
        self._restored: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------------------- hooks

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can only go wrong later."""
        if trainer.barebones:
            raise MisconfigurationException(
                "`Trainer(barebones=True)` drops all logging: remove SaliencySanityCallback"
            )
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        earlier = callbacks[: callbacks.index(self)]
        averaging = next((type(c).__name__ for c in earlier if hasattr(c, "_average_model")), None)
        if averaging is not None:
            raise MisconfigurationException(
                f"{averaging} stands before SaliencySanityCallback, which would then measure other weights than the "
                "checkpoint holds: list SaliencySanityCallback first"
            )
        self._refuse_stale_monitors(callbacks)
        self._probe, self._validations, self.result = None, 0, None

    def _refuse_stale_monitors(self, callbacks: Iterable[Any]) -> None:
        if self.every_n_validations == 1:
            return
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith(f"{self._prefix}/"):
                raise MisconfigurationException(
                    f"{type(callback).__name__} monitors '{monitor}', which is measured only at every "
                    f"{self.every_n_validations}-th validation: it would act on the value of other weights. "
                    "Use every_n_validations=1."
                )

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, log and decide."""
        if trainer.sanity_checking:  # Lightning's dry validation run: nothing has been trained or will be kept
            return
        due = self._validations % self.every_n_validations == 0
        self._validations += 1
        if due:
            self._measure(trainer, pl_module)
        pl_module.log_dict(self._scalars(trainer), on_step=False, on_epoch=True)
        if due and self.result is not None:
            self._publish(trainer, self.result)
            self._act(trainer, self.result)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise after a stand-alone validation, once its metrics are logged."""
        if not trainer.sanity_checking and trainer.state.fn == "validate":
            self._raise_unless_passed()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise after training, when no work can be lost."""
        self._raise_unless_passed()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.result is None:
            return dict(self._restored)
        result = self.result
        return {
            "version": 1,
            "probe_ids": None if result.probe_ids is None else list(result.probe_ids),
            "probe_digest": result.probe_digest,
            "weights_digest": result.weights_digest,
            "step": result.step,
            "passed": result.passed,
            "outcomes": {name: verdict.outcome.value for name, verdict in result.verdicts.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)  # of other weights: kept for the record, never counted as a result

    # ----------------------------------------------------------------------------------------------------- measure

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set ``self.result``; on an error, None on every rank."""
        result, error = None, None
        try:
            probe = self._fixed_probe(trainer, pl_module)
            with trainer.precision_plugin.forward_context():
                result = parameter_randomization_test(
                    pl_module, probe.inputs, progress=_lines(trainer), **self._test_for(trainer)
                )
            result = replace(result, step=trainer.global_step, probe_ids=probe.ids)
        except Exception as caught:
            error = caught
        # Ranks must agree, or the next collective hangs.
        if not trainer.strategy.reduce_boolean_decision(error is None, all=True):
            self.result = None
            if self.on_error == "raise":
                raise error if error is not None else RuntimeError("the randomization test failed on another rank")
            rank_zero_warn(f"the randomization test could not be run; training goes on. {error or 'See another rank.'}")
            return
        self.result = result

    def _test_for(self, trainer: pl.Trainer) -> dict[str, Any]:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # only whether it runs at all
            return {**self._test, "trials": 1, "max_steps": 1}
        return self._test

    def _fixed_probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Probe:
        """The same probe at every validation and on every rank: formed once on rank 0 and broadcast."""
        if self._probe is None:
            formed: Probe | Exception | None = None
            if trainer.is_global_zero:
                try:
                    formed = probes.form(
                        self.probe,
                        _first_loader(trainer),
                        seed=self.seed,
                        transfer=lambda batch: _transferred(trainer, pl_module, batch),
                    )
                except Exception as error:  # raised below, on every rank
                    formed = error
            formed = trainer.strategy.broadcast(formed)
            if not isinstance(formed, Probe):
                raise formed or RuntimeError("no probe was broadcast")
            self._probe = replace(formed, inputs=trainer.precision_plugin.convert_input(formed.inputs))
            if self._restored.get("probe_ids") is not None and self._restored["probe_ids"] != list(formed.ids or ()):
                rank_zero_warn(
                    "the probe differs from the one of the checkpoint: the curves before and after do not join"
                )
        return self._probe

    # ------------------------------------------------------------------------------------------------- log and act

    @property
    def _prefix(self) -> str:
        return f"sanity/{self.name}" if self.name else "sanity"

    def _scalars(self, trainer: pl.Trainer) -> dict[str, float]:
        """Every key of the contract at every validation, always finite."""
        result = self.result
        values: dict[str, float] = {
            "passed": float(result is not None and result.passed),
            "age": float(0 if result is None or result.step is None else max(trainer.global_step - result.step, 0)),
            "seconds": 0.0 if result is None else result.seconds,
        }
        for method in self._gated:
            verdict = None if result is None else result.verdicts[method]
            values[f"{method}/passed"] = float(verdict is not None and verdict.passed)
            values[f"{method}/psi"] = _finite(None if verdict is None else verdict.psi, 0.0)
            values[f"{method}/psi_low"] = _finite(None if verdict is None else verdict.psi_low, 0.0)
            for key in self._similarities:
                curve = None if result is None else result.curves.get((method, key))
                values[f"{method}/{key}"] = _finite(None if curve is None else float(curve.mean[-1]), 1.0)
                values[f"{method}/{key}_auc"] = _finite(None if curve is None else float(curve.mean.nanmean()), 1.0)
        return {f"{self._prefix}/{key}": value for key, value in values.items()}

    def _publish(self, trainer: pl.Trainer, result: SanityResult) -> None:
        """Figures and files, on rank 0; a full disk or a failing logger is a warning."""
        log_dir = trainer.log_dir or trainer.default_root_dir  # broadcasts: every rank asks
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.log_images:
            log_result(trainer.loggers, result, prefix=self._prefix, step=_logged_step(trainer))
        if self.report:
            folder = Path(log_dir) / self._prefix
            try:
                result.to_json(folder / f"step={result.step}.json")
                result.to_json(folder / "latest.json")
            except OSError as error:
                rank_zero_warn(f"the result of the randomization test could not be written to '{folder}': {error}")

    def _act(self, trainer: pl.Trainer, result: SanityResult) -> None:
        failed = [key for key in self._gated if result.verdicts[key].outcome is Outcome.FAIL]
        if failed and self.on_fail == "warn":
            reasons = "; ".join(f"{key}: {result.verdicts[key].reason}" for key in failed)
            rank_zero_warn(f"saliency maps failed the randomization test at step {result.step}: {reasons}")
        if failed and self.on_fail == "stop":
            rank_zero_info(f"stopping: {', '.join(failed)} failed the randomization test")
            trainer.should_stop = True

    def _raise_unless_passed(self) -> None:
        if self.on_fail != "raise" or (self.result is not None and self.result.passed):
            return
        if self.result is None:
            raise SanityCheckFailed("the randomization test never gave a result for these weights, which is not a pass")
        verdicts = {key: self.result.verdicts[key] for key in self._gated if not self.result.verdicts[key].passed}
        lines = "; ".join(f"{key} is {v.outcome.value}: {v.reason}" for key, v in verdicts.items()) or "no gated method"
        raise SanityCheckFailed(f"saliency maps did not pass the randomization test: {lines}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise MisconfigurationException(f"`{name}` must be one of {', '.join(map(repr, choices))}, not {value!r}")


def _check_at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MisconfigurationException(f"`{name}` must be an integer of at least {least}, not {value!r}")


def _finite(value: float | None, worst: float) -> float:
    return worst if value is None or not torch.isfinite(torch.tensor(value)) else value


def _logged_step(trainer: pl.Trainer) -> int:
    """The step that loggers use as their x axis; it differs from ``global_step`` with several optimizers."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def _first_loader(trainer: pl.Trainer) -> DataLoader[Any] | Iterable[Any] | None:
    """The first validation loader, however many and however nested."""
    loaders = trainer.val_dataloaders
    return next((leaf for leaf in tree_leaves(loaders) if leaf is not None), None)


def _transferred(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Any:
    """The batch as ``validation_step`` would get it: converted, through the user's transfer hooks, on the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _lines(trainer: pl.Trainer) -> Progress:
    """Progress as an occasional line: a second live bar breaks some terminals."""
    bar = trainer.progress_bar_callback
    last = time.monotonic()

    def tick(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY:
            last = now
            line = f"randomization test: {done}/{total} ({label})"
            if bar is not None:
                bar.print(line)
            else:
                rank_zero_info(line)

    return tick
