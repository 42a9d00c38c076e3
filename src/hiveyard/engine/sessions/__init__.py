"""Sessions: durable workspaces whose agent runs in its own terminal program."""
