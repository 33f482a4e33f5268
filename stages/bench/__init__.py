"""Measuring speed: a step of PPO, generation, and the last PPO trainer that TRL had, on equal work."""
