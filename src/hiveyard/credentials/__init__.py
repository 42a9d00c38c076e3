"""Credentials: profiles for programs, their installation in a guest, and sign-ins that are refreshed on the host."""

from hiveyard.credentials.installer import DefaultCredentialsInstaller, check

__all__ = ["DefaultCredentialsInstaller", "check"]
