"""The dashboard: server-rendered pages that work without JavaScript; ``router`` lists their handlers."""

from edgeship.server.pages.assets import static_file
from edgeship.server.pages.devices import device_page, devices_page
from edgeship.server.pages.drift import drift_page, signal_page
from edgeship.server.pages.fleet import fleet_page
from edgeship.server.pages.incidents import events_page, incident_page, incidents_page
from edgeship.server.pages.releases import release_page, releases_page
from edgeship.server.pages.rollouts import change_rollout, one_rollout_page, rollouts_page

__all__ = ["router"]

router = [
    change_rollout,
    device_page,
    devices_page,
    drift_page,
    events_page,
    fleet_page,
    incident_page,
    incidents_page,
    one_rollout_page,
    release_page,
    releases_page,
    rollouts_page,
    signal_page,
    static_file,
]
