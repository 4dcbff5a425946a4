"""mq against a simple model of it: hypothesis makes up sequences of calls, in sessions that commit or do not.

model.py       what mq promises, in Python; to be read as its specification
machine.py     the sessions, the calls, the clock, and the checks after each step
producing.py, consuming.py, transactions.py, upkeep.py
               the rules: what may be called when, and what the model says about the answer
features.py, and a file for each other feature: cancelling, deduplicating, limiting, ordering, replaying, reporting, scheduling
               its rules, on top of those
transactional.py
               a queue of mode transaction, by itself: there are no leases

`tests/py/test_stateful.py` runs them. In `make test` the examples are always the same ones, and few;
`make test-stateful` makes up new ones: ARGS="-k Core --hypothesis-seed=7", MQ_STATEFUL_EXAMPLES=5000.

**Why it is sequential.** One call runs at a time, so each answer has a reason. What interleaves are transactions: up to
three of them are open at any time. A call that would have to wait for another session's transaction is not made:
races, in which two calls run at once, are for tests/py/test_races_*.py.

**Freedom.** Where mq may do one thing or another (which of the messages that others have in hand it passes over, whether
a dequeue took back what ran out), the model says what it may, and learns from what it sees: see Model.learn.
What it must do is compared exactly.

**To add a feature**, make a file here with a class `Feature(Machine)` (or of what it builds on), and in the test a
`class WithFeature(Core, Feature)` in MACHINES, and Feature in FEATURES, which are all in one queue.

* An option of enqueue is a line in `options`: its name, and how to draw it; in producing.ARGUMENTS, what it is in SQL
  if that is not what was drawn. A message remembers its own in `message.options`; more state is a field of Message.
  Where enqueue may answer otherwise (refuse, give the id of another message), override `put`.
* A setting is a line in `settings`: how to draw it. Intervals are drawn in minutes (machine.INTERVALS).
* What may be delivered is `Model.may_be_delivered`; in which order, `check_delivery` and `check_order` (call super's);
  what must be, where nobody else has anything in hand, `check_turn`, out of what `in_turn` leaves.
* A state changes in Model only, by a method that gives Transaction.do how to undo the change, and what it is when it is
  committed. What mq may do by itself, at a time of its choice, goes into `learn`.
* A call of its own is a `@step`. A draw that picks something is an integer, so that it shrinks (see Machine.pick). A call
  that would wait for another session's transaction is left out by `when`.
* A time that is not in a timestamptz column of a table is moved in `pass_more_time`.
* A figure of queue_stats is a line in `figures`; another check after each step is one more in `is_as_the_model_says`.

Then break it: a rule that no mutant of tests/mutants notices asserts nothing.
"""
