"""Prices in, a clean series out: sources, tables, integrity rules."""
