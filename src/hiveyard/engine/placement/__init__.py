"""Choose a provider, check that the host has capacity, and hold a machine for a session."""
