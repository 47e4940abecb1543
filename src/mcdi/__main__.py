"""`python -m mcdi`: the command line."""

from mcdi.cli.entry import main

if __name__ == "__main__":
    main()
