"""Errors of the client: chosen by SQLSTATE, with hint and detail, under one root."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import mq
from mq import errors
from support.server import Server
from support.server import database as temporary_database

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def database(server: Server, mq_template: str) -> Iterator[str]:
    """One for all tests here: each has a queue of its own."""
    with temporary_database(server, "client_errors", mq_template) as dsn:
        yield dsn


@pytest.fixture
def queue(conn: psycopg.Connection[Any]) -> str:
    name = f"q{next(NUMBERS)}"
    mq.Client(conn).create_queue(name)
    return name


@pytest.fixture
def client(conn: psycopg.Connection[Any]) -> mq.Client:
    return mq.Client(conn)


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("MQ001", mq.QueueNotFound),
        ("MQ002", mq.QueueExists),
        ("MQ003", mq.LeaseLost),
        ("MQ004", mq.MalformedReceipt),
        ("MQ007", mq.TransactionTooLarge),
        ("MQ008", mq.QueueFull),
        ("MQ009", mq.Duplicate),
        ("MQ010", mq.MessageDead),
        ("MQ011", mq.ScheduleNotFound),
        ("MQ999", mq.Error),
        ("3F000", mq.InstallationError),
        ("42883", mq.InstallationError),
        ("22023", mq.InvalidArgument),
        ("22004", mq.InvalidArgument),
        ("22003", mq.InvalidArgument),
        ("0A000", mq.NotSupported),
        ("40001", mq.RetryTransaction),
        ("40P01", mq.RetryTransaction),
        ("55P03", mq.RetryTransaction),
        ("55000", mq.InvalidState),
        ("42501", mq.PermissionDenied),
        ("57P01", mq.ConnectionLost),
        ("57P04", mq.ConnectionLost),  # the database was dropped
        ("57P05", mq.ConnectionLost),  # idle_session_timeout
        ("25P03", mq.ConnectionLost),  # idle_in_transaction_session_timeout
        ("25P04", mq.ConnectionLost),  # transaction_timeout
        ("08006", mq.ConnectionLost),
        ("57014", mq.Error),
    ],
)
def test_sqlstate_decides(
    conn: psycopg.Connection[Any], sqlstate: str, kind: type[mq.Error]
) -> None:
    statement = (
        "do $$ begin raise exception using message = 'm', detail = 'd', hint = 'h', "
        f"errcode = '{sqlstate}'; end $$"
    )
    with pytest.raises(mq.Error) as caught, errors.translated(conn):
        conn.execute(statement)
    error = caught.value
    assert type(error) is kind
    assert (error.sqlstate, error.message, error.detail, error.hint) == (sqlstate, "m", "d", "h")
    assert str(error) == "m\nDETAIL: d\nHINT: h"
    assert isinstance(error.__cause__, psycopg.Error)


def test_all_have_one_root_and_are_exported() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == "mq.errors":
            assert issubclass(kind, mq.Error)
            assert name in mq.__all__
            assert name in errors.__all__


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (mq.QueueNotFound, lambda c, q: c.enqueue("nowhere", 1)),
        (mq.QueueNotFound, lambda c, q: c.dequeue("nowhere")),
        (mq.QueueNotFound, lambda c, q: c.drop_queue("nowhere")),
        (mq.QueueExists, lambda c, q: c.create_queue(q)),
        (mq.InvalidArgument, lambda c, q: c.create_queue("no spaces")),
        (mq.InvalidArgument, lambda c, q: c.dequeue(q, 0)),
        (mq.InvalidArgument, lambda c, q: c.enqueue_batch(q, [1, 2], [None])),
        (mq.InvalidArgument, lambda c, q: c.enqueue(q, "nul \0 inside")),
        (mq.InvalidArgument, lambda c, q: c.enqueue("nul \0 inside", 1)),
        (mq.MalformedReceipt, lambda c, q: c.ack(q, "nonsense")),
        (mq.InvalidArgument, lambda c, q: c.enqueue(q, 1, ordering_key="")),
    ],
)
def test_bad_input(
    client: mq.Client, queue: str, kind: type[mq.Error], call: Callable[[mq.Client, str], object]
) -> None:
    with pytest.raises(kind):
        call(client, queue)


def test_what_json_cannot_write_is_a_type_error(client: mq.Client, queue: str) -> None:
    with pytest.raises(TypeError):
        client.enqueue(queue, object())


def test_a_database_without_mq(server: Any) -> None:
    with server.connect() as conn, pytest.raises(mq.InstallationError):
        mq.Client(conn).version()


def test_an_error_on_a_connection_that_is_closed_is_a_lost_connection_whatever_its_code(
    conn: psycopg.Connection[Any],
) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable) as caught:
        conn.execute("select from nowhere")
    assert type(errors.from_psycopg(caught.value)) is mq.Error
    assert type(errors.from_psycopg(caught.value, connected=False)) is mq.ConnectionLost


def test_a_lost_connection(conn: psycopg.Connection[Any], client: mq.Client, queue: str) -> None:
    with pytest.raises(mq.ConnectionLost) as caught, errors.translated(conn):
        conn.execute("select pg_terminate_backend(pg_backend_pid())")
    assert caught.value.sqlstate == "57P01"
    with pytest.raises(mq.ConnectionLost) as caught:
        client.enqueue(queue, 1)
    assert caught.value.sqlstate is None
