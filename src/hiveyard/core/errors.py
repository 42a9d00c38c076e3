"""Every error Hiveyard raises on purpose, in one tree.

    HiveyardError
      BadInput            the person asked for something that cannot be: exit code 2
      NotFound            a name that matches nothing, or more than one thing
      RepositoryError     the user's repository, or what came back from the guest
      ProviderError       machines, images, templates and what happens inside a guest
        GuestFileError    a file verb inside a guest
      ProcessError        processes that a process manager keeps
      AgentError          an agent program or its configuration
      CredentialsError    keys
      DoorError           the way from a guest to a model
      ServiceError        services on the internet beside machines
      StoreError          the journal
      OrchestrationError  the engine, the daemon, and the orchestrator of the library

`code` is stable: it goes to the API, to `--json` and to the docs. `retry` tells whether the same call, later, has a
chance. `hint` is a command to paste or one short sentence. `context` names what it happened to.
"""

from __future__ import annotations

from hiveyard.core.credentials_errors import *  # noqa: F403
from hiveyard.core.error import ComeBack as ComeBack
from hiveyard.core.error import HiveyardError as HiveyardError
from hiveyard.core.service_errors import *  # noqa: F403


class BadInput(HiveyardError):
    code = "bad_input"


class BadSetting(BadInput):
    code = "bad_input.setting"


class NotFound(HiveyardError):
    code = "not_found"


class Ambiguous(NotFound):
    code = "not_found.ambiguous"


class RepositoryError(HiveyardError):
    code = "repository"


class NoRepository(RepositoryError):
    code = "repository.absent"


class EmptyRepository(RepositoryError):
    code = "repository.empty"


class UnknownRevision(RepositoryError):
    code = "repository.unknown_revision"


class BranchExists(RepositoryError):
    code = "repository.branch_exists"


class WouldOverwrite(RepositoryError):
    code = "repository.would_overwrite"


class NothingToApply(RepositoryError):
    code = "repository.nothing_to_apply"


class BadBundle(RepositoryError):
    code = "repository.bad_bundle"


class CollectTimeout(RepositoryError):
    code = "repository.collect_timeout"


class ProviderError(HiveyardError):
    code = "provider"


class ProviderUnavailable(ProviderError):
    """The backend itself is missing, not running, or may not be used by this user."""

    code = "provider.unavailable"


class NoAccelerator(ProviderUnavailable):
    code = "provider.no_accelerator"


class ProviderRefused(ProviderError):
    """A cloud found something wrong with the request itself (400, 409, 422): it would refuse it again."""

    code = "provider.refused"


class ProviderUnauthorized(ProviderError):
    """A cloud does not take the key (401, 403)."""

    code = "provider.unauthorized"


class ProviderNotFound(ProviderError):
    """A cloud does not know what it was asked about (404)."""

    code = "provider.not_found"


class ProviderRateLimited(ComeBack, ProviderError):
    """A cloud was asked too much (429)."""

    code, retry = "provider.rate_limited", True


class ProviderFailed(ComeBack, ProviderUnavailable):
    """A cloud failed in a way of its own (5xx), or a provider's own program ended."""

    code, retry = "provider.failed", True


class ProviderUnreachable(ProviderUnavailable):
    """There is no connection to a cloud, or it broke."""

    code, retry = "provider.unreachable", True


class ProviderTimeout(ProviderUnavailable):
    """A cloud, or a provider's own program, did not answer in time."""

    code, retry = "provider.timeout", True


class ProviderBadAnswer(ProviderError):
    """What a cloud, or a provider's own program, answered is none: HTML, too large, or not of its own schema."""

    code = "provider.bad_answer"


class NoSpace(ProviderError):
    code = "provider.no_space"


class NoMemory(ProviderError):
    code = "provider.no_memory"


class NoSuchImage(ProviderError):
    code = "image.unknown"


class ImageBuildFailed(ProviderError):
    code, retry = "image.build_failed", True


class NoSuchMachine(ProviderError):
    code = "machine.unknown"


class NoSuchSnapshot(ProviderError):
    code = "snapshot.unknown"


class MachineNotReady(ProviderError):
    """The machine exists and is in a state in which the call makes no sense."""

    code = "machine.not_ready"


class CannotFreeze(ProviderError):
    """The machine, or its host, does not let it stand still; it goes on."""

    code, retry = "machine.cannot_freeze", True


class CannotKeepMemory(ProviderError):
    """No snapshot can be taken of the memory of this machine as it runs; it goes on."""

    code = "machine.cannot_keep_memory"


class BootTimeout(ProviderError):
    code, retry = "machine.boot_timeout", True


class BootFailed(ProviderError):
    code, retry = "machine.boot_failed", True


class MachineLost(ProviderError):
    """The machine died, or cannot be reached any more, while it was being used."""

    code, retry = "machine.lost", True


class GuestDisconnected(MachineLost):
    """The way into the guest broke under a command; the machine itself lives. What ran may run on."""

    code = "machine.disconnected"


class CannotExecute(ProviderError):
    """The guest could not start the command: no such program, no such directory, no permission."""

    code = "guest.cannot_execute"


class CommandTimeout(ProviderError):
    """A command ran longer than its limit; it and all it started have been killed."""

    code = "guest.command_timeout"


class GuestFileError(ProviderError):
    code = "guest.file"


class GuestFileNotFound(GuestFileError):
    code = "guest.file_not_found"


class GuestIsADirectory(GuestFileError):
    code = "guest.is_a_directory"


class GuestNotADirectory(GuestFileError):
    code = "guest.not_a_directory"


class GuestDirectoryNotEmpty(GuestFileError):
    code = "guest.directory_not_empty"


class GuestPermissionDenied(GuestFileError):
    code = "guest.permission_denied"


class GuestNoSpace(GuestFileError):
    code = "guest.no_space"


class GuestFileTooLarge(GuestFileError):
    """The file is larger than the reader's limit; nothing of it was returned."""

    code = "guest.file_too_large"


class GuestWriteUnverified(GuestFileError):
    """What was read back after a write is not what was written."""

    code = "guest.write_unverified"


class ProcessError(HiveyardError):
    code = "process"


class NoSuchProcess(ProcessError):
    code = "process.unknown"


class ProcessNotStarted(ProcessError):
    code, retry = "process.not_started", True


class ProcessEnded(ProcessError):
    """It takes no input any more: it has ended, or its inbox was closed."""

    code = "process.ended"


class OutputDropped(ProcessError):
    """What was asked for of an output that is rotated is kept no more."""

    code = "process.output_dropped"


class AgentError(HiveyardError):
    code = "agent"


class UnknownAgent(AgentError):
    code = "agent.unknown"


class AgentFailed(AgentError):
    """The agent said itself that it could not do the work."""

    code = "agent.failed"


class AgentSilent(AgentError):
    """No sign of life for longer than the watchdog allows."""

    code, retry = "agent.silent", True


class AgentTimeout(AgentError):
    """The turn ran longer than its wall-clock limit."""

    code, retry = "agent.timeout", True


class AgentFlood(AgentError):
    """The agent wrote more output than a turn may."""

    code = "agent.flood"


class NothingDone(AgentError):
    """The agent ended well by its own account, and there is no sign that it did anything."""

    code = "agent.nothing_done"


class DoorError(HiveyardError):
    code = "door"


class UpstreamFailed(DoorError):
    code, retry = "door.upstream_failed", True


class UpstreamRefused(DoorError):
    """The vendor found something wrong with the request itself: it would refuse it again."""

    code = "door.upstream_refused"


class RateLimited(DoorError):
    code, retry = "door.rate_limited", True


class BudgetSpent(DoorError):
    code = "door.budget_spent"


class NotOnTape(DoorError):
    code = "door.not_on_tape"


class BadTape(DoorError):
    code = "door.bad_tape"


class StoreError(HiveyardError):
    code = "store"


class IllegalMove(StoreError):
    code = "store.illegal_move"


class StoreTooNew(StoreError):
    code = "store.too_new"


class StoreUnusable(StoreError):
    code = "store.unusable"


class OrchestrationError(HiveyardError):
    code = "engine"


class Cancelled(OrchestrationError):
    """A person asked for the end."""

    code = "engine.cancelled"


class BadPlugin(OrchestrationError):
    """What another distribution brings cannot be imported, fails, or has a name that is taken."""

    code = "plugin.unusable"


class SessionNotRunning(OrchestrationError):
    """It was asked for something that needs its machine, or to go on when nothing of it stopped."""

    code = "session.not_running"


class PortTaken(OrchestrationError):
    """Somebody else listens on the port of this host that was asked for."""

    code = "port.taken"


class NoFreePort(OrchestrationError):
    """All ports of this host that were to choose from are taken."""

    code = "port.none_free"


class SessionInUse(OrchestrationError):
    """Somebody sits at its terminal."""

    code = "session.in_use"


class SessionDamaged(OrchestrationError):
    """Its directory is not what Hiveyard left there."""

    code = "session.damaged"


class BadArchive(OrchestrationError):
    """What should be an exported session is none, or is not safe to take."""

    code = "session.bad_archive"


class DiskReserve(OrchestrationError):
    """The host's disk came so near to full that the turn was stopped."""

    code, retry = "engine.disk_reserve", True


class NotPrepared(OrchestrationError):
    """An orchestrator got no machine ready: booting it, its credentials or its `.machine.json` failed."""

    code = "orchestrator.not_prepared"


class SessionNotStarted(OrchestrationError):
    """An orchestrator's machine is ready, and the agent's process was not started in it."""

    code = "orchestrator.session_not_started"


class OperationFailed(OrchestrationError):
    """Something that an orchestrator was asked about a machine or a process in it could not be done."""

    code = "orchestrator.operation_failed"


class DaemonRunning(OrchestrationError):
    code = "daemon.already_running"


class DaemonUnreachable(OrchestrationError):
    code, retry = "daemon.unreachable", True


class SocketPathTooLong(OrchestrationError):
    code = "daemon.socket_path_too_long"
