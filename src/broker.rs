//! The embedded broker: enough of Kafka for a chat on one machine.
