"""``python -m sslinfo``: the same as the console script."""

from sslinfo.cli import console

console()
