"""What can be wrong with a machine or a cluster before any sweep: facts of each node, and checks of these facts."""
