"""The command line: one thin file per command that parses, calls, renders and sets the exit code."""
