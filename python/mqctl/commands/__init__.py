"""The commands of mqctl, one module for each area."""

from __future__ import annotations
