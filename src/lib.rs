//! Console chat over Apache Kafka: what the programs `publisher`, `subscriber` and `chat` share.

pub mod broker;
pub mod cli;
pub mod client;
pub mod conversation;
pub mod embedded;
pub mod error;
pub mod ledger;
pub mod lines;
pub mod message;
pub mod name;
pub mod progress;
pub mod session;
pub mod terminal;
pub mod until;
