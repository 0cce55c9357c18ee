"""The OpenAI-compatible server: requests, the queue that answers them in batches, HTTP."""
