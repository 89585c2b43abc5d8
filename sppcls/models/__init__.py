"""Trunks by name, and the classifier that pools and classifies their feature maps."""
