"""Publishing a system: staged on disk, checked in clean processes, then pushed."""
