"""Both ends of a worker process: how it is started, its instructions (pickling, context), its messages (protocol), its loop."""
