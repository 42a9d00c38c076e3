"""Credentials: profiles of what programs need, their way into a guest, and sign-ins that are refreshed on the host."""

from hiveyard.credentials.installer import DefaultCredentialsInstaller, check

__all__ = ["DefaultCredentialsInstaller", "check"]
