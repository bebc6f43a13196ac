from dataclasses import replace

import pandas as pd
import pytest

from mlschool_dagster.dataset.spec import CategoricalColumn, DataSpec
from mlschool_dagster.modeling.evaluation import evaluate
from mlschool_dagster.modeling.model_card import LONGEST, model_card, shortened
from mlschool_dagster.modeling.training import TrainingResult


def test_a_card_shows_names_as_they_are(
    trained: TrainingResult, penguins: pd.DataFrame, spec: DataSpec
) -> None:
    evaluation = evaluate(trained, penguins, spec)
    assert "Accuracy 0.9" in model_card(trained, evaluation, penguins, spec, {})
    odd = "a|b <img src=x> `c` $d_e$\n# f"
    columns = tuple(
        replace(column, categories=(*column.categories, odd))
        if isinstance(column, CategoricalColumn)
        else column
        for column in spec.columns
    )
    frame = penguins.assign(sex=penguins["sex"].replace("MALE", odd))
    card = model_card(trained, evaluation, frame, replace(spec, columns=columns), {"source": odd})
    assert "<img" not in card
    assert r"a\|b &lt;img src=x&gt; \`c\` $d\_e$ \# f" in card
    assert not any(line.startswith("# f") for line in card.splitlines())


@pytest.mark.parametrize("length", [0, LONGEST - 1, LONGEST, LONGEST + 1, 10 * LONGEST])
def test_a_description_is_as_long_as_mlflow_keeps(length: int) -> None:
    card = ("line\n" * length)[:length]
    short = shortened(card)
    assert len(short) <= LONGEST
    assert short == card or short.endswith("`model_card.md`.)")
