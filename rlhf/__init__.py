"""The core: pure functions and small objects of classic RLHF; knows no stage, data set or cluster."""
