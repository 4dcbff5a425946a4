"""``python -m mqctl``."""

from __future__ import annotations

from mqctl.cli import main

if __name__ == "__main__":
    main()
