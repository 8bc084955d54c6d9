"""The dialects of LLM APIs: what a request asks for, and how a response is rendered. Pure: no input or output."""
