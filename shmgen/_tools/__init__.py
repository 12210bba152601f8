"""The command line: ``shmgen scan``, ``pack`` and ``tune``."""
