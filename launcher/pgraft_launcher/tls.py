"""The files of mutual TLS, looked at by the command that starts or reloads a node."""

from __future__ import annotations

from pgraft.postgres.settings import NodeConfig
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.progress import Progress


def check_at_start(config: NodeConfig, progress: Progress) -> None:
    """LaunchError when the node cannot use its files. An expired certificate is told, and starts a node:
    PostgreSQL serves, and a renewed one can be reloaded."""
    if not config.ssl_enabled:
        return
    from pgraft import network_worker  # only those pay for it who use it

    try:
        network_worker.load_tls(config)
    except network_worker.CertificateExpired as error:
        progress.say(f"warning: {error}: peers will refuse this node ({error.hint})")
    except network_worker.ConfigError as error:
        raise LaunchError(str(error), hint=error.hint) from error


def check_reloaded(config: NodeConfig) -> None:
    """LaunchError when the node goes on with its old certificates. The network process says so in the
    log; whoever reloads hears it here, too."""
    if not config.ssl_enabled:
        return
    from pgraft import network_worker

    try:
        network_worker.load_tls(config)
    except network_worker.ConfigError as error:
        raise LaunchError(
            f"node signaled, but the certificates loaded before stay in use: {error}", hint=error.hint
        ) from error
