"""The command `cpuinfer`."""


def main() -> None:
    """Run the command line of this process and exit."""
    from cpuinfer.cli.app import app

    app(prog_name="cpuinfer")
