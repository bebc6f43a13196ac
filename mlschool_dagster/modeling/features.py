"""Features: the scikit-learn transformer, derived from the spec, from a table to numbers."""

from typing import TYPE_CHECKING

from mlschool_dagster.dataset.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.compose import ColumnTransformer


def new_transformer(spec: DataSpec) -> "ColumnTransformer":
    """An unfitted transformer of the table that `input_frame` gives.

    Numeric columns: the mean for a missing value, then standardisation. Categorical columns: the
    most frequent category for a missing value, then one-hot over the spec's categories; any other
    category gives zeros. The width is that of the spec, whichever values the rows hold, so that
    transformers fitted on different folds agree; a column without any value still has its place.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = Pipeline(
        [
            ("impute", SimpleImputer(strategy="mean", keep_empty_features=True)),
            ("standardise", StandardScaler()),
        ]
    )
    categorical = Pipeline(
        [
            ("impute", SimpleImputer(strategy="most_frequent", keep_empty_features=True)),
            (
                "encode",
                OneHotEncoder(
                    categories=[list(column.categories) for column in spec.categorical],
                    handle_unknown="ignore",
                    sparse_output=False,
                ),
            ),
        ]
    )
    return ColumnTransformer(
        [
            ("numeric", numeric, [column.name for column in spec.numeric]),
            ("categorical", categorical, [column.name for column in spec.categorical]),
        ]
    )


def input_frame(frame: "pd.DataFrame", spec: DataSpec) -> "pd.DataFrame":
    """The spec's input columns of `frame` as transformers take them.

    Numeric columns are float64, categorical ones objects, and missing is NaN in both, however it
    was written before (Parquet gives None, a nullable type ``pd.NA``).
    """
    import numpy as np

    columns = {
        column.name: frame[column.name].to_numpy(dtype="float64", na_value=np.nan)
        for column in spec.numeric
    } | {
        column.name: frame[column.name].to_numpy(dtype=object, na_value=np.nan)
        for column in spec.categorical
    }
    return type(frame)(columns, index=frame.index)[spec.input_names]
