"""Training: cross-validation, the final model, and its registered version."""
