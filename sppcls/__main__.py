"""``python -m sppcls VERB``."""

from sppcls.cli import command

if __name__ == "__main__":
    command()
