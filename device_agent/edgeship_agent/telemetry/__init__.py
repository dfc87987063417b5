"""What a device says about its models: signals → windows → outbox. Integers and counts, never an input."""
