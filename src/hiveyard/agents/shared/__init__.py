"""Parts that several agent adapters use: JSON lines, JSON-RPC, permissions, wording, the terminal process."""
