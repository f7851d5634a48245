//! Console chat over Apache Kafka: what the programs `publisher`, `subscriber` and `chat` share.

pub mod broker;
pub mod cli;
pub mod client;
pub mod embedded;
pub mod error;
pub mod ledger;
pub mod lines;
pub mod name;
pub mod output;
pub mod until;
