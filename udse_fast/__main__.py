"""`python -m udse_fast`."""

from udse_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
