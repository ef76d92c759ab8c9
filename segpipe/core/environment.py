"""What a result was computed with: versions, system, device."""

from __future__ import annotations

import importlib.metadata
import platform

from segpipe._version import __version__
from segpipe.core.records import Record

_PACKAGES = ("torch", "numpy", "scipy", "monai", "nnunetv2", "dynamic-network-architectures", "nibabel", "SimpleITK")


class Environment(Record):
    """Where something was computed.

    Args:
        versions: Of segpipe, Python and packages; `not installed` for those that are not.
        system: The operating system.
        device: Processor or GPU; empty where nothing was asked of one.
    """

    versions: dict[str, str]
    system: str
    device: str

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Name and value of everything that is known."""
        device = (("Device", self.device),) if self.device else ()
        return (*device, *self.versions.items(), ("System", self.system))


def environment_here(device: str = "") -> Environment:
    """This process's, in which `device` computes."""
    versions = {"segpipe": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return Environment(versions=versions, system=platform.platform(), device=device)
