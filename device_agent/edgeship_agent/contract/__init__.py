"""What device and server live by: topics, messages, goal states, bundle manifest, sketches, errors. Pure data."""
