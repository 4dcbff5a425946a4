"""mq against a model of it, see stateful/: what any sequence of calls leaves is what the model says.

In `make test` the same few examples each time. `make test-stateful` looks for new ones, MQ_STATEFUL_EXAMPLES (default
200) of each machine; ARGS="-k Core --hypothesis-seed=7" says which. With MQ_STATEFUL_AS_FOUND a failure is not made shorter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import run_state_machine_as_test

from stateful.cancelling import Cancelling
from stateful.consuming import Consuming
from stateful.deduplicating import Deduplicating
from stateful.features import Expiring, Pausing, Prioritising, Retrying, merged
from stateful.limiting import Limiting
from stateful.machine import Draws, Machine
from stateful.ordering import Ordering
from stateful.producing import Producing
from stateful.replaying import Replaying
from stateful.reporting import Reporting
from stateful.scheduling import Scheduling
from stateful.throttling import Throttling
from stateful.transactional import InTransactions
from stateful.transactions import Transactions
from stateful.upkeep import Upkeep
from support import race

database = race.database


class Calm(Producing, Consuming):
    """Without failures: every call commits by itself, and the order is known."""


class Core(Producing, Transactions, Upkeep):
    """What every queue does, with nothing but the defaults of enqueue."""


class WithCancel(Core, Cancelling):
    """Messages are taken back as well."""


class WithPriorities(Core, Prioritising):
    """What is urgent comes first."""


class WithTtl(Core, Expiring):
    """Messages that are worth nothing after a while."""


class WithRetries(Core, Retrying):
    """What failed waits longer each time."""


class WithKeys(Core, Cancelling, Deduplicating):
    """One message of a deduplication key."""


class WithLimit(Core, Limiting):
    """No more than so many messages wait."""


class WithResults(Core, Reporting):
    """Consumers say what came of messages."""


class WithReplay(Core, Replaying):
    """What is done is kept, and delivered again."""


class WithOrder(Core, Ordering):
    """Messages of one ordering key come in order."""


class WithLimits(Core, Throttling):
    """Consumers have no more than so many messages."""


class WithSchedules(Core, Scheduling):
    """What is due at a time, each time."""


FEATURES = (
    Prioritising,
    Expiring,
    Retrying,
    Deduplicating,
    Limiting,
    Reporting,
    Replaying,
    Scheduling,
    Ordering,
    Throttling,
    Pausing,
    Cancelling,
)


class Everything(Core, *FEATURES):  # type: ignore[misc]
    """All features in one queue."""

    options: ClassVar[Draws] = merged("options", *FEATURES)
    settings: ClassVar[Draws] = {
        **merged("settings", *FEATURES),
        "max_in_flight": st.sampled_from((None, None, 4)),  # else little would be in hand
    }


MACHINES: dict[type[Machine] | type[InTransactions], int] = {
    Calm: 1,
    Core: 3,
    WithCancel: 1,
    WithPriorities: 1,
    WithTtl: 1,
    WithRetries: 1,
    WithKeys: 1,
    WithLimit: 1,
    WithResults: 1,
    WithReplay: 1,
    WithSchedules: 1,
    WithOrder: 1,
    WithLimits: 1,
    Everything: 3,
    InTransactions: 2,
}
"""And how many examples `make test` tries: about two seconds each on an idle machine."""


# Without explain: it runs a failure a hundred times more.
PHASES = [Phase.generate] + [Phase.shrink] * ("MQ_STATEFUL_AS_FOUND" not in os.environ)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[None]:
    """What hypothesis keeps does not go into the tree."""
    set_hypothesis_home_dir(tmp_path)
    yield
    set_hypothesis_home_dir(None)


@pytest.mark.timeout(0)
@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.__name__)
def test_it_is_as_the_model_says(
    machine: type[Machine] | type[InTransactions], database: str, request: pytest.FixtureRequest
) -> None:
    """A failure prints the calls that lead to it, as few as hypothesis finds."""
    many = os.environ.get("MQ_STATEFUL_EXAMPLES")
    seed = request.config.getoption("--hypothesis-seed")
    machine.dsn = database
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(many) if many else MACHINES[machine],
            stateful_step_count=60,
            derandomize=not many and seed is None,
            database=None,
            deadline=None,
            print_blob=False,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
