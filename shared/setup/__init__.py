"""The environment that `make setup` makes, and what is wrong with a machine. Needs the standard library only."""
