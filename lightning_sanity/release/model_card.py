"""A release record on a Hugging Face model card: a section for readers, evaluation results for the hub.

https://huggingface.co/docs/hub/model-cards describes the card: a block of YAML between two lines of dashes, then
Markdown. The library ``huggingface_hub`` reads and writes the block, so that everything else in it stays; comments in
it do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_sanity.release.decision import cell
from lightning_sanity.resources.files import StrPath, regular
from lightning_sanity.result.evidence import OF_LABELS

_BEGIN, _END = "<!-- lightning-sanity: begin -->", "<!-- lightning-sanity: end -->"
_LARGEST = 1 << 20  # bytes of a card
_PROBE = "lightning-sanity-probe"
_INDICES = {OF_LABELS: ("data_randomization_index", "DRI")}
_PSI = ("parameter_sensitivity_index", "PSI")


def read_card(path: StrPath) -> str:
    """The text of a card.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no text, or longer than a card is.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no model card '{path}': write one first, if only with a title")
    try:
        return regular(path, _LARGEST).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no text in UTF-8: {error}") from error


def merged(card: str, record: Mapping[str, Any]) -> str:
    """A card with what a record says: what it said before of another record is replaced, all else stays.

    Args:
        card: Text of the card, with a metadata block or without.
        record: Of ``record.statement``.

    Raises:
        ModuleNotFoundError: If huggingface_hub is not installed.
        ValueError: If the card's metadata cannot be read, or only one end of an earlier section is left.
    """
    try:
        from huggingface_hub import ModelCard  # type: ignore[import-not-found,unused-ignore]  # an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('a model card needs huggingface_hub: pip install "lightning-sanity[card]"') from error
    try:
        read = ModelCard(card)
        data: Any = read.data
        others = [each for each in data.eval_results or () if each.dataset_type != _PROBE]
        task = data.to_dict().get("pipeline_tag") or "other"
    except Exception as error:  # what the library makes of a block that is none
        raise ValueError(f"the metadata of the model card cannot be read: {' '.join(str(error).split())}") from error
    ours = list(_evaluations(record, str(task)))
    data.eval_results = [*others, *ours] or None
    if data.eval_results and not data.model_name:
        subjects = record["subject"]
        data.model_name = Path(subjects[0]["name"]).stem if subjects else "model"
    whole = str(read) if data.to_dict() else card
    return _with_section(whole, section(record))


def section(record: Mapping[str, Any]) -> str:
    """The part for readers, in Markdown."""
    predicate = record["predicate"]
    decision = predicate["decision"]
    rows = [["method", "verdict", "index [95 %]", "why"], ["---"] * 4]
    facts = []
    for result in predicate["results"]:
        index = _INDICES.get(result["test"], _PSI)[1]
        for name, verdict in result["verdicts"].items():
            label = cell(name) + ("" if verdict["gated"] else " (control)")
            rows.append([label, verdict["outcome"], f"{index} {_interval(verdict)}", cell(verdict["reason"])])
        facts.append(
            f"{result['test'].replace('_', ' ')} test of {cell(result['created'] or 'an unknown date')}, weights "
            f"{cell(result['weights_digest'])}, probe {cell(result['probe_digest'])}, "
            f"{100 * (result['coverage'] or 0):.1f} % of the used parameters proven changed"
        )
    asked = {key: value for key, value in predicate["policy"].items() if value not in (None, [], False)}
    asked |= {key: value["name"] for key, value in asked.items() if isinstance(value, Mapping)}
    parts = [
        "## Saliency maps: do they depend on the model?",
        f"**{decision['outcome']}**: {cell(decision['reason'])}",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "0 = the map ignores what was randomized, 1 = as different as unrelated maps. A pass is necessary, not "
        "sufficient: it does not show that a map is right.",
        "\n".join(f"- {fact}" for fact in facts),
        f"Asked for: {cell(', '.join(f'{key} {value}' for key, value in asked.items()) or 'nothing but a pass')}. "
        f"Decided {cell(decision['decided'])} by {cell(decision['decided_by'])}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _evaluations(record: Mapping[str, Any], task: str) -> Iterator[Any]:
    """Indices of the methods that count, of runs that are valid."""
    from huggingface_hub import EvalResult

    for result in record["predicate"]["results"]:
        kind, index = _INDICES.get(result["test"], _PSI)
        for name, verdict in result["verdicts"].items():
            if result["valid"] and verdict["gated"] and verdict["psi"] is not None:
                yield EvalResult(
                    task_type=task,
                    dataset_type=_PROBE,
                    dataset_name=f"probe {result['probe_digest'][:12]}",
                    dataset_args={"digest": result["probe_digest"]},
                    metric_type=kind,
                    metric_value=verdict["psi"],
                    metric_name=f"{index} of {name}",
                    metric_args={
                        "verdict": verdict["outcome"],
                        "interval": [verdict["psi_low"], verdict["psi_high"]],
                        "measure": verdict["measure"],
                    },
                )


def _interval(verdict: Mapping[str, Any]) -> str:
    numbers = [verdict[key] for key in ("psi", "psi_low", "psi_high")]
    return "undefined" if None in numbers else "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)


def _with_section(card: str, text: str) -> str:
    """The section in the place of an earlier one, or else at the end; lines end as the card's do."""
    newline = "\r\n" if "\r\n" in card else "\n"
    lines = f"{_BEGIN}\n{text}\n{_END}".replace("\n", newline)
    begins, ends = card.count(_BEGIN), card.count(_END)
    if (begins, ends) == (0, 0):
        return f"{card.rstrip()}{newline}{newline}{lines}{newline}"
    start, stop = card.find(_BEGIN), card.find(_END)
    if (begins, ends) != (1, 1) or stop < start:
        raise ValueError(f"the model card holds {begins} times '{_BEGIN}' and {ends} times '{_END}': leave one of each")
    return card[:start] + lines + card[stop + len(_END) :]
