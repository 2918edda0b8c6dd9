"""The `mergeforget` command: load the commands, and map errors to messages and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mergeforget import commands
from mergeforget.console import save_details, set_verbosity
from mergeforget.distributed import is_main, rank
from mergeforget.errors import MergeforgetError, UsageError, suggest
from mergeforget.parsing import printable
from mergeforget.replace import NO_SPACE


class ReportingGroup(click.Group):
    """A group of commands that prints an error as one message and exits with its code."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except click.ClickException as error:
            object.__setattr__(error, "message", printable(error.message))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, SystemExit, GeneratorExit):
            raise
        except click.ClickException as error:
            object.__setattr__(error, "message", printable(error.message))
            raise
        except BrokenPipeError:  # the reader of stdout ended, for example `| head`
            raise
        except BaseException as error:  # includes panics of Rust libraries
            if os.environ.get("MERGEFORGET_TRACEBACK"):
                raise
            message, code = explain(error)
            which = "" if is_main() else f" in process {rank()}"
            click.echo(f"Error{which}: {printable(message)}", err=True)
            ctx.exit(code)


class Commands(ReportingGroup):
    """Every file in ``mergeforget/commands`` is a command of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        modules = pkgutil.iter_modules(commands.__path__)
        return sorted(m.name.replace("_", "-") for m in modules if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "study":
            return study_command()
        if name not in self.list_commands(ctx):
            return None
        found = import_module(f"mergeforget.commands.{name.replace('-', '_')}").command
        add_common_options(found)
        return found  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0].replace("_", "-")
        if not name.startswith("-") and name not in [*self.list_commands(ctx), "study"]:
            known = self.list_commands(ctx)
            ctx.fail(
                f"There is no command {args[0]!r}.{suggest(name, known)} Known: {', '.join(known)}."
            )
        return super().resolve_command(ctx, [name, *args[1:]])


def study_command() -> click.Command:
    """Return the commands of benchmarks/study in a checkout, under their name in version 0.1.

    Raises:
        UsageError: The package is not in a checkout.
    """
    try:
        module = import_module("benchmarks.study.__main__")
    except ModuleNotFoundError:
        raise UsageError(
            "The studies are not part of the installed package. Run `python -m benchmarks.study` "
            "in a checkout of mergeforget."
        ) from None
    click.echo("`mergeforget study` is now `python -m benchmarks.study`.", err=True)
    return module.main  # type: ignore[no-any-return]


def explain(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an error that ends a command.

    Codes: 1 unexpected, 2 usage, 3 recipe, 4 input, 5 numeric, 6 resources, 7 verification failed,
    130 and 143 interrupted by SIGINT and SIGTERM.
    """
    if isinstance(error, MergeforgetError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return (
            "Interrupted. Finished work is kept. Run the same command to continue, with --resume "
            "for train and train-pair."
        ), 130
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "Out of memory. Use a smaller batch size or model.", 6
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"The disk is full or the file is too large: {error}. Free some space.", 6
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        return f"Cannot use {error.filename or 'a file'}: {error.strerror}.", 4
    first = str(error).strip().split("\n")[0][:300]
    details = save_details(error)
    where = f"The details are in {details}. " if details else ""
    return (
        f"Unexpected {type(error).__name__}: {first or 'no message'}. {where}This is a fault of "
        "mergeforget unless the file or model it names is damaged; MERGEFORGET_TRACEBACK=1 prints "
        "the traceback.",
        1,
    )


FILE_ERRORS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.ENOTEMPTY, errno.EMFILE, errno.EIO,
}  # fmt: skip


def add_common_options(command: click.Command) -> None:
    """Add ``--plugin``, ``-v`` and ``-q`` to a command, or to the commands of a group."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_common_options(inner)
    elif not any(option.name == "plugins" for option in command.params):
        command.params += common_options()


def common_options() -> list[click.Parameter]:
    """Return the options that are valid before and after the name of a command."""
    return [
        click.Option(
            ["--plugin", "plugins"], multiple=True, is_eager=True, expose_value=False,
            callback=_load_plugins, metavar="FILE", envvar="MERGEFORGET_PLUGINS",
            type=click.Path(path_type=Path), help="Python file that registers losses, merge "
            "methods, metrics, attacks or benchmarks. Repeatable.",
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_set_verbosity,
            help="Show debug messages and the time of each message.",
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set_verbosity,
            help="Show warnings and results only.",
        ),
        click.Option(
            ["--trust-remote-code"], is_flag=True, expose_value=False, callback=_trust,
            help="Run the Python code that is stored with a model. Only for models whose code you "
            "trust; recipes and run folders cannot allow it.",
        ),
    ]  # fmt: skip


def _load_plugins(ctx: click.Context, _: click.Parameter, files: tuple[Path, ...]) -> None:
    from mergeforget.registry import load_plugin

    for file in files:
        load_plugin(file)


def _set_verbosity(_: click.Context, option: click.Parameter, chosen: bool) -> None:
    if chosen:
        set_verbosity(logging.DEBUG if option.name == "verbose" else logging.WARNING)


def _trust(ctx: click.Context, _: click.Parameter, chosen: bool) -> None:
    if chosen:
        from mergeforget.recipe import TRUSTED

        token = TRUSTED.set(True)
        ctx.find_root().call_on_close(lambda: TRUSTED.reset(token))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mergeforget")
def main() -> None:
    """Make a language model forget chosen training data.

    Trains an over-forgetting and an under-forgetting LoRA adapter, merges them, searches the
    density of the merge, evaluates every candidate, and exports the balanced one with the
    evidence. Start with `mergeforget demo`.
    """


main.params += common_options()

if __name__ == "__main__":
    sys.exit(main())
