"""Turns run folders into tables, plots and pages; only reads files."""
