"""What runs on the other side: the launcher, its spawners and the agent."""
