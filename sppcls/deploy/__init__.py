"""Trained networks elsewhere: exports that prove themselves, and predictions from any of them."""
