"""Where models are released from: mark a version in a registry if, and only if, the gate let it pass.

Each function takes the ``Decision`` of ``gate``, or the record of one, so that what is asked is said in one place, and
returns whether the mark was set. Whatever came out is written beside the version, for whoever asks why; of a record its
date and its own digest too, by which the file is found again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sanity.release.gating import Decision
from lightning_sanity.release.record import fingerprint
from lightning_sanity.result.sanity_result import Outcome

ALIAS = "saliency-checked"


def promote_mlflow(
    decision: Decision | Mapping[str, Any], name: str, version: int | str, *, alias: str = ALIAS, client: Any = None
) -> bool:
    """Give a version of a registered MLflow model an alias, or take the alias off it.

    Tags ``sanity.outcome``, ``sanity.reason`` and ``sanity.weights_digest`` are always set. An alias that points
    at another version stays where it is unless this one passed.

    Args:
        decision: Of ``gate``, preferably with ``Policy(weights=...)``: MLflow does not know what was tested. Or the
            record of it, as ``record.statement`` and ``gate --record`` make it.
        name: Of the registered model.
        version: Of the model.
        alias: What a deployment asks for, as ``models:/<name>@<alias>``.
        client: An ``mlflow.MlflowClient``; one for the current tracking server if None.

    Returns:
        Whether the version passed and now has the alias.

    Raises:
        ModuleNotFoundError: If mlflow is needed and not installed.

    Example::

        decision = gate("sanity", Policy(weights="best.ckpt", require=("gradcam",)))
        promote_mlflow(decision, "scans", 4)
    """
    client = client or _imported("mlflow").MlflowClient()
    version = str(version)
    evidence = _evidence(decision)
    passed = evidence["outcome"] == Outcome.PASS.value
    for key, value in evidence.items():
        client.set_model_version_tag(name, version, f"sanity.{key}", value)
    if passed:
        client.set_registered_model_alias(name, alias, version)
    elif str(client.get_registered_model(name).aliases.get(alias)) == version:
        client.delete_registered_model_alias(name, alias)
    return passed


def promote_wandb(
    decision: Decision | Mapping[str, Any], artifact: Any, *, alias: str = ALIAS, run: Any = None
) -> bool:
    """Give a Weights & Biases artifact an alias, or take the alias off it.

    The decision is always added to the artifact's metadata, under ``sanity``.

    Args:
        decision: Of ``gate``, preferably with ``Policy(weights=...)``: the artifact does not know what was tested. Or
            the record of it.
        artifact: A new ``wandb.Artifact`` that ``run`` is to log, or one from ``wandb.Api().artifact(...)``.
        alias: What a deployment or an automation asks for.
        run: The run that logs a new artifact; None for one that was logged before.

    Returns:
        Whether it passed and now has the alias.

    Example::

        artifact = wandb.Artifact("scans", type="model")
        artifact.add_file("best.ckpt")
        promote_wandb(gate("sanity", Policy(weights="best.ckpt")), artifact, run=run)
    """
    evidence = _evidence(decision)
    passed = evidence["outcome"] == Outcome.PASS.value
    artifact.metadata = {**artifact.metadata, "sanity": evidence}
    if run is not None:
        run.log_artifact(artifact, aliases=["latest", alias] if passed else ["latest"])
    else:
        others = [given for given in artifact.aliases if given != alias]
        artifact.aliases = [*others, alias] if passed else others
        artifact.save()
    return passed


def _evidence(decision: Decision | Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(decision, Decision):
        made = decision["predicate"]["decision"]
        return {
            "outcome": made["outcome"],
            "reason": made["reason"][:_LONGEST],
            "weights_digest": " ".join(result["weights_digest"] for result in decision["predicate"]["results"]),
            "decided": made["decided"],
            "record_sha256": fingerprint(decision),
        }
    return {
        "outcome": decision.outcome.value,
        "reason": decision.reason[:_LONGEST],
        "weights_digest": " ".join(decision.weights_digests),
    }


_LONGEST = 5000  # characters of a tag that MLflow takes


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} is not installed: pip install {name}") from error
