"""What runs in the guest beside an agent's terminal program. Plain Python without a dependency: only the sources travel
there (see hiveyard.agents.seats), and nothing here is run on the host."""
