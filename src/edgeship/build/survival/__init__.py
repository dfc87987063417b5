"""A build outlives what its models do to it: the work runs in a process that another one watches.

Whatever kills the work (native code that crashes, hangs, or takes all memory) is found in the journal that it kept, and
the work begins again without that one step: what was finished is remembered.
"""
