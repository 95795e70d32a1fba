"""From per-example values to numbers with intervals. No torch, no files."""
