"""Starting a script on one or several processes: `accelerate launch` and its config files. See README.md in this folder."""
