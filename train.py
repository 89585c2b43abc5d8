"""Train a classifier: ``python train.py [key=value ...]``; ``--help`` lists groups and keys."""

from sppcls.app import main

if __name__ == "__main__":
    main()
