"""All that can be found wrong before anything starts, and the manifest that is written from it."""
