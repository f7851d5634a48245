//! Runs the programs as users do: through pipes, and `chat` on a pseudo-terminal.
//!
//! The tests in these modules are ignored by `cargo test`, since they need more than the programs:
//!
//! | module | needs | run by |
//! |---|---|---|
//! | `kafka` | a real Kafka | `scripts/test-kafka` |
//! | `secured` | a real Kafka with TLS, SASL and access control lists | `scripts/test-kafka` |
//! | `unserved` | Kafka 4 or several brokers, and a build without `librdkafka` | `scripts/test-kafka` |
//! | `tools` | kcat, kafka-python, a disk of its own | `scripts/test-kafka` |
//! | `faults::full`, `faults::soak` | time, and for some a real Kafka | `scripts/test-faults` |

// A test fails by a panic.
#![allow(clippy::unwrap_used)]
// The test runner captures what a test prints.
#![allow(clippy::disallowed_macros, clippy::print_stdout)]

mod bad_input;
mod chatting;
mod faults;
mod hosting;
mod kafka;
mod leaving;
mod one_way;
mod others;
mod presence;
mod program;
#[cfg(feature = "librdkafka")]
mod reading;
mod screen;
#[cfg(feature = "librdkafka")]
mod secured;
mod support;
mod tools;
mod tty;
#[cfg(not(feature = "librdkafka"))]
mod unserved;
