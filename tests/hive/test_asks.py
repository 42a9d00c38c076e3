"""Questions: the first answer counts, and only those who may give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hiveyard.core.errors import BadInput, NotAllowed, NotFound
from hiveyard.core.states import AskState
from hiveyard.hive.asks import EXPIRED, AskRequest, answer_text

from .facts import Facts, facts

pytestmark = pytest.mark.anyio


async def opened(hive: Facts, asker: str = "ada", **more: Any) -> str:
    return await hive.hive.asks.open(asker, AskRequest(**{"question": "red or blue?", **more}))


async def test_an_answer_is_a_message_to_the_asker_and_names_who_gave_it(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob")
        ask = await opened(hive, options=["red", "blue"])
        assert await hive.waiting("ada") == []
        row = await hive.hive.asks.answer(ask[:6], "operator", ["blue"], "but light")
        assert (row.state, row.answered_by, answer_text(row)) == (AskState.ANSWERED, "operator", "blue\nbut light")
        [message] = await hive.waiting("ada")
        assert (message.kind, message.sender, message.ask, message.text) == (
            "answer",
            "operator",
            ask,
            "blue\nbut light",
        )
        with pytest.raises(BadInput, match="is over: operator answered it: blue but light"):
            await hive.hive.asks.answer(ask, "operator", ["red"])


async def test_a_question_to_a_member_is_in_its_mailbox_and_the_operator_may_answer_it(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob", "eve")
        first = await opened(hive, to="bob", options=["red", "blue"])
        assert await opened(hive, to="bob", options=["red", "blue"]) == first  # its program called twice
        second = await opened(hive, to="bob", question="which red?")
        rows = await hive.waiting("bob")
        assert [(row.kind, row.ask) for row in rows] == [("question", first), ("question", second)]
        assert rows[0].text == "red or blue?\n1. red\n2. blue"
        for stranger, words in (("eve", "was not put to eve"), ("ada", "nobody answers an own question")):
            with pytest.raises(NotAllowed, match=words):
                await hive.hive.asks.answer(first, stranger, ["1"])
        await hive.hive.asks.answer(first, "bob", ["1"])
        await hive.hive.asks.answer(second, "operator", ["any text"])
        assert [(row.sender, row.text) for row in await hive.waiting("ada")] == [
            ("bob", "red"),
            ("operator", "any text"),
        ]


async def test_several_options_are_chosen_only_where_the_asker_allows_it(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        one = await opened(hive, options=["red", "blue"])
        many = await opened(hive, question="which?", options=["red", "blue", "green"], multi=True)
        for answers in (["1", "2"], [], ["purple"]):
            with pytest.raises(BadInput):
                await hive.hive.asks.answer(one, "operator", answers)
        row = await hive.hive.asks.answer(many, "operator", ["1", "green", "1"])
        assert answer_text(row) == "red\ngreen"


async def test_a_question_expires_once_and_the_asker_is_told(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        ask = await opened(hive, ttl_seconds=60)
        await hive.pass_time(59)
        assert (await hive.ask(ask)).state is AskState.OPEN
        await hive.pass_time(2)
        await hive.pass_time(60)
        assert (await hive.ask(ask)).state is AskState.EXPIRED
        assert [(row.sender, row.text) for row in await hive.waiting("ada")] == [("hive", EXPIRED)]
        with pytest.raises(BadInput, match="it expired"):
            await hive.hive.asks.answer(ask, "operator", ["late"])


async def test_only_the_asker_withdraws_a_question(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob")
        ask = await opened(hive, to="bob")
        with pytest.raises(NotFound):
            await hive.hive.asks.withdraw(ask, "bob")
        await hive.hive.asks.withdraw(ask, "ada")
        with pytest.raises(BadInput, match="its asker withdrew it"):
            await hive.hive.asks.answer(ask, "bob", ["late"])
        with pytest.raises(BadInput, match="is over"):
            await hive.hive.asks.withdraw(ask, "ada")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"question": " "}, "is empty"),
        ({"to": "ada"}, "ada cannot ask itself"),
        ({"options": [""]}, "at most 20 options"),
        ({"options": ["x"] * 21}, "at most 20 options"),
        ({"ttl_seconds": 0}, "ttl_seconds is 0"),
        ({"ttl_seconds": 1e12}, "at most a year"),
        ({"question": "x" * 70_000}, "more than 65536 bytes"),
    ],
)
async def test_a_question_that_cannot_be_put_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        with pytest.raises(BadInput, match=words):
            await opened(hive, **more)
        assert await hive.asks() == []


async def test_open_threads_are_the_callers_own_and_those_of_all_for_the_manager(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob")
        await hive.join("max", role="manager")
        first, second = await opened(hive, to="bob"), await opened(hive, "bob")
        of = {name: await hive.hive.open_threads(await hive.member(name)) for name in ("ada", "bob", "max")}
        assert [{ask.id for ask in of[name].asked} for name in of] == [{first}, {second}, {first, second}]
        assert [[ask.id for ask in of[name].to_answer] for name in of] == [[], [first], []]
        assert [of[name].waiting for name in of] == [0, 1, 1]
