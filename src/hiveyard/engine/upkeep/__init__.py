"""Keep an installation healthy: recovery after a crash, disk usage and cleanup, host checks."""
