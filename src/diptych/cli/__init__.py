"""The command line: one file per verb group, no logic, nothing heavy until a verb runs."""
