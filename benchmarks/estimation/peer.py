"""NannyML's CBPE on the same rows; runs in an environment of its own, with NannyML installed.

    python peer.py FOLDER

FOLDER holds ``reference-<n>.parquet`` and ``windows-<n>.parquet`` (all windows of a training, one
after the other, with their number in ``window``). Its estimates are written beside them.
"""

import sys
import warnings
from pathlib import Path

import pandas as pd
from nannyml import CBPE

warnings.filterwarnings("ignore")

folder = Path(sys.argv[1])
for path in sorted(folder.glob("reference-*.parquet")):
    reference = pd.read_parquet(path)
    windows = pd.read_parquet(path.with_name(path.name.replace("reference", "windows")))
    classes = sorted(reference["truth"].unique())
    estimator = CBPE(
        problem_type="classification_multiclass",
        y_pred_proba={label: f"probability_{label}" for label in classes},
        y_pred="prediction",
        y_true="truth",
        metrics=["accuracy"],
        chunk_size=int((windows["window"] == 0).sum()),
    )
    estimator.fit(reference)
    found = estimator.estimate(windows.drop(columns="truth"))
    table = found.filter(period="analysis").to_df()["accuracy"]
    table = table[["value", "lower_confidence_boundary", "upper_confidence_boundary"]]
    table.columns = ["accuracy", "low", "high"]
    table.reset_index(drop=True).to_parquet(path.with_name(path.name.replace("reference", "peer")))
