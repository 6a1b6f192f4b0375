"""The commands of ``python -m forecast``, and the command-line code that all commands share."""
