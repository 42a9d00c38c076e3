"""The scripted model: its protocols, its scripts and its faults."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from hiveyard.core.errors import BadInput
from hiveyard.kit import process
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Call, Fault, File, Step, Tokens, cut, in_prompt, load, refuse, say, shell, tool

pytestmark = pytest.mark.anyio

SHELL = {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}
FUNCTION = {"type": "function", "function": {"name": "bash", "parameters": SHELL["input_schema"]}}
PATHS = {"anthropic": "/v1/messages", "chat": "/v1/chat/completions", "responses": "/v1/responses"}


def asked(protocol: str, *turns: tuple[str, str], stream: bool = False, tools: bool = True) -> dict[str, Any]:
    """A request with the turns ("user" or "assistant", words)."""
    messages = [{"role": role, "content": words} for role, words in turns]
    body: dict[str, Any] = {"model": "m-1", "stream": stream}
    body["input" if protocol == "responses" else "messages"] = messages
    if tools:
        flat = {"type": "function", "name": "bash", "parameters": SHELL["input_schema"]}
        body["tools"] = [{"anthropic": SHELL, "chat": FUNCTION, "responses": flat}[protocol]]
    return body


async def post(model: ScriptedModel, protocol: str, body: dict[str, Any], key: str = "k") -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as client:
        headers = {"x-api-key": key} if protocol == "anthropic" else {"authorization": f"Bearer {key}"}
        return await client.post(f"{model.url}/any/prefix{PATHS[protocol]}", json=body, headers=headers)


def words(protocol: str, body: dict[str, Any]) -> str:
    if protocol == "anthropic":
        return "".join(block.get("text", "") for block in body["content"])
    if protocol == "chat":
        return str(body["choices"][0]["message"]["content"])
    return "".join(part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"])


def data(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def streamed(protocol: str, text: str) -> str:
    if protocol == "anthropic":
        return "".join(event.get("delta", {}).get("text", "") for event in data(text))
    if protocol == "chat":
        return "".join(choice["delta"].get("content") or "" for event in data(text) for choice in event["choices"])
    return "".join(event["delta"] for event in data(text) if event["type"] == "response.output_text.delta")


@pytest.mark.parametrize("protocol", PATHS)
async def test_streamed_and_complete_replies_are_the_same(protocol: str) -> None:
    said = 'Lines\nand "quotes" é🐝 ' * 9
    async with scripted_model([say(said)]) as model:
        whole = await post(model, protocol, asked(protocol, ("user", "hi")))
        stream = await post(model, protocol, asked(protocol, ("user", "hi"), stream=True))
    assert words(protocol, whole.json()) == said
    assert streamed(protocol, stream.text) == said
    assert stream.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize("protocol", PATHS)
async def test_the_step_is_counted_from_the_last_prompt(protocol: str) -> None:
    async with scripted_model([say("one"), say("two"), say("three")]) as model:
        turns = [("user", "a"), ("assistant", "one"), ("user", "b")]
        first = await post(model, protocol, asked(protocol, *turns))
        third = await post(model, protocol, asked(protocol, *turns, ("assistant", "one"), ("assistant", "x")))
        end = await post(model, protocol, asked(protocol, ("user", "c"), *[("assistant", "z")] * 9))
    assert words(protocol, first.json()) == "one"
    # Neighbouring parts of one reply count once: that is how the Responses protocol writes one reply down.
    assert words(protocol, third.json()) == "two"
    assert words(protocol, end.json()) == "two"


async def test_tool_results_are_not_prompts() -> None:
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "[[script:other]]"}]}
    body = asked("anthropic", ("user", "go"))
    body["messages"] += [use, answer, use, answer]
    async with scripted_model([shell("a"), shell("b"), say("third")]) as model:
        assert words("anthropic", (await post(model, "anthropic", body)).json()) == "third"


@pytest.mark.parametrize("protocol", PATHS)
async def test_portable_calls_become_calls_of_the_tools_on_offer(protocol: str, tmp_path: Path) -> None:
    calls = [Call(shell="ls"), Call(write=File(path="d/x.txt", content="it's"))]
    async with scripted_model([Step(calls=calls)]) as model:
        body = (await post(model, protocol, asked(protocol, ("user", "go")))).json()
    if protocol == "anthropic":
        found = [(block["name"], block["input"]) for block in body["content"]]
    elif protocol == "chat":
        functions = [call["function"] for call in body["choices"][0]["message"]["tool_calls"]]
        found = [(function["name"], json.loads(function["arguments"])) for function in functions]
    else:
        found = [(item["name"], json.loads(item["arguments"])) for item in body["output"]]
    name = "Bash" if protocol == "anthropic" else "bash"
    assert found[0] == (name, {"command": "ls"})
    assert found[1][0] == name, "nothing to write with is on offer: the shell does it"
    done = await process.run(["sh", "-c", found[1][1]["command"] + "; cat d/x.txt"], cwd=tmp_path)
    assert done.stdout == b"it's"


async def test_a_tool_gets_all_that_it_requires() -> None:
    schema = {
        "properties": {"command": {"type": "string"}, "why": {"type": "string"}, "kind": {"enum": ["x", "y"]}},
        "required": ["command", "why", "kind"],
    }
    body = asked("anthropic", ("user", "go"))
    body["tools"] = [{"name": "Bash", "input_schema": schema}]
    async with scripted_model([shell("ls")]) as model:
        block = (await post(model, "anthropic", body)).json()["content"][0]
    assert block["input"] == {"command": "ls", "why": "scripted", "kind": "x"}


async def test_usage_thinking_and_the_end_at_the_token_limit_are_as_chosen() -> None:
    step = Step(text="x", thinking="hm", stop="length", usage=Tokens(input=7, output=3, cache_read=2, cache_write=1))
    async with scripted_model([step]) as model:
        found = {protocol: (await post(model, protocol, asked(protocol, ("user", "a")))).json() for protocol in PATHS}
    message = found["anthropic"]
    assert message["usage"] == {
        "input_tokens": 7,
        "output_tokens": 3,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 1,
    }
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][0]["thinking"] == "hm"
    choice = found["chat"]["choices"][0]
    assert (choice["finish_reason"], choice["message"]["reasoning_content"]) == ("length", "hm")
    assert found["chat"]["usage"]["prompt_tokens"] == 10
    assert found["responses"]["status"] == "incomplete"
    assert found["responses"]["output"][0]["type"] == "reasoning"


@pytest.mark.parametrize("protocol", PATHS)
async def test_a_fault_ends_after_its_times_and_carries_its_headers(protocol: str) -> None:
    async with scripted_model([refuse(429, times=2, headers={"retry-after": "1"})]) as model:
        got = [await post(model, protocol, asked(protocol, ("user", "a"))) for _ in range(3)]
    assert [response.status_code for response in got] == [429, 429, 200]
    assert got[0].headers["retry-after"] == "1"
    assert got[0].json()["error"]["type"] == "rate_limit_error"


async def test_the_rest_of_a_reply_waits_at_a_gate() -> None:
    heard: list[str] = []
    async with scripted_model([Step(text="before and after", gate="half")]) as model:

        async def ask() -> None:
            heard.append((await post(model, "anthropic", asked("anthropic", ("user", "hi"), stream=True))).text)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not model.requests:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.sleep(0.2)
            assert not heard
            model.open("half")
        assert streamed("anthropic", heard[0]) == "before and after"


@pytest.mark.parametrize("protocol", PATHS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_cut_breaks_the_reply_in_the_middle(protocol: str, stream: bool) -> None:
    async with scripted_model([cut(times=1, text="twice told")]) as model:
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(model, protocol, asked(protocol, ("user", "a"), stream=stream))
        again = await post(model, protocol, asked(protocol, ("user", "a")))
    assert words(protocol, again.json()) == "twice told"


async def test_a_request_without_tools_is_a_side_request() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    async with scripted_model([say("the script")]) as model:
        title = await post(model, "anthropic", asked("anthropic", ("user", "a"), tools=False))
        body = asked("chat", ("user", "a"), tools=False)
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
        shaped = await post(model, "chat", body)
        assert [request.side for request in model.requests] == [True, True]
    assert words("anthropic", title.json()) == "A scripted side reply"
    assert json.loads(words("chat", shaped.json())) == {"title": "scripted"}
    async with scripted_model([say("the script")], side_reply=None) as model:
        plain = await post(model, "anthropic", asked("anthropic", ("user", "a"), tools=False))
    assert words("anthropic", plain.json()) == "the script"


async def test_the_last_marker_in_the_prompt_chooses_the_script() -> None:
    async with scripted_model([say("default")], scripts={"a": [say("from a")]}) as model:
        for prompt, reply in [
            ("plain", "default"),
            ("x [[script:a]] y", "from a"),
            (f"[[script:a]] {in_prompt([say('carried')])}", "carried"),
            (f'"quoted \\"{in_prompt([say("carried")])}\\""', "carried"),
        ]:
            got = await post(model, "anthropic", asked("anthropic", ("user", prompt)))
            assert words("anthropic", got.json()) == reply
        unknown = await post(model, "chat", asked("chat", ("user", "[[script:zz]]")))
    assert unknown.status_code == 400
    assert "no script is called 'zz'" in unknown.json()["error"]["message"]


async def test_it_distinguishes_keys_and_stores_none() -> None:
    async with scripted_model([say("x")], key="right") as model:
        refused = await post(model, "anthropic", asked("anthropic", ("user", "a")), key="wrong")
        taken = await post(model, "chat", asked("chat", ("user", "a")), key="right")
        assert (refused.status_code, taken.status_code) == (401, 200)
        assert model.saw_key("right")
        assert model.saw_key("wrong")
        assert not model.saw_key("other")
        assert [request.key for request in model.requests] == ["x-api-key", "authorization"]
        kept = repr(model.requests) + repr(vars(model))
    assert "'right'" not in kept
    assert "wrong" not in kept


async def test_other_requests_are_answered_too() -> None:
    async with scripted_model() as model, httpx2.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{model.url}/nothing")).status_code == 404
        models = (await client.get(f"{model.url}/v1/models")).json()["data"]
        counted = await client.post(f"{model.url}/v1/messages/count_tokens", json={"messages": []})
        garbage = await client.post(f"{model.url}/v1/messages", content=b"\xff not json")
        assert (await client.get(f"{model.url}/_model/health")).json() == {"ok": True}
    assert {"claude-sonnet-5-5", "gpt-5.5"} == {entry["id"] for entry in models}
    assert counted.json()["input_tokens"] >= 1
    assert garbage.status_code == 200


async def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    async with scripted_model([say("by socket")], socket=tmp_path / "m.sock") as model:
        transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "m.sock"))
        async with httpx2.AsyncClient(transport=transport) as client:
            got = await client.post(f"{model.url}/v1/messages", json=asked("anthropic", ("user", "a")))
    assert words("anthropic", got.json()) == "by socket"


async def test_it_runs_as_a_program_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"default": [{"text": "from a file"}], "other": [{"text": "named"}]}')
    argv = [sys.executable, "-m", "hiveyard.testing.model", "--script", str(tmp_path / "s.json")]
    async with process.running(argv) as child:
        assert child.stdout is not None
        url = json.loads(await child.stdout.receive())["url"]
        async with httpx2.AsyncClient(trust_env=False) as client:
            headers = {"x-api-key": "sk-Zq8TestSecret"}
            body = asked("anthropic", ("user", "[[script:other]]"))
            got = await client.post(f"{url}/v1/messages", json=body, headers=headers)
            seen = await client.post(f"{url}/_model/saw-key", content=b"sk-Zq8TestSecret")
            kept = await client.get(f"{url}/_model/requests")
    assert words("anthropic", got.json()) == "named"
    assert seen.json() == {"seen": True}
    assert "sk-Zq8TestSecret" not in kept.text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '[{"txt": "misspelled"}]',
        '[{"calls": [{}]}]',
        '[{"calls": [{"shell": "a", "tool": "b"}]}]',
        '[{"fault": {"status": 500, "cut": true}}]',
        '[{"fault": {}}]',
    ],
)
async def test_an_invalid_script_is_a_clear_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the script is not valid"):
        load(text)
    (tmp_path / "s.json").write_text(text if text != "{" else "[")
    argv = [sys.executable, "-m", "hiveyard.testing.model", "--script", str(tmp_path / "s.json")]
    done = await process.run(argv)
    assert done.status == 2
    assert b"Traceback" not in done.stderr


def test_scripts_written_in_python_and_in_json_are_the_same() -> None:
    assert load('[{"text": "a", "calls": [{"shell": "ls"}]}]') == [shell("ls", text="a")]
    assert load('[{"calls": [{"tool": "Read", "input": {"path": "x"}}]}]') == [tool("Read", path="x")]
    assert load('[{"fault": {"cut": true, "times": 1}}]')[0].fault == Fault(cut=True, times=1)
