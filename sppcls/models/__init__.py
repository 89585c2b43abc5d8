"""Trunks by name, and the classifier that pools and labels their feature maps."""
