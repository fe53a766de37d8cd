"""``python -m krea_client``: the command krea-client."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
