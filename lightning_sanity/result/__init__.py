"""What a test returns: frozen nouns, their file, and the verdict on the numbers in them.

sanity_result.py   SanityResult, Verdict, Coverage: frozen, and their round trip through JSON
curve.py           Curve: a similarity along a cascade, and how very many of them stay in a file of bounded size
shapes.py          do the tensors of a file fit one another?
choice.py          Choice: which method to show, and the evidence
file.py            the file: strict reading, nothing executed; result.schema.json describes it
pictures.py        small copies of inputs and maps
psi.py             the parameter sensitivity index and its interval
signal.py          the noise guard, rank tests, Holm's correction
dri.py             the index of the data randomization test, its interval, its verdict
evidence.py        what a file shows: every verdict decided anew, and what contradicts it
verdict.py         the criterion, and from numbers to PASS, FAIL or INCONCLUSIVE
controls.py        methods whose verdict is known beforehand, and what makes a run invalid
bootstrap.py       resampling, for indices whose interval has no closed form
noninferiority.py  two results on the same probe: did a method get worse?
comparison.py      two or more side by side: what became of every method
"""

from lightning_sanity.result.choice import Choice
from lightning_sanity.result.curve import Curve
from lightning_sanity.result.sanity_result import (
    Coverage,
    Grounds,
    Outcome,
    OutputChange,
    SanityCheckFailed,
    SanityResult,
    UnitCoverage,
    Verdict,
)
from lightning_sanity.result.verdict import Criterion

__all__ = [
    "Choice",
    "Coverage",
    "Criterion",
    "Curve",
    "Grounds",
    "Outcome",
    "OutputChange",
    "SanityCheckFailed",
    "SanityResult",
    "UnitCoverage",
    "Verdict",
]
