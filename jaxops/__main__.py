"""`python -m jaxops`, and the program `jaxops`: the command line of `jaxops.cli`."""

import sys


def main() -> int:
    """Run one command. Without the extra `cli`, print in one line which extra is missing."""
    try:
        from jaxops.cli import main as command
    except ImportError as error:
        if "--debug" in sys.argv:
            raise
        print(f"jaxops: error: {error}", file=sys.stderr)
        return 1
    return command()


if __name__ == "__main__":
    sys.exit(main())
