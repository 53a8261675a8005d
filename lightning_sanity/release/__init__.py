"""May these weights go out? Files and policies in, one decision out; knows no test.

gating.py      the gate: results and a policy in, a decision out
finding.py     which results count, of files and folders
policy.py      what a release asks of a result
shown.py       is the method that is shown one that a choice recommends for these weights?
decision.py    a decision as JSON, JUnit XML and Markdown
record.py      a decision and what it rests on, as an in-toto Statement; record.schema.json describes it
model_card.py  a record on a Hugging Face model card
registries.py  mark a version in MLflow's or W&B's registry if the gate let it pass
"""

from lightning_sanity.release.gating import Check, Decision, gate
from lightning_sanity.release.policy import Policy, read_policy
from lightning_sanity.release.registries import promote_mlflow, promote_wandb

__all__ = ["Check", "Decision", "Policy", "gate", "promote_mlflow", "promote_wandb", "read_policy"]
