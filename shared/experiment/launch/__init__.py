"""Starting a script on one or several processes. See README.md in this folder."""
