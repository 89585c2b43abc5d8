"""Accuracy, calibration, scale spread and generalization gap of a trained network."""
