"""The packages that a profile needs: refused in one line where one is not there, and their versions where they are."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from memplan.errors import MissingExtra

_PACKAGES = ("torch", "transformers")


def require_packages(packages: tuple[str, ...] = _PACKAGES) -> None:
    """Refuse to go on without what a profile needs. Raises: MissingExtra."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtra(f"profile needs {package}", hint="pip install 'memplan[profile]'") from None


def installed_versions() -> dict[str, str]:
    """The versions of the packages that what was measured depends on."""
    found = {}
    for package in (*_PACKAGES, "diffusers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
