"""The commands of ``python -m forecast``, and the command line that all commands share."""
