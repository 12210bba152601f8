"""Both ends of a worker process: what it does, what it is told, and how it is started."""
