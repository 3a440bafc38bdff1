"""`irv2 completion`: the script with which a shell completes our programs."""

import click

from irv2.cli.completion import SHELLS, script
from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program


@click.command(
    cls=Program,
    examples=(
        'eval "$(irv2 completion bash)"    # in ~/.bashrc',
        'eval "$(irv2 completion zsh)"     # in ~/.zshrc, after compinit',
        "irv2 completion fish | source    # in ~/.config/fish/config.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
def main(shell: str, as_json: bool) -> None:
    """Print the script with which SHELL completes irv2, irv2-train, irv2-export and so on.

    It completes programs, options, their choices, and the names of files.
    """
    print_json({"script": script(shell)}) if as_json else click.echo(script(shell), nl=False)
