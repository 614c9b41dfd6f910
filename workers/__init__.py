"""Process lifecycle: the supervisor and its workers, listeners, heartbeat, the embedded store."""
