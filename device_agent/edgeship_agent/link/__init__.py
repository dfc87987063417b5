"""The way to the fleet server: MQTT behind three methods."""
