"""Phoenix channels without a network: what frames mean, who is on which topic, who may come in."""
