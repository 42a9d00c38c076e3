"""Drivers: the protocols of agent programs that stay and take one prompt after the other (see core/drivers.py).

`claude_stream` is Claude Code's stream-json with its control protocol, `acp` the Agent Client Protocol, `codex` the
app-server of codex. Programs that speak none of these get a process for each turn, and their parser is all there is.
"""
