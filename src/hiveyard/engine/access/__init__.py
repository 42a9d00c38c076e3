"""Ways from the host into a session's machine: forwarded ports, ssh, and commands with streams."""
