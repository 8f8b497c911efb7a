"""The inference backend ``vllm``: samples from vLLM servers, and puts the learner's weights into them in place."""
