"""Shortened answers of the vendors, in the form of their API references and of recorded traffic."""

from __future__ import annotations

ANTHROPIC_WHOLE = b"""{"model":"claude-sonnet-4-5-20250929","id":"msg_01XFDUDYJgAACzvnptvVoYEL","type":"message",\
"role":"assistant","content":[{"type":"text","text":"Hi!"}],"stop_reason":"end_turn","stop_sequence":null,"usage":\
{"input_tokens":12,"cache_creation_input_tokens":2048,"cache_read_input_tokens":18111,"cache_creation":\
{"ephemeral_5m_input_tokens":1024,"ephemeral_1h_input_tokens":1024},"output_tokens":6,"service_tier":"standard"}}"""

ANTHROPIC_STREAM = b"""event: message_start
data: {"type":"message_start","message":{"model":"claude-sonnet-4-5-20250929","id":"msg_014p7gG3wDgGV9EUtLvnow3U",\
"type":"message","role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":472,\
"cache_creation_input_tokens":100,"cache_read_input_tokens":9000,"cache_creation":{"ephemeral_5m_input_tokens":100,\
"ephemeral_1h_input_tokens":0},"output_tokens":2,"service_tier":"standard"}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: ping
data: {"type": "ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me see"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_01T1x1fJ34qAmk2tNTrN7Up6",\
"name":"Bash","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\\"command\\":\\"ls"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":" -la\\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":472,\
"cache_creation_input_tokens":100,"cache_read_input_tokens":9000,"output_tokens":89}}

event: message_stop
data: {"type":"message_stop"}

"""

CHAT_WHOLE = b"""{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,\
"model":"gpt-5-2025-08-07","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!","refusal":null,\
"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":1219,"completion_tokens":10,\
"total_tokens":1229,"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":0},"completion_tokens_details":\
{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default"}"""

CHAT_CHUNK = b"""data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":\
"gpt-5-2025-08-07","system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"role":"assistant","content":\
"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

"""
CHAT_LAST = CHAT_CHUNK.replace(b'"Hel"', b'"lo"').replace(b'"finish_reason":null', b'"finish_reason":"stop"')
CHAT_USAGE = b"""data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":\
"gpt-5-2025-08-07","choices":[],"usage":{"prompt_tokens":1219,"completion_tokens":10,"total_tokens":1229,\
"prompt_tokens_details":{"cached_tokens":1024}}}

"""
CHAT_DONE = b"data: [DONE]\n\n"
CHAT_STREAM = CHAT_CHUNK + CHAT_LAST + CHAT_USAGE + CHAT_DONE

_RESPONSE = b"""{"id":"resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654","object":"response","created_at":\
1741487325,"status":"completed","error":null,"incomplete_details":null,"model":"gpt-5-2025-08-07","output":[{"type":\
"message","id":"msg_67c9","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hi there!",\
"annotations":[]}]}],"store":false,"usage":{"input_tokens":328,"input_tokens_details":{"cached_tokens":128},\
"output_tokens":52,"output_tokens_details":{"reasoning_tokens":16},"total_tokens":380}}"""
RESPONSES_WHOLE = _RESPONSE
RESPONSES_STREAM = (
    b"""event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_67c9","object":"response","status":\
"in_progress","model":"gpt-5-2025-08-07","output":[],"usage":null}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_67c9","output_index":0,\
"content_index":0,"delta":"Hi there!"}

event: response.completed
data: {"type":"response.completed","sequence_number":9,"response":"""
    + _RESPONSE
    + b"}\n\n"
)
