"""The process that keeps a device running: workers, windows, goals and reports; it imports no inference runtime."""
