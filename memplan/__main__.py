"""`memplan` and `python -m memplan`."""

from memplan.cli.app import main

if __name__ == "__main__":
    main()
