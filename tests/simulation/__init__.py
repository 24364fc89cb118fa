"""Whole clusters of the consensus core in one process, with everything around them simulated."""
