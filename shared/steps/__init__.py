"""Steps that more than one paper computes; see `shared.experiment.step`."""
