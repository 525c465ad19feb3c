"""Group commit over one SQLite connection: what one turn of the event loop gathers shares a transaction, and a sync.

A member of a group is an operation, a function that reads and writes inside an open transaction, or a step, a row of a
statement that is run once for all steps of the group. The transaction takes the write lock at its beginning, so what an
operation reads stays true until it commits: each checks its own fence, and a loser writes nothing. Steps are fenced by
the condition of their statement. If an operation raises, or a step is fenced off, the group is rolled back and each
member runs in a transaction of its own, so that only the culprit fails.

SQLite's busy timeout is 0: a busy wait would stall the loop while a stopped process holds the lock. A group that finds
the store locked tries again a little later, together with what has come in meanwhile.

Unknown outcomes: a failed COMMIT is rolled back and the members are run again; those that had landed find their own
nonce (rule 5), or their own message, and answer as they would have done.
"""

from __future__ import annotations

import random
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import define

from wasman_host.errors import StoreUnavailableError
from wasman_host.store.protocol import Step, Won
from wasman_host.wake import Answer, call_later, call_soon

if TYPE_CHECKING:
    from wasman_host.store.protocol import Key

__all__ = ["Group", "Transactions", "busy", "pause"]

T = TypeVar("T")

_CROWD = 4  # members of a transaction from which on those who wait for it go on in step
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})


class Transactions(ABC):
    """What a group needs of the store that it writes for."""

    busy_timeout: float
    repeating: bool  # whether members run again that may have landed
    crowded: bool  # whether several were written together the last time

    @abstractmethod
    def cursor(self) -> sqlite3.Cursor:
        """What a transaction runs on; raises `StoreUnavailableError` where it may not be written to."""

    @abstractmethod
    def write_steps(self, steps: Sequence[Step]) -> bool:
        """Inside a transaction: write all of them; False if one of them is fenced off."""

    @abstractmethod
    def write_alone(self, step: Step) -> bool:
        """Write it in a transaction that is one statement, and finish that; False where one does not do."""

    @abstractmethod
    def write_step(self, step: Step) -> Any:
        """Inside a transaction: decide on one step, and write it if it wins."""

    @abstractmethod
    def finish(self) -> None:
        """Inside a transaction, last of all: write what the members have left to be written together."""

    @abstractmethod
    def landed(self) -> None:
        """The transaction is on disk."""

    @abstractmethod
    def undone(self) -> None:
        """The transaction was rolled back."""

    @abstractmethod
    def explained(self, error: BaseException) -> BaseException:
        """What to raise instead of an error of SQLite."""


@define(eq=False)
class _Member:
    """One operation or step of a group, who waits for it, and until when it may be tried (monotonic seconds)."""

    work: Callable[[], Any] | Step
    answer: Answer[Any]
    deadline: float


class _FencedError(Exception):
    """A step of the group is not where it thinks it is; which one shows when each runs alone."""


class _CommitError(Exception):
    """COMMIT itself failed (the cause): whether the transaction is on disk has to be looked up."""


class Group:
    """What waits for the next transaction."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._pending: list[_Member] = []
        self._scheduled = False
        self._attempts = 0
        self._lone: Key | None = None  # whose step the last transaction was, and nothing else

    def at_once(self, step: Step) -> Won | None:
        """Write the step of an instance that goes on alone, and nothing else; None where it is to be given to `write`.

        That is so where it is not alone, and where it was not written or nobody knows: `write` finds out.
        """
        if self._pending or step.key != self._lone:
            return None
        try:
            if self._transactions.write_alone(step):
                self._transactions.landed()
            else:
                self._transact([step])
        except Exception:  # noqa: BLE001  whatever it is, `write` meets it again, or finds the step's nonce
            return None
        return Won(step.version + 1, 0)

    def write(self, work: Callable[[], T] | Step) -> Answer[T]:
        """Have the operation, or the step, be part of the next transaction."""
        answer: Answer[T] = Answer()
        self._pending.append(_Member(work, answer, time.monotonic() + self._transactions.busy_timeout))
        if not self._scheduled:
            self._scheduled = True
            call_soon(self._flush)
        return answer

    def close(self, error: BaseException) -> None:
        """Write what waits; what cannot be written because the store is locked fails with `error`."""
        if self._pending:
            self._flush()
        for member in self._pending:
            member.answer.fail(error)
        self._pending = []

    def _flush(self) -> None:
        self._scheduled = False
        if not self._pending:
            return
        group, self._pending = self._pending, []
        done = 0
        try:
            try:
                results = self._transact([member.work for member in group])
                done = len(group)
                for member, result in zip(group, results, strict=True):
                    member.answer.set(result)
            except Exception as error:
                if busy(error):
                    raise
                self._transactions.repeating = not isinstance(error, _FencedError)
                for member in group:
                    self._alone(member)
                    done += 1
            self._attempts = 0
        except Exception as error:  # noqa: BLE001  locked: what is left over waits, unless its time is up
            self._later(group[done:], error)
        except BaseException:
            for member in group[done:]:
                member.answer.fail(StoreUnavailableError("interrupted in a commit, the outcome is unknown"))
            raise
        finally:
            self._transactions.repeating = False

    def _alone(self, member: _Member) -> None:
        """Run one member in a transaction of its own; raises only where the store is locked."""
        for last in (False, True):
            try:
                [result] = self._transact([member.work], alone=True)
            except _CommitError as error:
                # Once more: if it has landed all the same, it finds its nonce.
                self._transactions.repeating = True
                if last:
                    member.answer.fail(self._transactions.explained(cast("BaseException", error.__cause__)))
            except Exception as error:
                if busy(error):
                    raise
                member.answer.fail(self._transactions.explained(error))
                return
            else:
                member.answer.set(result)
                return

    def _later(self, group: list[_Member], error: Exception) -> None:
        now = time.monotonic()
        for member in group:
            if member.deadline <= now:
                member.answer.fail(self._transactions.explained(error))
        self._pending = [member for member in group if member.deadline > now] + self._pending
        self._attempts += 1
        if self._pending and not self._scheduled:
            self._scheduled = True
            call_later(pause(self._attempts), self._flush)

    def _transact(self, works: Sequence[Callable[[], Any] | Step], *, alone: bool = False) -> list[Any]:
        """Do the work of members in one transaction: what each is answered. Or raise, with nothing written."""
        store = self._transactions
        db = store.cursor()
        db.execute("begin immediate")
        try:
            results = self._run(works, alone=alone)
            store.finish()
            try:
                db.execute("commit")
            except sqlite3.Error as error:
                if busy(error):
                    raise
                raise _CommitError from error
        except BaseException:
            store.undone()
            if db.connection.in_transaction:
                db.execute("rollback")
            raise
        store.crowded = len(works) >= _CROWD
        self._lone = work.key if len(works) == 1 and isinstance(work := works[0], Step) else None
        store.landed()
        return results

    def _run(self, works: Sequence[Callable[[], Any] | Step], *, alone: bool) -> list[Any]:
        store = self._transactions
        if alone:
            return [store.write_step(work) if isinstance(work, Step) else work() for work in works]
        steps = [work for work in works if isinstance(work, Step)]
        if steps and not store.write_steps(steps):
            raise _FencedError
        return [Won(work.version + 1, 0) if isinstance(work, Step) else work() for work in works]


def busy(error: BaseException) -> bool:
    """Whether the file is locked by another process: nothing was done, and a little later it may go."""
    code = getattr(error, "sqlite_errorcode", None) if isinstance(error, sqlite3.Error) else None
    return code is not None and code & 0xFF in _BUSY


def pause(attempt: int) -> float:
    """How long to wait for a lock, in seconds: about the time of one commit at first, and never two the same."""
    return random.uniform(0.0003, min(0.001 * attempt, 0.02))  # noqa: S311  no secret
