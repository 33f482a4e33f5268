"""Agreement on published votes: that of this project is that of another implementation, on votes counted anew."""

from __future__ import annotations

import itertools

import krippendorff
import numpy as np
import pytest
from published import published_data  # noqa: F401  # the fixture `real_data`

from data.annotators.tables import tabulate
from data.quality.votes import votes_of_files
from rlhf.analysis.agreement import agreement, tallied
from rlhf.config import DataConfig, SourceConfig

PANDALM = "pairs/pandalm_testset_3annot.jsonl.gz"
SQUALITY = "ratings/squality_human_eval_long.jsonl.gz"


@pytest.mark.parametrize(("name", "prompt"), [(PANDALM, None), (SQUALITY, "Answer.")])
def test_agreement_is_that_of_another_implementation(real_data: str, name: str, prompt: str | None) -> None:
    source = SourceConfig(path=name, bad_records="drop", prompt=prompt)
    votes = [vote.comparison for vote in votes_of_files([name], source, DataConfig(directory=real_data)).read()]
    # Counted here by texts, in the order of the alphabet, which is not the order of the table.
    cast: dict[tuple[str, str, str], dict[str | None, str]] = {}
    for vote in votes:
        one, other = sorted((vote.chosen, vote.rejected))
        answer = "tie" if vote.tie else "one" if vote.chosen == one else "other"
        cast.setdefault((vote.prompt.text, one, other), {})[vote.annotator] = answer
    found = agreement(tallied((unit, answer) for unit, answers in cast.items() for answer in answers.values()))
    names = sorted({str(annotator) for answers in cast.values() for annotator in answers})
    codes = {"one": 0.0, "other": 1.0, "tie": 2.0}
    rows = [[codes[answers[who]] if who in answers else np.nan for answers in cast.values()] for who in names]
    expected = krippendorff.alpha(reliability_data=np.array(rows), level_of_measurement="nominal")
    assert found is not None and found.alpha == pytest.approx(expected, abs=1e-9)
    pairs = [pair for answers in cast.values() for pair in itertools.combinations(answers.values(), 2)]
    assert found.share == pytest.approx(np.mean([one == other for one, other in pairs]))

    table = tabulate(votes)
    coded = np.full((len(table.names), table.pairs), np.nan)
    coded[table.annotator, table.pair] = table.answer
    in_table = agreement(tallied(zip(table.pair.tolist(), table.answer.tolist(), strict=True)))
    expected = krippendorff.alpha(reliability_data=coded, level_of_measurement="nominal")
    assert in_table is not None and in_table.alpha == pytest.approx(expected, abs=1e-9)
    assert in_table.share == pytest.approx(found.share) and table.pairs == len(cast)
