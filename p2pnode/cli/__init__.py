"""The command line: thin commands, an ordinary client of the local API."""
