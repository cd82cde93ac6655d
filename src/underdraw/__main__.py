"""`python -m underdraw` is the command `underdraw`."""

from underdraw.cli import main

if __name__ == "__main__":
    main()
