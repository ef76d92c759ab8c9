"""`segpipe completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that lets SHELL complete commands, options and files.

    Add its line of the examples to ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish and open a new terminal.
    """
    from click.shell_completion import get_completion_class

    from segpipe.cli.main import root

    writer = get_completion_class(shell)
    assert writer is not None
    click.echo(writer(root, {}, "segpipe", "_SEGPIPE_COMPLETE").source())
