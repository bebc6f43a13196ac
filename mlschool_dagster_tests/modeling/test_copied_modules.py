import subprocess
import sys
from pathlib import Path

import pytest

from mlschool_dagster.modeling.version_folder import CODE, copy_modules
from mlschool_dagster_tests.serving.tiny_model import tiny_model


def test_the_copies_work_without_the_package(tmp_path: Path) -> None:
    copy_modules(CODE, tmp_path / "carried")
    tiny_model().save(tmp_path)
    code = (
        "import sys; sys.modules['mlschool_dagster'] = None; from pathlib import Path; "
        "from carried.compiled import CompiledModel; from carried.validation import Validator; "
        "model = CompiledModel.load(Path()); Validator(model.spec); print(model.spec.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "penguins", done.stderr


def test_modules_of_one_name_and_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would be one file"):
        copy_modules(
            ("mlschool_dagster.promotion.ledger", "mlschool_dagster.deployment.ledger"), tmp_path
        )
    with pytest.raises(ValueError, match="no module that can be copied"):
        copy_modules(("mlschool_dagster.serving",), tmp_path)
