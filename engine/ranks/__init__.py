"""The processes that run a sharded engine for one caller: how they are started, asked, watched and brought back.

From the caller down: remote (worlds by number), starting, crew (all ranks) with faults and processes, control (messages
on a socket). On a rank: serving, desk (what it does with an engine). Both know launch (where ranks run) and far (values
on their way).
"""
