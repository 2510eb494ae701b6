"""What llmproxy costs, measured."""
