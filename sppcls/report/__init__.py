"""Run folders to rows, plots and pages; reads files only."""
