"""`python -m segpipe` is `segpipe`."""

from segpipe.cli.main import main

if __name__ == "__main__":
    main()
