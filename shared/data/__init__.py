"""Data sets: `base` (what every labelled set is), the scenes world, `named` (the sets of the papers) and `folders` (any
image folder)."""
