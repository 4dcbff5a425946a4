"""mqctl: installs, upgrades, inspects and operates mq, the message queue in one PostgreSQL schema."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
