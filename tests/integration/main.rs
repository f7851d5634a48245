//! Runs the programs as users do: through pipes, and `chat` on a pseudo-terminal.
//!
//! The tests in these modules are ignored by `cargo test`, since they need more than the programs:
//!
//! | module | needs | run by |
//! |---|---|---|
//! | `kafka` | a real Kafka | `scripts/test-kafka` |
//! | `secured` | a real Kafka with TLS, SASL and access control lists | `scripts/test-kafka` |
//! | `unserved` | Kafka 4 or several brokers, and a build without `librdkafka` | `scripts/test-kafka` |
//! | `tools` | kcat, kafka-python, PyNaCl, a disk of its own, root and a second account, a minute, Java | `scripts/test-kafka` |
//! | `faults::full`, `faults::soak` | time, and for some a real Kafka | `scripts/test-faults` |

// A test fails by a panic.
#![allow(clippy::unwrap_used)]
// The test runner captures what a test prints.
#![allow(clippy::disallowed_macros, clippy::print_stdout)]

#[cfg(target_os = "linux")]
mod abuse;
mod bad_input;
mod chatting;
#[cfg(feature = "librdkafka")]
mod earlier;
mod faults;
mod hosting;
mod idle;
mod kafka;
mod leaving;
mod one_way;
mod others;
mod presence;
mod program;
#[cfg(feature = "librdkafka")]
mod reading;
mod screen;
mod sealed;
#[cfg(feature = "librdkafka")]
mod secured;
mod support;
mod tools;
mod tour;
mod tty;
#[cfg(not(feature = "librdkafka"))]
mod unserved;
