"""Domain adaptation: labelled data from one place, service in another."""
