"""The command line: ``shmgen scan`` and ``shmgen tune``."""
