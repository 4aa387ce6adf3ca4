"""The command line: ``secateur COMMAND``, one file a command, over the public names."""

from secateur.cli.main import main

__all__ = ["main"]
