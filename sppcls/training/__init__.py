"""Training with Lightning: module, datamodule, callbacks and the run."""
