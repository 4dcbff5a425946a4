"""The documentation: what it shows is what happens, and what there is it shows.

In README.md and docs/*.md:

    ```psql            one psql session for the page, in a database "app" of its own; compared exactly
    ```psql varies     the same, but for process ids, times and receipts
    ```python          run after it, in the same database; a ```text block right behind is its output
    ```python fragment compiled only
    ```sh              commands and options of mqctl, and make targets, exist

MQ_WRITE_DOCS=1 writes what psql prints into the pages instead of comparing.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import psycopg
import pytest

from mqctl.program import program as main
from support import binaries
from support.server import Server
from support.server import database as temporary_database

REPO = binaries.REPO
DOCS = REPO / "docs"
PAGES = sorted([REPO / "README.md", REPO / "CHANGELOG.md", *DOCS.glob("*.md")])
SQL = REPO / "sql"

PROMPT = re.compile(r"^app([=\-('\"$])[*!]?[>#] ?(.*)$")
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "--8<--"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what else the fence says, its text, where that begins."""

    kind: str
    info: str
    text: str
    start: int
    end: int
    line: int


def blocks(path: Path) -> list[Block]:
    text = path.read_text()
    found = []
    for match in FENCE.finditer(text):
        kind, _, info = match[1].strip().partition(" ")
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(kind, info, match[2], match.start(2), match.end(2), line))
    return found


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def pages_with(kind: str) -> list[Path]:
    return [path for path in PAGES if any(block.kind == kind for block in blocks(path))]


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.fixture
def app(server: Server, mq_template: str) -> Iterator[str]:
    with temporary_database(server, "app", mq_template) as dsn:
        yield dsn


# psql


@dataclass
class Statement:
    """What is typed, prompts and all, and what comes back."""

    typed: list[str]
    printed: str = ""

    @property
    def sent(self) -> str:
        found = [PROMPT.match(line) for line in self.typed]
        return "\n".join(match[2] for match in found if match)


def statements(text: str) -> list[Statement]:
    found: list[Statement] = []
    copying = False
    for line in text.splitlines():
        prompt = PROMPT.match(line)
        if prompt and prompt[1] == "=":
            found.append(Statement([line]))
            copying = False
        elif prompt:
            found[-1].typed.append(line)
        elif line.startswith(">> ") or copying:
            raise AssertionError("show \\copy from a program or a file instead of typed rows")
        else:
            found[-1].printed += line.rstrip() + "\n"
    return found


def run_psql(server: Server, todo: list[Statement]) -> list[str]:
    """What psql prints for each statement, errors first."""
    script = "".join(f"{s.sent}\n\\echo {MARK}\n\\warn {MARK}\n" for s in todo)
    done = subprocess.run(
        [binaries.psql(), "-X", "-d", "app"],
        env=server.env("app") | {"PAGER": "", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        cwd=REPO,
        input=script,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outs, errs = (text.split(MARK + "\n")[:-1] for text in (done.stdout, done.stderr))
    assert len(outs) == len(errs) == len(todo)
    return [tidy(err + out) for out, err in zip(outs, errs, strict=True)]


def tidy(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.splitlines()).rstrip("\n") + "\n"


def steady(text: str) -> str:
    """Without process ids, times and receipts."""
    text = re.sub(r"PID \d+", "PID n", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:\d\d)?)?", "time", text)
    text = re.sub(r"\b\d+(\.\d+){7}\.[0-9]{19}\b", "receipt", text)
    return re.sub(r"-{3,}", "---", re.sub(r" {2,}", " ", text))


@pytest.mark.parametrize("path", pages_with("psql"), ids=name)
def test_psql_prints_what_the_page_says(path: Path, server: Server, app: str) -> None:
    shown = [block for block in blocks(path) if block.kind == "psql"]
    sessions = [statements(block.text) for block in shown]
    printed = iter(run_psql(server, [s for session in sessions for s in session]))
    real = [[next(printed) for _ in session] for session in sessions]
    if os.environ.get("MQ_WRITE_DOCS"):
        write(path, shown, sessions, real)
        return
    for block, session, outputs in zip(shown, sessions, real, strict=True):
        for statement, output in zip(session, outputs, strict=True):
            expected = tidy(statement.printed)
            if block.info == "varies":
                expected, output = steady(expected), steady(output)
            assert output == expected, f"{name(path)}, block at line {block.line}: {statement.sent}"


def write(
    path: Path, shown: list[Block], sessions: list[list[Statement]], real: list[list[str]]
) -> None:
    text = path.read_text()
    for block, session, outputs in reversed(list(zip(shown, sessions, real, strict=True))):
        lines = []
        for statement, output in zip(session, outputs, strict=True):
            same = block.info == "varies" and steady(tidy(statement.printed)) == steady(output)
            lines += statement.typed
            lines += (tidy(statement.printed) if same else output).rstrip("\n").splitlines()
        text = text[: block.start] + "\n".join(lines) + "\n" + text[block.end :]
    path.write_text(text)


# Python

# Runs the block in `text`. A consumer of an example would wait for ever: here it stops when it has nothing to do.
RUN = """
import ast, asyncio, functools, inspect, mq
mq.consume = functools.partial(mq.consume, stop_when_empty=True)
mq.consume_async = functools.partial(mq.consume_async, stop_when_empty=True)
names = {"__name__": "example"}
exec(prepare, names)
done = eval(compile(text, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
if inspect.iscoroutine(done):
    asyncio.run(done)
"""

# What the blocks of docs/python.md have around them.
PREPARE = {
    "docs/python.md": """
import datetime, psycopg, mq

class send:
    def __init__(self, payload): pass
    def __await__(self): return iter(())

dsn = "dbname=app"
conn = psycopg.connect(dsn, autocommit=True)
conn.execute("create table if not exists orders (id int)")
conn.execute("create table if not exists sent (order_id int)")
queue = mq.Client(conn)
queue.create_queue("mail", if_not_exists=True)
queue.enqueue("mail", {"order": 17})
jobs = mq.consume(dsn, "mail", stop_when_empty=True)
tomorrow = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
"""
}


@pytest.mark.parametrize("path", pages_with("python"), ids=name)
def test_python_examples_run(path: Path, server: Server, app: str) -> None:
    all_blocks = blocks(path)
    todo = [s for b in all_blocks if b.kind == "psql" for s in statements(b.text)]
    if todo:
        run_psql(server, todo)
    for block, following in zip(all_blocks, [*all_blocks[1:], None], strict=True):
        if block.kind != "python":
            continue
        where = f"{name(path)}, block at line {block.line}"
        given = {
            "where": where,
            "text": block.text.replace("1_000_000", "1_000"),
            "prepare": PREPARE.get(name(path), ""),
        }
        compile(given["text"], where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.info == "fragment":
            continue
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(f"{k} = {v!r}" for k, v in given.items()) + RUN],
            env=server.env("app") | {"PYTHONPATH": str(REPO / "python")},
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{where}\n{done.stderr}"
        if following is not None and following.kind == "text":
            assert done.stdout == following.text, where


# Commands


def commands(path: Path) -> Iterator[list[str]]:
    """Every command of mqctl or make that the page shows, split into words."""
    lines = [
        line
        for block in blocks(path)
        if block.kind in ("sh", "ini", "text", "")
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose(path))]
    for line in lines:
        for found in re.finditer(r"(?:^|[\s/;|(=])((?:mqctl|make) [^|;>)&#…]*)", line):
            words = shlex.split(found[1])
            yield [word for word in words if word not in ("...",)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    for words in commands(path):
        if words[0] == "make":
            assert words[1] in targets, words
        else:
            check_mqctl(words)


def check_mqctl(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="mqctl")
    rest = words[1:]
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            option = rest.pop(0).partition("=")[0]
            assert any(option in param.opts for param in command.get_params(context)), words
            if option == "--dsn":
                rest.pop(0)
        if not rest or "|" in rest[0]:
            return
        found = command.get_command(context, rest[0])
        assert found is not None, f"no such command: {words}"
        command, rest = found, rest[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    rest = ["--embedded=" if word == "--embedded" else word for word in rest]
    try:
        command.make_parser(context).parse_args(rest)
    except click.UsageError as error:
        raise AssertionError(f"{words}: {error.format_message()}") from None


def test_every_command_of_mqctl_is_documented() -> None:
    shown = "\n".join(path.read_text() for path in PAGES)
    paths = [
        f"mqctl {top} {sub}".rstrip()
        for top, command in main.commands.items()
        for sub in (command.commands if isinstance(command, click.Group) else [""])
    ]
    assert [path for path in paths if path not in shown] == []


# Completeness


def public_functions(conn: psycopg.Connection) -> list[str]:
    query = """select p.proname::text from pg_proc as p
               where p.pronamespace = 'mq'::regnamespace and left(p.proname, 1) <> '_'"""
    return [row[0] for row in conn.execute(query)]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_fresh(conn: psycopg.Connection) -> None:
    fresh = generator().render(conn)
    assert (DOCS / "reference.md").read_text() == fresh, (
        "run: .venv/bin/python docs/generate_reference.py"
    )


def test_every_function_is_in_the_reference_and_shown_at_work(conn: psycopg.Connection) -> None:
    reference = (DOCS / "reference.md").read_text()
    guide = (DOCS / "guide.md").read_text()
    functions = public_functions(conn)
    assert [f for f in functions if f"### mq.{f}\n" not in reference] == []
    assert [f for f in functions if f"mq.{f}(" not in guide] == []


def test_no_page_calls_a_function_that_does_not_exist(conn: psycopg.Connection) -> None:
    functions = [*public_functions(conn), "consume", "consume_async"]
    for path in PAGES:
        called = re.findall(r"\bmq\.([a-z]\w*)\(", without_python(path))
        assert sorted(set(called) - set(functions)) == [], name(path)


def without_python(path: Path) -> str:
    if path.name == "python.md":
        return ""
    return FENCE.sub(
        lambda found: "" if found[1].startswith("python") else found[0], path.read_text()
    )


def raised_codes() -> set[str]:
    """Every SQLSTATE that the functions raise themselves."""
    codes = set()
    for path in SQL.glob("functions/**/*.sql"):
        for raised in re.findall(r"errcode = '(\w+)'", path.read_text()):
            if re.fullmatch(r"[0-9A-Z]{5}", raised):
                codes.add(raised)
            else:
                kind = "".join(word.title() for word in raised.split("_"))
                codes.add(str(getattr(psycopg.errors, kind).sqlstate))
    return codes - {"MQ0ZZ"}  # never leaves the function that raises it


def test_every_error_is_documented() -> None:
    listed = set(re.findall(r"^\| `(\w{5})` \|", (DOCS / "errors.md").read_text(), re.MULTILINE))
    assert raised_codes() - listed == set()


def test_no_error_is_documented_that_is_not_raised() -> None:
    errors = (DOCS / "errors.md").read_text()
    assert set(re.findall(r"^\| `(MQ\d+)` \|", errors, re.MULTILINE)) == {
        code for code in raised_codes() if code.startswith("MQ")
    }
    assert set(re.findall(r"\bMQ\d{3}\b", (DOCS / "reference.md").read_text())) <= (raised_codes())


# Links


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\(docs/([\w.]+)\)", (REPO / "README.md").read_text()))
    assert {path.name for path in DOCS.glob("*.md")} - linked == set()


# What the pages refer to


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_that_are_named_exist(path: Path, conn: psycopg.Connection) -> None:
    promised = {f"tests/sql/{function}.sql" for function in public_functions(conn)}
    named = set(re.findall(r"`((?:sql|tests|docs|python|bench)/[\w./-]+\w)`", prose(path)))
    assert {file for file in named - promised if not (REPO / file).exists()} == set()
