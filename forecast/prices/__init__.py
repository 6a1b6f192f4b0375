"""From a source to a clean series: sources, tables, integrity rules."""
