"""The probe of a run: the same samples at every validation and on every process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from lightning_sanity.callback.narration import Narration
from lightning_sanity.callback.trainer import going_on
from lightning_sanity.explanation import probe as probes
from lightning_sanity.explanation.probe import Probe, described
from lightning_sanity.model.clone import preserved
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.restored_state import put_back, streams


class FixedProbe:
    """What a run explains: formed at its first measurement on rank 0, and sent to all.

    Args:
        given: See ``probe.form``.
        seed: Of the choice.
        single_precision: Whether floating point inputs are given in float32, whatever the trainer's own precision is.
        narration: Is told that the samples are not those of the checkpoint.
    """

    def __init__(self, given: Any, seed: int, *, single_precision: bool, narration: Narration) -> None:
        self._given, self._seed, self._single_precision = given, seed, single_precision
        self._narration = narration
        self._probe: Probe | None = None
        self._early: Probe | None = None
        self._read: Read | None = None
        self._batch: str | None = None

    @property
    def known(self) -> bool:
        """Whether it has been formed."""
        return self._probe is not None

    def see(self, trainer: Any, batch: Any, *, first: bool, main: bool) -> None:
        """Look at a batch that is being validated.

        It is kept where the probe has to be made of what is read, and its shapes are told beside the probe's.

        Args:
            trainer: Of either Lightning package.
            batch: As the model gets it.
            first: Whether a validation begins with it.
            main: Whether it is of the first loader.
        """
        if self._batch is None:
            self._batch = described(batch)
        if self._probe is None and main and trainer.is_global_zero and not trainer.sanity_checking:
            with going_on("what validation reads could not be kept for the probe of the randomization test"):
                self._read = reads(trainer, self._given) if first else self._read
                if self._read is not None:
                    self._read.offer(probes.as_called(batch, trainer.lightning_module.forward))

    def early(self, trainer: Any, module: Any) -> Probe | None:
        """What ``of`` will give on this process, before anything is measured; None where reading it costs samples."""
        kept = isinstance(self._given, int) and probes.can_be_indexed(_first_loader(trainer))
        if self._early is None and (kept or isinstance(self._given, (Tensor, tuple, list))):
            self._early = form_probe(trainer, module, self._given, None, self._seed, self._single_precision)
        return self._early

    def of(self, trainer: Any, module: Any, share: Share, restored: Mapping[str, Any]) -> Probe:
        """The probe.

        Args:
            trainer: Of either Lightning package.
            module: Its LightningModule.
            share: This process's part of the test.
            restored: The callback's state in the checkpoint that training goes on from, if there is one.

        Raises:
            ProbeError: If it cannot be formed.
        """
        if self._probe is None:
            formed: Probe | None = None
            if share.rank == 0:
                ids = restored.get("probe_ids")
                formed = self._early if ids is None else None
                if formed is None:
                    single = self._single_precision
                    formed = form_probe(trainer, module, self._given, ids, self._seed, single, self._read)
                self._early = self._read = None
            formed = share.exchange(formed)[0]
            if formed is None:
                raise RuntimeError("rank 0 sent no probe")
            before = restored.get("probe_digest")
            going_on_training = trainer.state.fn == "fit"  # a test has samples of its own
            if going_on_training and before is not None and before != formed.digest:
                self._narration.warn(
                    "the probe differs from the one of the checkpoint: the curves before and after do not join"
                )
            if isinstance(self._given, int) and len(formed) < self._given:
                self._narration.warn(
                    f"probe={self._given} samples were asked for, and validation has {len(formed)}: all are explained"
                )
            self._probe = formed
        return self._probe

    def beside_a_batch(self, error: Exception) -> Exception:
        """The error, saying what the probe and a batch of validation are where the model could not be called."""
        probe = self._probe or self._early
        if not isinstance(error, ValueError) or "calling it on the probe" not in str(error) or probe is None:
            return error
        found = ValueError(f"{error} The probe is {described(probe.inputs)}, a validation batch {self._batch}.")
        found.__cause__ = error
        return found


class Read:
    """The first samples that a validation reads, as the model gets them.

    They make the probe where the data set cannot be asked for samples without training noticing: streams, and data
    sets with iterators or open files of their own.

    Args:
        size: How many samples are wanted.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._batches: list[Probe] = []
        self.error: Exception | None = None

    def offer(self, batch: Any) -> None:
        """A batch that is being validated; kept if samples are still wanted."""
        if self.error is None and sum(map(len, self._batches)) < self._size:
            try:
                self._batches.append(probes.from_batch(batch))
            except Exception as error:  # told when the probe is formed: here it would end training
                self.error = error

    def probe(self) -> Probe:
        """The probe.

        Raises:
            ProbeError: If there were too few samples, or inputs and labels could not be told apart.
        """
        if self.error is not None:
            raise self.error
        return probes.first_of(self._batches, self._size)


def reads(trainer: Any, given: Any) -> Read | None:
    """What keeps the samples that are read now, if a probe has to be made of them."""
    if not isinstance(given, int) or probes.can_be_indexed(_first_loader(trainer)):
        return None
    return Read(given)


def stream_warning(given: Any) -> str | None:
    """Why forming the probe could cost the data something, if it could."""
    kinds = streams(given) if isinstance(given, (DataLoader, Dataset)) else []
    if not kinds:
        return None
    return (
        f"the probe is read from a {type(given).__name__} that holds what cannot be put back ({', '.join(kinds)}): "
        "if training reads from it too, it will miss samples. Pass the probe as tensors, or as a number of samples."
    )


def form_probe(
    trainer: Any,
    module: Any,
    given: Any,
    ids: Sequence[int] | None,
    seed: int,
    single_precision: bool,
    read: Read | None = None,
) -> Probe:
    """The probe as the model is to get it: through the user's transfer hooks, in the trainer's precision.

    What the hooks and the data sets change in themselves meanwhile is put back.

    Args:
        trainer: Of either Lightning package.
        module: Its LightningModule.
        given: See ``probe.form``.
        ids: Samples of an earlier run, which are taken again if they are still there.
        seed: Of the choice.
        single_precision: Floating point inputs in float32, whatever the trainer's own precision is.
        read: What this validation has read, where the probe is made of that.
    """

    def convert(batch: Any) -> Any:
        if not single_precision:
            return trainer.precision_plugin.convert_input(batch)
        return tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t, batch)

    def transfer(batch: Any) -> Any:
        batch = module._on_before_batch_transfer(convert(batch), dataloader_idx=0)
        return probes.as_called(trainer.strategy.batch_to_device(batch, dataloader_idx=0), module.forward)

    loader = _first_loader(trainer)
    formed = None if read is None else read.probe()
    # A hook that raises would also leave Lightning's record of the hook that it is in.
    with preserved(module), put_back(trainer.datamodule):
        if formed is None and isinstance(given, int) and ids is not None:
            try:
                formed = probes.from_ids_of(loader, ids, seed=seed, transfer=transfer)
            except (IndexError, KeyError, probes.ProbeError) as error:
                rank_zero_warn(f"the probe of the checkpoint is gone and another one is taken: {error}")
        if formed is None:
            formed = probes.form(given, loader, seed=seed, transfer=transfer)
    inputs = convert(formed.inputs)
    return replace(formed, inputs=inputs, digest=probes.digest(inputs))


def _first_loader(trainer: Any) -> DataLoader[Any] | Iterable[Any] | None:
    """The first loader of the data that is looked at now, however many and however nested."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return next((leaf for leaf in tree_leaves(loaders) if leaf is not None), None)
