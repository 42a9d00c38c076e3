"""Tasks: queued requests that make a session, run one turn in it and collect the result."""
