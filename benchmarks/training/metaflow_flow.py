"""The steps of `training_job` as a Metaflow flow: the peer that ``make bench`` measures beside it.

Read the penguins, check them, cross-validate in five branches, fit on everything, register what
passes the gate. Written as Metaflow's own tutorials do it: a step and a process each, artifacts
between them, Keras's `fit`, scikit-learn's transformers in each fold, MLflow with a SQLite file for
runs and registry. Network, epochs, batches, folds, seed and gate are this project's defaults.
"""

import os

from metaflow import FlowSpec, Parameter, step

NUMBERS = ["culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g"]
CATEGORIES = ["island", "sex"]
TARGET = "species"
HIDDEN = (10, 8)


def transformer():
    """Numbers imputed and scaled, categories imputed and one-hot encoded."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            (
                "categories",
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
                ),
                CATEGORIES,
            ),
        ]
    )


def fitted(features, codes, classes, parameters, validation=None):
    """A dense network after `fit`, and the accuracy on `validation` after the last epoch."""
    import keras

    keras.utils.set_random_seed(parameters["seed"])
    network = keras.Sequential(
        [
            keras.Input((features.shape[1],)),
            *(keras.layers.Dense(units, activation="relu") for units in HIDDEN),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
    network.compile(
        optimizer=keras.optimizers.Adam(parameters["learning_rate"]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = network.fit(
        features,
        codes,
        epochs=parameters["epochs"],
        batch_size=parameters["batch_size"],
        validation_data=validation,
        verbose=0,
    )
    return network, history.history["val_accuracy"][-1] if validation else None


class Training(FlowSpec):
    """Cross-validation and a registered model."""

    data = Parameter("data", help="CSV file of the penguins")
    tracking = Parameter("tracking", help="URI of MLflow's database")
    folds = Parameter("folds", default=5)
    epochs = Parameter("epochs", default=50)
    batch_size = Parameter("batch-size", default=32)
    learning_rate = Parameter("learning-rate", default=0.01)
    seed = Parameter("seed", default=42)
    gate = Parameter("gate", default=0.7, help="accuracy without which nothing is registered")

    @property
    def parameters(self):
        """What every fit is given."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
        }

    @step
    def start(self):
        """Read and check the data, and open the MLflow run."""
        import mlflow
        import pandas as pd

        frame = pd.read_csv(self.data).dropna(subset=[TARGET])
        missing = {*NUMBERS, *CATEGORIES, TARGET} - set(frame.columns)
        if missing or frame.empty:
            raise ValueError(f"the data lack {missing or 'rows'}")
        self.frame = frame
        self.classes = sorted(frame[TARGET].unique())
        self.codes = frame[TARGET].map(self.classes.index).to_numpy()
        mlflow.set_tracking_uri(self.tracking)
        with mlflow.start_run(run_name="flow") as run:
            self.run_id = run.info.run_id
            mlflow.log_params(self.parameters)
        self.next(self.cross_validation, self.model)

    @step
    def cross_validation(self):
        """Split the rows into folds."""
        from sklearn.model_selection import StratifiedKFold

        splitter = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        self.splits = list(splitter.split(self.codes, self.codes))
        self.next(self.fold, foreach="splits")

    @step
    def fold(self):
        """Fit on the other folds and score on this one."""
        import mlflow

        training, held_out = self.input
        fitting = transformer().fit(self.frame.iloc[training])
        features = fitting.transform(self.frame)
        _, self.accuracy = fitted(
            features[training],
            self.codes[training],
            len(self.classes),
            self.parameters,
            (features[held_out], self.codes[held_out]),
        )
        mlflow.set_tracking_uri(self.tracking)
        with (
            mlflow.start_run(run_id=self.run_id),
            mlflow.start_run(run_name=f"fold-{self.index}", nested=True),
        ):
            mlflow.log_metric("accuracy", self.accuracy)
        self.next(self.scores)

    @step
    def scores(self, inputs):
        """Average the folds."""
        import mlflow

        accuracies = [fold.accuracy for fold in inputs]
        self.mean_accuracy = sum(accuracies) / len(accuracies)
        self.merge_artifacts(inputs, include=["run_id"])
        mlflow.set_tracking_uri(self.tracking)
        with mlflow.start_run(run_id=self.run_id):
            mlflow.log_metric("accuracy_mean", self.mean_accuracy)
        self.next(self.register)

    @step
    def model(self):
        """Fit on everything."""
        self.transformer = transformer().fit(self.frame)
        network, _ = fitted(
            self.transformer.transform(self.frame), self.codes, len(self.classes), self.parameters
        )
        self.network = network.to_json()
        self.weights = network.get_weights()
        self.next(self.register)

    @step
    def register(self, inputs):
        """Register the model if its cross-validated accuracy passes the gate."""
        import keras
        import mlflow

        self.mean_accuracy = inputs.scores.mean_accuracy
        if self.mean_accuracy < self.gate:
            raise ValueError(f"accuracy {self.mean_accuracy} is below {self.gate}")
        network = keras.models.model_from_json(inputs.model.network)
        network.set_weights(inputs.model.weights)
        fitting = inputs.model.transformer

        class Penguins(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):
                return network.predict(fitting.transform(model_input), verbose=0)

        mlflow.set_tracking_uri(self.tracking)
        with mlflow.start_run(run_id=inputs.scores.run_id):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=Penguins(),
                registered_model_name="penguins",
                pip_requirements=["keras", "jax", "scikit-learn"],
            )
        self.next(self.end)

    @step
    def end(self):
        """Print the mean accuracy, for who measures."""
        print(f"accuracy {self.mean_accuracy}")


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    Training()
