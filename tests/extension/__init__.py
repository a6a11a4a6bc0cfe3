"""The extension package, run as the agent runs it; host and blobs record what they are asked."""
