"""The whole loop on one machine: real models, real processes, checked claims."""
