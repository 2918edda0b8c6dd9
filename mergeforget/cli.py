"""The `mergeforget` command: finds the commands, and turns errors into messages."""

from __future__ import annotations

import os
import pkgutil
import sys
from importlib import import_module
from typing import Any

import click

from mergeforget import commands
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
        return import_module(f"mergeforget.commands.{name.replace('-', '_')}").command  # type: ignore[no-any-return]

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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mergeforget")
def main() -> None:
    """Make a language model forget chosen training data.

    Trains an over-forgetting and an under-forgetting LoRA adapter, merges them, searches the
    density of the merge, measures every candidate, and hands over the balanced one with the
    evidence. Start with `mergeforget demo`.
    """


if __name__ == "__main__":
    sys.exit(main())
