"""Run folders to rows, plots and one page; reads files only."""
