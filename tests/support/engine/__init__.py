"""Programs with vLLM in one process and MAV alone in another."""
