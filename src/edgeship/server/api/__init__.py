"""REST API, one module per topic; each exports ``router``, a list of route handlers."""
