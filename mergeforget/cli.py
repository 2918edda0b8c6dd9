"""The `mergeforget` command: finds the commands, and turns errors into messages."""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from mergeforget import commands
from mergeforget.console import set_verbosity
from mergeforget.distributed import is_main, rank
from mergeforget.errors import MergeforgetError


class Commands(click.Group):
    """Every file in ``mergeforget/commands`` is a command of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = pkgutil.iter_modules(commands.__path__)
        return sorted(m.name.replace("_", "-") for m in found if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        found = import_module(f"mergeforget.commands.{name.replace('-', '_')}").command
        add_common_options(found)
        return found  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from mergeforget.errors import suggest

        name = args[0].replace("_", "-")
        if not name.startswith("-") and name not in self.list_commands(ctx):
            known = self.list_commands(ctx)
            ctx.fail(
                f"There is no command {args[0]!r}.{suggest(name, known)} Known: {', '.join(known)}."
            )
        return super().resolve_command(ctx, [name, *args[1:]])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MergeforgetError as error:
            if os.environ.get("MERGEFORGET_TRACEBACK"):
                raise
            which = "" if is_main() else f" in process {rank()}"
            click.echo(f"Error{which}: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nInterrupted. What was finished is kept; --resume goes on.", err=True)
            ctx.exit(130)
        except MemoryError:
            click.echo("Error: Out of memory. Use a smaller --batch-size or model.", err=True)
            ctx.exit(6)


def add_common_options(command: click.Command) -> None:
    """Let a command, and the commands of a group, take ``--plugin``, ``-v`` and ``-q``."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_common_options(inner)
    elif not any(option.name == "plugins" for option in command.params):
        command.params += common_options()


def common_options() -> list[click.Parameter]:
    """Options that are valid before and after the name of a command."""
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
    ]  # fmt: skip


def _load_plugins(ctx: click.Context, _: click.Parameter, files: tuple[Path, ...]) -> None:
    from mergeforget.registry import load_plugin

    for file in files:
        load_plugin(file)


def _set_verbosity(_: click.Context, option: click.Parameter, chosen: bool) -> None:
    if chosen:
        set_verbosity(logging.DEBUG if option.name == "verbose" else logging.WARNING)


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
