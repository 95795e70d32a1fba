"""Running experiments: one dial for the scale, measurements kept under the key of what produced them."""
