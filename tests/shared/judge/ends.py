"""A script without `if __name__ == "__main__"`, which somebody takes for a module."""

import sys

sys.exit(0)
