"""More versions of a trained platform's model: the same again, and one that is wrong."""

from dataclasses import replace

from mlschool_dagster.modeling.compiled import CompiledModel, DenseLayer
from mlschool_dagster_tests.platform import Platform


def register_again(platform: Platform) -> str:
    """The model of version 1 as one more version, which is the challenger then."""
    first = platform.registry().resolve("1")
    return platform.registry().register(first.source, first.run_id, {})


def spoil(platform: Platform, version: str) -> None:
    """Turn the fetched `version` into its opposite: it predicts, and what it predicts is wrong."""
    folder = platform.registry().fetch(version, platform.home / "versions")
    model = CompiledModel.load(folder)
    last = model.layers[-1]
    opposite = DenseLayer(-last.kernel, -last.bias, last.activation)
    replace(model, layers=(*model.layers[:-1], opposite)).save(folder)
