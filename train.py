"""Train a classifier: ``python train.py [key=value ...]``; ``--help`` lists groups and keys."""

from sppcls.commands import train

if __name__ == "__main__":
    train()
