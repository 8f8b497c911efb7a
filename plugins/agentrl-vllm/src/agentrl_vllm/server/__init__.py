"""vLLM servers: started and supervised as processes of ours, or attached to where they run already."""
