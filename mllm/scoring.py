"""How generated answers are scored: one function a rule, one entry each.

Every rule gives plain numbers, one of which is the score. A change of what a rule counts gets a new version, which
stands in the evaluation card of a row (`mllm.card`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mllm.cider import cider_d
from mllm.normalise import normalised

Several = Sequence[Sequence[str]]
_ENOUGH = 4  # human answers of which three agree when one is left out


@dataclass(frozen=True)
class Scored:
    """What a rule found.

    Args:
        score: The one number.
        each: Of every answer, of which the score is the mean.
        values: Further numbers by name.
    """

    score: float
    each: list[float]
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorer:
    """A rule.

    Args:
        measure: Answers and the right ones of each, to numbers.
        version: Of what is counted.
        says: The rule in words, for the card.
        best: Highest score.
    """

    measure: Callable[[Sequence[str], Several], Scored]
    version: int
    says: str
    best: float = 1.0

    def __call__(self, answers: Sequence[str], references: Several) -> Scored:
        """Score answers.

        Args:
            answers: What was generated.
            references: The right answers to each, at least one.

        Raises:
            ValueError: There is nothing to score, or the right answers are not of the kind that the rule compares with.
        """
        if not answers:
            raise ValueError(
                "There is no answer to score: the part that is evaluated has no samples. Evaluate another part."
            )
        return self.measure(answers, references)


def exact(answers: Sequence[str], references: Several) -> Scored:
    """Share of answers that are one of the right ones, both normalised as VQAv2 does."""
    pairs = zip(answers, references, strict=True)
    each = [float(normalised(answer) in {normalised(one) for one in right}) for answer, right in pairs]
    return Scored(fmean(each), each)


def vqa(answers: Sequence[str], references: Several) -> Scored:
    """Soft accuracy (Antol et al., ICCV 2015, arXiv:1505.00468; Goyal et al., CVPR 2017, arXiv:1612.00837).

        mean over i of min(1, how many humans other than i gave this answer / 3)

    Raises:
        ValueError: A question has fewer than 4 human answers, so that nothing could count in full.
    """
    for number, right in enumerate(references, start=1):
        if len(right) < _ENOUGH:
            raise ValueError(
                f"evaluation.score vqa compares with the answers of several humans, 10 in VQAv2, and question {number} "
                f"has {len(right)}. Give at least {_ENOUGH} as `answers` of each record, or use evaluation.score exact."
            )
    pairs = zip(answers, references, strict=True)
    each = [_soft(normalised(answer), [normalised(one) for one in right]) for answer, right in pairs]
    return Scored(fmean(each), each)


def yes_no(answers: Sequence[str], references: Several) -> Scored:
    """POPE (Li et al., EMNLP 2023, arXiv:2305.10355): accuracy, and precision, recall and F1 of yes.

    As in its program the first sentence counts, and is a no if it has the word no or not, else a yes; `unclear` is the
    share of answers with none of the three words. What has no denominator is 0.

    Raises:
        ValueError: A right answer is neither yes nor no.
    """
    truth = [_truth(right[0], number) for number, right in enumerate(references, start=1)]
    words = [_first_words(answer) for answer in answers]
    said = [not words_of & {"no", "not"} for words_of in words]
    both = sum(a and b for a, b in zip(said, truth, strict=True))
    precision, recall = (both / sum(found) if any(found) else 0.0 for found in (said, truth))
    each = [float(a == b) for a, b in zip(said, truth, strict=True)]
    return Scored(
        fmean(each),
        each,
        {
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if both else 0.0,
            "yes_share": fmean(said),
            "unclear": fmean(not words_of & {"yes", "no", "not"} for words_of in words),
        },
    )


def cider(answers: Sequence[str], references: Several) -> Scored:
    """CIDEr-D (`mllm.cider`), 0 to 10; papers print a hundred times that."""
    each = cider_d(answers, references)
    return Scored(fmean(each), each)


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(exact, 1, "equal to a right answer, both normalised by the rules of VQAv2"),
    "vqa": Scorer(vqa, 1, "VQAv2's soft accuracy, min(1, n / 3) over humans, each left out in turn; normalised"),
    "yes_no": Scorer(yes_no, 1, "POPE's accuracy; the first sentence is no if it says no or not, else yes"),
    "cider": Scorer(cider, 1, "CIDEr-D, 0 to 10, of word n-grams up to 4, document frequencies of these samples", 10.0),
}


def _soft(answer: str, right: Sequence[str]) -> float:
    same = [one == answer for one in right]
    return fmean(min(1.0, (sum(same) - mine) / 3) for mine in same)


def _truth(right: str, number: int) -> bool:
    if (found := normalised(right)) not in ("yes", "no"):
        raise ValueError(
            f"evaluation.score yes_no needs yes or no as the right answer, and question {number} has '{right}'. Use "
            "evaluation.score exact."
        )
    return found == "yes"


def _first_words(answer: str) -> set[str]:
    return set(re.findall(r"\w+", answer.strip().partition(".")[0].lower()))
