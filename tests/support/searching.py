"""Search the output of each test for secrets at its end; a test that printed one fails.

What is said: log records of all loggers, what was printed, errors that the test caught, and the state below its
`tmp_path`. Fixtures of several tests have their state in a `searched_directory`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from .leaks import has_mark, heard_by, logged, marked_files, told


class Searching(logging.Handler):
    """A plugin of pytest: what it hears it searches at once, so that nothing is kept."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self._found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if has_mark(logged(record)):
            self._found.append(f"a log line of {record.name} ({record.pathname}:{record.lineno})")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._found.clear()
        with heard_by(self), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pytest.RaisesExc, "__exit__", self._before(pytest.RaisesExc.__exit__))
            return (yield)

    def _before(self, leave: Callable[..., bool]) -> Callable[..., bool]:
        """The end of a `pytest.raises` that hears what was caught."""

        def hear(caught: object, kind: object, error: BaseException | None, trace: object) -> bool:
            if error is not None and has_mark(told(error)):
                self._found.append(f"an error: {type(error).__name__}")
            return leave(caught, kind, error, trace)

        return hear

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "teardown":
            self._found += [f"the {title}" for title, text in report.sections if has_mark(text)]
            self._found += _written(item)
            if self._found and report.passed:
                report.outcome = "failed"
                report.longrepr = "A secret of the tests was said in:\n" + "\n".join(self._found)
        return report


def _written(item: pytest.Item) -> list[str]:
    place = getattr(item, "funcargs", {}).get("tmp_path")
    return marked_files(place) if isinstance(place, Path) else []
