"""``sslinfo`` and ``python -m sslinfo``: which command it is, answered here where that needs no torch."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sslinfo import __version__

COMMANDS = {
    "fit": "train a recipe",
    "validate": "information and probes of a checkpoint; information of a network trained elsewhere",
    "test": "linear probe to convergence, with all, 10% and 1% of the labels, and k-NN",
    "predict": "representations and labels of each split in an .npz file",
    "sweep": "one training for each value of an option: a table and a figure",
    "recipes": "the recipes and overlays that -c takes, with a line each",
}
DESCRIPTION = """\
Self-supervised learning with information-theoretic objectives and diagnostics.

  sslinfo fit -c quickstart                          train a recipe (`sslinfo recipes` lists them)
  sslinfo fit -c vicreg_logdet -c data/cifar100      compose it with an overlay
  sslinfo validate --ckpt_path last                  look at the newest checkpoint
  sslinfo fit --model.help VICReg                    what a model takes (also --data.help TwoViewDataModule)
  sslinfo fit -c RECIPE --print_config=skip_null     the configuration that would run
"""


class _Front(argparse.ArgumentParser):
    """Reads which command it is; the rest is the command's own."""

    def __init__(self) -> None:
        super().__init__(
            prog="sslinfo",
            usage="sslinfo COMMAND [options]; `sslinfo COMMAND --help` lists its options",
            description=DESCRIPTION,
            epilog="commands:\n" + "\n".join(f"  sslinfo {name:10}{text}" for name, text in COMMANDS.items()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"sslinfo {__version__}")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self.add_argument("command", nargs="?", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}: a command comes first ({', '.join(COMMANDS)}), its options after it")


def console(args: Sequence[str] | None = None) -> None:
    """Run a command line (``sys.argv`` without one).

    A user's mistake is a message and exit code 2; an exception that nobody expected is a message, a file with its
    traceback and exit code 1.
    """
    given = list(sys.argv[1:] if args is None else args)
    first = next((place for place, argument in enumerate(given) if not argument.startswith("-")), len(given) - 1)
    parser, rest = _Front(), given[first + 1 :]
    if given and given[0].partition("=")[0] in ("-c", "--config"):
        command = next((word for word in given if word in COMMANDS), "fit")
        options = " ".join(word for word in given if word != command)
        _fail(f"a command comes first, its options after it: sslinfo {command} {options}")
    own = parser.parse_args(given[: first + 1])
    if own.command is None:
        _fail(f"no command is given: {', '.join(COMMANDS)}; `sslinfo --help` says what they do")
    elif own.command not in COMMANDS:
        close = difflib.get_close_matches(own.command, COMMANDS, n=1)
        _fail(f"there is no command {own.command}: " + (f"did you mean {close[0]}?" if close else ", ".join(COMMANDS)))
    elif own.command == "recipes":
        from sslinfo.errors import UserError
        from sslinfo.recipes import print_recipes

        try:
            print_recipes(rest)
        except UserError as error:
            _fail(str(error))
    else:
        _run(own.command, [argument for argument in rest if argument != "--debug"], own.debug or "--debug" in rest)


def _run(command: str, rest: list[str], debug: bool) -> None:
    folder = os.getcwd()  # not "": the parser changes folder while it reads a file
    if folder not in sys.path:
        sys.path.insert(0, folder)  # classes of the working folder can be named
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost rank shows a stack of C++ frames
    from sslinfo.cli import main
    from sslinfo.cli.faults import keep_traceback, told
    from sslinfo.cli.run import RUNS
    from sslinfo.cli.sweep import sweep

    _quiet()
    run: Callable[[list[str]], object] = sweep if command == "sweep" else main
    if debug:
        run([command, *rest])
        return
    try:
        run([command, *rest])
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning has made an exit of it
            _interrupted()
        raise
    except Exception as error:
        fault = told(error)
        file = None if fault.understood else keep_traceback(error, Path(RUNS))
        hint = "" if fault.understood else f"\n(the traceback: {file or 'add --debug'})"
        _fail(f"{fault.message}{hint}", 2 if fault.of_user else 1)


def _interrupted() -> NoReturn:
    print("sslinfo: interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)


def _quiet() -> None:
    """Advertisements and warnings about Lightning's own insides say nothing to a user."""
    warnings.filterwarnings("ignore", ".*treespec.*")
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.*deprecated.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())
        logging.getLogger(name).addFilter(lambda record: "litmodels" not in record.getMessage())


def _fail(message: str, code: int = 2) -> NoReturn:
    shown = re.sub(r"([^\s/\\]{200})[^\s/\\]+", r"\1...", message)  # a word that nobody reads to its end
    print(f"sslinfo: {shown}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    console()
