"""The most that one answer from the live record contains."""

MOST_SESSIONS = 500
"""Largest number of sessions, the latest ones, in a live record."""
MOST_CHANGES = 50
"""Largest number of events, the latest ones, in the history of a name's versions."""
