"""Commands that have commands."""

from collections.abc import Mapping, Sequence

import click

#: A first sentence is never longer; the help wraps it instead of cutting it.
_SENTENCE_CHARS = 200


class Group(click.Group):
    """Its help shows the whole first sentence of each command."""

    def sections(self, ctx: click.Context) -> Mapping[str, Sequence[str]]:
        """What the help lists together, under which heading."""
        return {"Commands": self.list_commands(ctx)}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but for the cutting."""
        for title, names in self.sections(ctx).items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [(name, found.get_short_help_str(_SENTENCE_CHARS)) for name, found in commands if found]
            with formatter.section(title):
                formatter.write_dl(rows, col_max=14)
