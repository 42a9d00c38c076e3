"""All errors that Hiveyard raises on purpose, in one tree.

    HiveyardError
      BadInput            an invalid request: exit code 2
      NotFound            a name that matches nothing, or more than one thing
      RepositoryError     the user's repository, or the result that came back from the guest
      ProviderError       machines, images, templates and the inside of a guest
        GuestFileError    a file operation inside a guest
      ProcessError        processes of a process manager
      AgentError          an agent program or its configuration
      CredentialsError    keys
      DoorError           the connection from a guest to a model
      ServiceError        internet services other than machines
      HiveError           messages and questions of members
      StoreError          the journal
      OrchestrationError  the engine, the daemon, and the orchestrator of the library

`code` is stable. `retry`: the same call may succeed later. `hint` says what to type. `context`: what it concerns."""

from __future__ import annotations

from hiveyard.core.credentials_errors import *  # noqa: F403
from hiveyard.core.error import HasRetryAfter as HasRetryAfter
from hiveyard.core.error import HiveyardError as HiveyardError
from hiveyard.core.hive_errors import *  # noqa: F403
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
    """The backend is missing, is not running, or may not be used by this user."""

    code = "provider.unavailable"


class NoAccelerator(ProviderUnavailable):
    code = "provider.no_accelerator"


class ProviderRefused(ProviderError):
    """A cloud refused the request as invalid (400, 409, 422). It would refuse it again."""

    code = "provider.refused"


class ProviderUnauthorized(ProviderError):
    """A cloud refused the key (401, 403)."""

    code = "provider.unauthorized"


class ProviderNotFound(ProviderError):
    """A cloud does not know the thing that the request names (404)."""

    code = "provider.not_found"


class ProviderRateLimited(HasRetryAfter, ProviderError):
    """A cloud received too many requests (429)."""

    code, retry = "provider.rate_limited", True


class ProviderFailed(HasRetryAfter, ProviderUnavailable):
    """A cloud answered with a server error (5xx), or a provider's own program ended."""

    code, retry = "provider.failed", True


class ProviderUnreachable(ProviderUnavailable):
    """There is no connection to a cloud, or it broke."""

    code, retry = "provider.unreachable", True


class ProviderTimeout(ProviderUnavailable):
    """A cloud, or a provider's own program, did not answer in time."""

    code, retry = "provider.timeout", True


class ProviderBadAnswer(ProviderError):
    """The answer of a cloud or of a provider's own program is invalid: HTML, too large, or against its own schema."""

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
    """The machine exists, but the call is not possible in its current state."""

    code = "machine.not_ready"


class CannotFreeze(ProviderError):
    """The machine or its host cannot be paused. The machine keeps running."""

    code, retry = "machine.cannot_freeze", True


class CannotKeepMemory(ProviderError):
    """The memory of this running machine cannot be saved. The machine keeps running."""

    code = "machine.cannot_keep_memory"


class BootTimeout(ProviderError):
    code, retry = "machine.boot_timeout", True


class BootFailed(ProviderError):
    code, retry = "machine.boot_failed", True


class MachineLost(ProviderError):
    """The machine died, or became unreachable, while it was in use."""

    code, retry = "machine.lost", True


class GuestDisconnected(MachineLost):
    """The connection to the guest broke during a command. The machine runs, and the command may still run too."""

    code = "machine.disconnected"


class CannotExecute(ProviderError):
    """The guest could not start the command: no such program or directory, or no permission."""

    code = "guest.cannot_execute"


class CommandTimeout(ProviderError):
    """A command ran longer than its limit. It and all processes that it started were killed."""

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
    """The file is larger than the limit of the read. Nothing of it was returned."""

    code = "guest.file_too_large"


class GuestWriteUnverified(GuestFileError):
    """The content that was read back is not the content that was written."""

    code = "guest.write_unverified"


class ProcessError(HiveyardError):
    code = "process"


class NoSuchProcess(ProcessError):
    code = "process.unknown"


class ProcessNotStarted(ProcessError):
    code, retry = "process.not_started", True


class ProcessEnded(ProcessError):
    """The process takes no more input: it has ended, or its inbox was closed."""

    code = "process.ended"


class OutputDropped(ProcessError):
    """The requested part of a rotated output was dropped."""

    code = "process.output_dropped"


class AgentError(HiveyardError):
    code = "agent"


class UnknownAgent(AgentError):
    code = "agent.unknown"


class AgentFailed(AgentError):
    """The agent reported that it could not do the work."""

    code = "agent.failed"


class AgentSilent(AgentError):
    """The agent showed no activity for longer than the watchdog allows."""

    code, retry = "agent.silent", True


class AgentTimeout(AgentError):
    """The turn ran longer than its wall-clock limit."""

    code, retry = "agent.timeout", True


class AgentFlood(AgentError):
    """The agent wrote more output than a turn may."""

    code = "agent.flood"


class NothingDone(AgentError):
    """The agent reported success, but there is no sign that it did anything."""

    code = "agent.nothing_done"


class DoorError(HiveyardError):
    code = "door"


class UpstreamFailed(DoorError):
    code, retry = "door.upstream_failed", True


class UpstreamRefused(DoorError):
    """The vendor refused the request as invalid. It would refuse it again."""

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
    """The user asked to cancel."""

    code = "engine.cancelled"


class BadPlugin(OrchestrationError):
    """A plugin of another distribution cannot be imported, fails, or has a name that is taken."""

    code = "plugin.unusable"


class SessionNotRunning(OrchestrationError):
    """The session is in a state in which the call is not possible: mostly, it has no running machine."""

    code = "session.not_running"


class PortTaken(OrchestrationError):
    """Another program listens on the requested port of this host."""

    code = "port.taken"


class NoFreePort(OrchestrationError):
    """All ports of this host that were to choose from are taken."""

    code = "port.none_free"


class SessionInUse(OrchestrationError):
    """A user is attached to the session's terminal."""

    code = "session.in_use"


class SessionDamaged(OrchestrationError):
    """The session's directory is not as Hiveyard left it."""

    code = "session.damaged"


class BadArchive(OrchestrationError):
    """The file is not an exported session, or is not safe to import."""

    code = "session.bad_archive"


class DiskReserve(OrchestrationError):
    """The host's disk was almost full, and the turn was stopped."""

    code, retry = "engine.disk_reserve", True


class NotPrepared(OrchestrationError):
    """An orchestrator could not prepare a machine: the boot, its credentials or its `.machine.json` failed."""

    code = "orchestrator.not_prepared"


class SessionNotStarted(OrchestrationError):
    """An orchestrator's machine is ready, but the agent's process was not started in it."""

    code = "orchestrator.session_not_started"


class OperationFailed(OrchestrationError):
    """An operation of an orchestrator on a machine or a process in it failed."""

    code = "orchestrator.operation_failed"


class DaemonRunning(OrchestrationError):
    code = "daemon.already_running"


class DaemonUnreachable(OrchestrationError):
    code, retry = "daemon.unreachable", True


class SocketPathTooLong(OrchestrationError):
    code = "daemon.socket_path_too_long"
