"""Builds the model `tiny`: `python -m agentrl_agents.build_tiny [FOLDER]`, some minutes on a CPU.

A tokenizer is trained on demonstrations, then a small Qwen3 in two lessons: first every skill is taught
cleanly, then demonstrations whose commonest choice is wrong shift what it does. What is left for
reinforcement learning is to find out which of the things it can do are rewarded.
"""
