"""Parameter-efficient: few weights train, beside or inside a network that stays as it is."""
