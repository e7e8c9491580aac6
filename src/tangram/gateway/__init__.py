"""The channels child of an incarnation: gate, hub, sessions, tokens and the pump that empties outboxes."""
