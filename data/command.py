"""The manners of every command line here: bad input ends in one sentence and exit code 2, Ctrl-C in 130.

Import this before torch: a Ctrl-C during the slow imports then ends the program without a traceback too.
"""
import argparse
import math
import os
import sys
from pathlib import Path


def quiet_interrupt(kind, error, traceback, previous=sys.excepthook):
    if not issubclass(kind, KeyboardInterrupt):
        previous(kind, error, traceback)


sys.excepthook = quiet_interrupt


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The file's docstring as it stands, and each option's default where it has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=Help)


def run(main, interrupted: str = "", out_of_memory: str = ""):
    """Call main() and leave the process as a user expects.

    interrupted: what Ctrl-C leaves behind and how to go on. out_of_memory: which options take less.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal or pipe that is ASCII gets "?" for "±", and no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    name = Path(sys.argv[0]).name
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`: the reader has gone, so there is no one to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print(f"\ninterrupted{'; ' + interrupted if interrupted else ''}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        print(f"{name}: memory ran out{'; ' + out_of_memory if out_of_memory else ''}", file=sys.stderr)
        sys.exit(2)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a GPU's, a CPU allocator's or Python's way to say so."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory"))  # a CPU's, Apple's
    return said or bool(kinds & {"OutOfMemoryError", "MemoryError"})


def positive(kind):
    """A type for argparse: a whole number, or a number, above 0."""
    def parse(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError("must be above 0")
        return value
    parse.__name__ = "number" if kind is float else "whole number"  # "invalid whole number value: 'x'"
    return parse


def path(argument: str) -> Path:
    """A type for argparse: a file or folder, since "" would be the current folder."""
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty")
    return Path(argument)


def text(argument: str) -> str:
    """A type for argparse: text that is valid in the terminal's encoding."""
    if any("\ud800" <= character <= "\udfff" for character in argument):
        raise argparse.ArgumentTypeError("is not valid UTF-8")
    return argument
