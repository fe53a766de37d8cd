"""Content filters: judges of pictures and prompts, and the decision that follows from what they find."""
