"""Output for people: tables for a terminal, pages for a browser."""
