"""``python -m sppcls VERB``."""

from sppcls.commands import command

if __name__ == "__main__":
    command()
