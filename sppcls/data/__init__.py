"""Files to batches: sources, images, schedule, plan, loader."""
