"""The Ray cluster of a sweep: joined or started, its nodes probed and watched while they come and go."""
