"""The command `underdraw`: a file per sub-command, and `app` that puts them together.

Nothing heavy is imported before a command runs: `underdraw --help` loads no framework.
"""


def main() -> None:
    """Run the command line; exits with 0 (done), 1 (it failed), 2 (a mistake in the call) or 130
    (interrupted)."""
    from underdraw.cli.app import app

    app(prog_name="underdraw")
