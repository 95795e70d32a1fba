"""What the papers share: data, models, attacks, training, metrics, plumbing, report."""
