"""The command line: finds the command, runs it, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import sam_ds
from sam_ds.config.errors import TRY_AGAIN, LostRanksError, RankError, UserError, nearest
from sam_ds.config.secrets import without_passwords

# The modules of sam_ds.cli, in the order of --help. They import torch and DeepSpeed only when they run.
COMMANDS = ("train", "eval", "export", "predict", "probe", "check", "plan", "data", "recipes")

# Those that may read weights that another person made.
_READ_WEIGHTS = ("train", "eval", "predict", "probe", "check")
_LONGEST_LINE = 2000  # characters; what a user got wrong may be a whole file

_EXAMPLE = """example:
  sam-ds data synth .cache/synthetic
  sam-ds train --recipe tiny --data .cache/synthetic
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps to one line on a mistake and shows examples as they were written."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated options would clash with the DeepSpeed launcher's own.
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="sam-ds", description=sam_ds.__doc__, epilog=_EXAMPLE)
    parser.add_argument("--version", action="version", version=f"sam-ds {sam_ds.__version__}")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # the launcher's
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True, parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"sam_ds.cli.{name}").add_parser(subparsers)
    for name in _READ_WEIGHTS:
        subparsers.choices[name].add_argument(
            "--trust-checkpoint",
            action="store_true",
            help="also load a .pth that is no plain file of weights: loading it runs whatever its maker put into it",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns its exit code: 0, 1 where a plan does not fit or gradients differ, 2 after a user's mistake, 75 where other
    ranks have gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_command(arguments)
        args = build_parser().parse_args(arguments)
        if getattr(args, "trust_checkpoint", False):
            from sam_ds.modeling import convert

            convert.trust_pickles()
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        _report(error)
        return 2
    except LostRanksError as error:
        print(f"sam-ds: rank {os.environ.get('RANK', '0')}: {error}; what they said last says why", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 128 + signal.SIGPIPE


def _reader_has_gone() -> bool:
    """Whether nobody reads what this prints, as after ``| head``; then what is left goes nowhere, without complaint."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):  # of a pipe with a reader, or a file
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _check_command(arguments: Sequence[str]) -> None:
    """Raise UserError if the first word is no command; argparse would not name the nearest."""
    words = iter(arguments)
    for word in words:
        if word == "--local_rank":
            next(words, None)
        elif not word.startswith("-"):
            if word not in COMMANDS:
                raise UserError(f"no command {word!r}; {nearest(word, COMMANDS)}")
            return


def _report(error: UserError) -> None:
    """Print the mistake once a machine, as all ranks of a machine make the same one, unless it is one rank's own."""
    own = isinstance(error, RankError)
    if os.environ.get("LOCAL_RANK", "0") != "0" and not own:
        return
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"{socket.gethostname()}, rank {rank}: " if own else f"{socket.gethostname()}: "
    line = without_passwords(" ".join(str(error).split()))[:_LONGEST_LINE]
    print(f"sam-ds: {where}{line}", file=sys.stderr)
