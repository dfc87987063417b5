"""Who belongs to the fleet: its certificate authority, invitations, and the certificates of devices."""
