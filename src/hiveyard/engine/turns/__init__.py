"""Run an agent's turn: start it, decode its output into events, watch its limits, decide its outcome."""
