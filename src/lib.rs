//! Console chat over Apache Kafka: what the programs `publisher`, `subscriber` and `chat` share.

pub mod broker;
pub mod client;
pub mod error;
pub mod name;
