"""mq: a message queue that is nothing but SQL in one PostgreSQL schema; this is its Python client."""

from __future__ import annotations
