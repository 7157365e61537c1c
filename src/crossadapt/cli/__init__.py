"""The command line: `main` dispatches to one thin file per command."""
