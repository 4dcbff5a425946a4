"""What the tests share: throw-away servers, pgTAP, waiting without clocks."""

from __future__ import annotations
