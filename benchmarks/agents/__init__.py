"""What the benchmarks of the agent share: slots of small models, raw runtimes, worker processes."""
