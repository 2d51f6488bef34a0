# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalogue and the services themselves say the same."""

from __future__ import annotations

from veil.formats.service_catalogue import SERVICES
from veil.services.protected import ProtectedServices


def test_names_and_settings_are_the_services_own() -> None:
    catalogued = [(name, service.number, service.settings_type) for name, service in SERVICES.items()]
    assert catalogued == [
        (service.name, service.number, service.settings_type) for service in ProtectedServices.service_types
    ]
