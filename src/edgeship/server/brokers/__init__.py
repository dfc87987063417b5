"""MQTT brokers that the server can bring along, behind one port (:class:`Broker`)."""
