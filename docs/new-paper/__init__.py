"""newpaper: say here in a line what the paper shows."""
