"""Updates that can always be undone: a pure table, a journal, two slots, and the shell that reads as the procedure."""
