"""The command line."""

from sslinfo.cli.run import Cli, main

__all__ = ["Cli", "main"]
