"""Deployment: exports verified against the checkpoint, and predictions from any of them."""
