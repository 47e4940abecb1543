"""`python -m mcdi`: the command line."""

from mcdi.cli.main import main

if __name__ == "__main__":
    main()
